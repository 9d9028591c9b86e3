//! Whether what clients saw of one key fits something that every write brings one step further.

use anyhow::{Result, ensure};

use crate::history::Time;

/// Something a client did to the key.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// When the request was sent.
    pub start: Time,
    /// When the answer had been received; [`Time::MAX`] if it never was.
    pub end: Time,
    /// How many steps the key had come after it, if the answer told.
    pub progress: Option<u64>,
    /// Whether it was itself a step.
    pub write: bool,
}

/// Fails when the history of one key cannot be: a progress that is behind what had been seen, or
/// answered, before the operation began, or ahead of what had been begun when it ended.
///
/// # Errors
/// Then; the message has the operation.
pub fn check(steps: &[Step]) -> Result<()> {
    let mut begun: Vec<Time> = Vec::new();
    let mut done: Vec<Time> = Vec::new();
    let mut seen: Vec<(Time, u64)> = Vec::new();
    for step in steps {
        if step.write {
            begun.push(step.start);
            done.push(step.end);
        }
        seen.extend(step.progress.map(|progress| (step.end, progress)));
    }
    begun.sort_unstable();
    done.sort_unstable();
    seen.sort_unstable();
    let mut most = 0;
    for (_, progress) in &mut seen {
        most = most.max(*progress);
        *progress = most;
    }
    for step in steps {
        let Some(progress) = step.progress else {
            continue;
        };
        let own = u64::from(step.write);
        let before = seen.partition_point(|&(end, _)| end < step.start);
        let seen_before = before.checked_sub(1).map_or(0, |last| seen[last].1);
        let done_before = done.partition_point(|&end| end < step.start) as u64;
        let least = seen_before.max(done_before) + own;
        let most = begun.partition_point(|&start| start <= step.end) as u64;
        ensure!(
            progress >= least,
            "stale: {least} steps were known, then {step:?} was seen"
        );
        ensure!(progress <= most, "only {most} steps were begun: {step:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(start: Time, end: Time, progress: Option<u64>) -> Step {
        Step {
            start,
            end,
            progress,
            write: true,
        }
    }

    fn read(start: Time, end: Time, progress: u64) -> Step {
        Step {
            start,
            end,
            progress: Some(progress),
            write: false,
        }
    }

    #[test]
    fn what_overlaps_may_have_happened_or_not() {
        for progress in [0, 1] {
            check(&[write(10, 20, None), read(15, 18, progress)]).unwrap();
            check(&[write(10, Time::MAX, None), read(90, 91, progress)]).unwrap();
        }
    }

    #[test]
    fn a_step_that_is_answered_counts() {
        let two = [write(0, 1, None), write(2, 3, None)];
        check(&[&two[..], &[read(4, 5, 2)]].concat()).unwrap();
        assert!(check(&[&two[..], &[read(4, 5, 1)]].concat()).is_err());
        assert!(check(&[write(0, 1, Some(1)), write(2, 3, Some(1))]).is_err());
    }

    #[test]
    fn no_progress_is_taken_back() {
        let history = [write(0, Time::MAX, None), read(1, 2, 1), read(3, 4, 0)];
        assert!(check(&history).is_err());
        let history = [write(0, 9, Some(1)), read(1, 2, 1), read(10, 11, 0)];
        assert!(check(&history).is_err());
    }

    #[test]
    fn nothing_comes_from_nowhere() {
        assert!(check(&[write(0, 1, None), read(2, 3, 2)]).is_err());
        assert!(check(&[read(0, 1, 1), write(2, 3, None)]).is_err());
    }
}
