//! Which keys are asked for, and how often.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use crate::dataset::mix;
use crate::interrupt;

/// Least and greatest length of a sequence; it is read again from its start when it ends. Read in order, it
/// costs the load generator less than drawing a key for each request would. The longest takes 256 MiB.
const LENGTHS: RangeInclusive<u64> = 1 << 20..=1 << 26;
/// A sequence has so many draws for each key, as far as it may: uniform, 98 % of the keys then occur in it.
const DRAWS_PER_KEY: u64 = 4;
/// Zipf's law has its keys looked for between marks: so many equal shares of all requests.
const MARKS: usize = 1 << 20;

/// How often each key is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// All keys equally.
    Uniform,
    /// The `n`-th key in proportion to `1 / n^exponent`.
    Zipf(f64),
}

impl Popularity {
    /// A sequence of keys below `keys`, always the same. (After Ctrl-C, which whoever uses it heeds, it is made up in no
    /// time: of many keys it takes seconds to draw.)
    #[must_use]
    pub fn sequence(self, keys: u32) -> Arc<[u32]> {
        let is_over = || interrupt::flag().load(Ordering::Relaxed);
        let draws = 0..length(keys);
        match self {
            Self::Uniform => draws
                .map(|i| (((mix(i) >> 32) * u64::from(keys)) >> 32) as u32)
                .collect(),
            Self::Zipf(exponent) => {
                let mut sum = 0.0;
                let weight = |n: u32| {
                    if is_over() {
                        0.0
                    } else {
                        f64::from(n + 1).powf(-exponent)
                    }
                };
                let sums: Vec<f64> = (0..keys)
                    .map(|n| {
                        sum += weight(n);
                        sum
                    })
                    .collect();
                let marks = marks(&sums);
                let unit = |i| (mix(i) >> 11) as f64 / (1u64 << 53) as f64;
                let draw = |i| {
                    let unit: f64 = unit(i);
                    let mark = (unit * MARKS as f64) as usize;
                    let (first, end) = (marks[mark] as usize, marks[mark + 1] as usize);
                    let n = first + sums[first..end].partition_point(|&s| s <= unit * sum);
                    (n as u32).min(keys - 1)
                };
                draws.map(|i| if is_over() { 0 } else { draw(i) }).collect()
            }
        }
    }
}

/// Length of a sequence of so many keys.
fn length(keys: u32) -> u64 {
    (DRAWS_PER_KEY * u64::from(keys)).clamp(*LENGTHS.start(), *LENGTHS.end())
}

/// How many of `sums`, which rise, are at most so many shares of the last one: none to all [`MARKS`] of them.
fn marks(sums: &[f64]) -> Box<[u32]> {
    let share = sums.last().copied().unwrap_or(0.0) / MARKS as f64;
    let mut below = 0;
    let mark = |i| {
        below += sums[below..]
            .iter()
            .take_while(|&&s| s <= i as f64 * share)
            .count();
        below as u32
    };
    (0..=MARKS).map(mark).collect()
}

impl FromStr for Popularity {
    type Err = anyhow::Error;

    /// `uniform`, `zipf` (exponent 0.99) or `zipf:EXPONENT`.
    fn from_str(text: &str) -> Result<Self> {
        let exponent = match text.split_once(':') {
            None if text == "uniform" => return Ok(Self::Uniform),
            None if text == "zipf" => 0.99,
            Some(("zipf", exponent)) => exponent.parse().context("the exponent is no number")?,
            _ => anyhow::bail!("{text:?} is neither `uniform` nor `zipf` nor `zipf:EXPONENT`"),
        };
        ensure!(
            (0.0..=4.0).contains(&exponent),
            "the exponent must be between 0 and 4"
        );
        Ok(Self::Zipf(exponent))
    }
}

impl std::fmt::Display for Popularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(popularity: Popularity, keys: u32) -> Vec<f64> {
        let mut counts = vec![0.0; keys as usize];
        popularity
            .sequence(keys)
            .iter()
            .for_each(|&n| counts[n as usize] += 1.0);
        counts
    }

    #[test]
    fn uniform_asks_for_all_keys_equally() {
        let expected = *LENGTHS.start() as f64 / 100.0;
        for count in counts(Popularity::Uniform, 100) {
            assert!(
                (count / expected - 1.0).abs() < 0.05,
                "{count} of {expected}"
            );
        }
    }

    #[test]
    fn nearly_all_of_many_keys_are_asked_for() {
        let counts = counts(Popularity::Uniform, 1_000_000);
        let asked_for = counts.iter().filter(|&&count| count > 0.0).count();
        assert!((975_000..990_000).contains(&asked_for), "{asked_for}");
    }

    #[test]
    fn sequences_fit_the_memory() {
        let lengths = [1, 100_000, 1_000_000, 100_000_000].map(length);
        assert_eq!(lengths, [1 << 20, 1 << 20, 4_000_000, 1 << 26]);
    }

    #[test]
    fn zipf_follows_its_law() {
        let counts = counts(Popularity::Zipf(1.0), 1_000);
        for n in [2, 5, 10, 50] {
            let ratio = counts[0] / counts[n - 1];
            assert!((ratio / n as f64 - 1.0).abs() < 0.1, "key {n}: {ratio}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for text in ["uniform", "zipf:0.99", "zipf:1.2"] {
            assert_eq!(text.parse::<Popularity>().unwrap().to_string(), text);
        }
        for text in ["", "zipf:", "zipf:x", "zipf:5", "other:1"] {
            assert!(text.parse::<Popularity>().is_err(), "{text:?}");
        }
    }
}
