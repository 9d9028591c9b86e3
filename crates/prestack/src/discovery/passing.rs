//! Problems that may be over at the next look.

use std::time::{Duration, Instant};

use super::Problem;

/// How long such a problem has to last: as one process ends and another starts, a socket may be seen whose process is
/// not.
const LASTS: Duration = Duration::from_millis(100);

/// Problems that may pass, since when they have been seen at every look.
#[derive(Debug, Default)]
pub struct Passing(Vec<(Problem, Instant)>);

impl Passing {
    /// Leaves out of the problems of a look those that have not lasted yet.
    pub fn sift(&mut self, problems: Vec<Problem>, now: Instant) -> Vec<Problem> {
        let before = std::mem::take(&mut self.0);
        let mut lasting = Vec::new();
        for problem in problems {
            if !matches!(problem, Problem::UnknownProcess { .. }) {
                lasting.push(problem);
                continue;
            }
            let seen = before.iter().find(|(seen, _)| *seen == problem);
            let since = seen.map_or(now, |(_, since)| *since);
            if now.duration_since(since) >= LASTS {
                lasting.push(problem.clone());
            }
            self.0.push((problem, since));
        }
        lasting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_found_is_told_once_that_lasts() {
        let unknown = |port| Problem::UnknownProcess { port };
        let other = Problem::Proxy { pid: 1 };
        let mut passing = Passing::default();
        let start = Instant::now();
        let mut look = |problems: &[Problem], ms| {
            passing.sift(problems.to_vec(), start + Duration::from_millis(ms))
        };
        assert_eq!(look(&[unknown(1), other.clone()], 0), [other]);
        // Looks may follow one another at once.
        assert_eq!(look(&[unknown(1)], 1), []);
        assert_eq!(look(&[unknown(1), unknown(2)], 200), [unknown(1)]);
        assert_eq!(look(&[], 400), []);
        assert_eq!(look(&[unknown(1)], 600), []);
        assert_eq!(look(&[unknown(1)], 800), [unknown(1)]);
    }
}
