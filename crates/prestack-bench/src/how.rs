//! How and when the numbers were measured, for those who find them later.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Seconds of a day.
const DAY: u64 = 86_400;

/// How the numbers were measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct How {
    /// prestack's version.
    prestack: &'static str,
    /// When it was over, in UTC.
    date: String,
    rounds: u32,
    /// Seconds of a round.
    seconds: u32,
    /// The options that numbers depend on.
    options: String,
    /// What was noted meanwhile.
    pub(crate) notes: Vec<String>,
}

impl How {
    /// By this version, now.
    pub(crate) fn now(rounds: u32, seconds: u32, options: String, notes: Vec<String>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            prestack: env!("CARGO_PKG_VERSION"),
            date: date(since.unwrap_or_default().as_secs()),
            rounds,
            seconds,
            options,
            notes,
        }
    }

    /// One line of text.
    pub(crate) fn line(&self) -> String {
        format!(
            "prestack {}, {}, {}",
            self.prestack, self.date, self.options
        )
    }
}

/// The date of so many seconds since 1970.
fn date(seconds: u64) -> String {
    let (mut days, of_day) = (seconds / DAY, seconds % DAY);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let days_of_year = 365 + u64::from(is_leap(year));
        if days < days_of_year {
            break;
        }
        days -= days_of_year;
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for days_of_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < days_of_month {
            break;
        }
        days -= days_of_month;
        month += 1;
    }
    format!(
        "{year}-{month:02}-{:02} {:02}:{:02} UTC",
        days + 1,
        of_day / 3_600,
        of_day / 60 % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (1_740_787_200, "2025-03-01 00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn a_line_says_by_what_it_was_measured() {
        let how = How::now(5, 3, "--rounds 5 --seconds 3".to_owned(), Vec::new());
        let line = how.line();
        assert!(
            line.contains(env!("CARGO_PKG_VERSION")) && line.ends_with("--rounds 5 --seconds 3"),
            "{line}"
        );
    }
}
