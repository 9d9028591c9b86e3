//! How long keys and values are.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::dataset::mix;

/// A distribution of sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(u32),
    /// Equally likely from the first to the last.
    Uniform(u32, u32),
    /// As in Facebook's pool ETC, by the model of Atikoglu et al., "Workload Analysis of a Large-Scale
    /// Key-Value Store" (SIGMETRICS 2012), table 5.
    Etc,
    /// In the manner of the clusters in Yang et al., "A large scale analysis of hundreds of in-memory
    /// cache clusters at Twitter" (OSDI 2020): keys of some 38 bytes, values of some 230, both
    /// log-normal.
    Twitter,
}

/// What has the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

impl Sizes {
    /// The least and the greatest size, where they are given and do not follow from a model.
    pub(crate) fn range(self) -> Option<(u32, u32)> {
        match self {
            Self::Fixed(size) => Some((size, size)),
            Self::Uniform(first, last) => Some((first, last)),
            Self::Etc | Self::Twitter => None,
        }
    }

    /// The size of item `n`: always the same for it.
    pub(crate) fn of(self, n: u32, part: Part) -> u32 {
        // Uniform in (0, 1), of the number and the part.
        let unit = |turn: u64| {
            let seed = u64::from(n) << 2 | turn << 1 | u64::from(part == Part::Value);
            ((mix(mix(seed)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let size = match (self, part) {
            (Self::Fixed(size), _) => return size,
            (Self::Uniform(first, last), _) => {
                return first + ((unit(0) * f64::from(last - first + 1)) as u32).min(last - first);
            }
            // Generalized extreme value distribution.
            (Self::Etc, Part::Key) => {
                const K: f64 = 0.078_688;
                30.7984 + 8.20449 / K * ((-unit(0).ln()).powf(-K) - 1.0)
            }
            // Generalized Pareto distribution.
            (Self::Etc, Part::Value) => {
                const K: f64 = 0.348_238;
                214.476 / K * (unit(0).powf(-K) - 1.0)
            }
            (Self::Twitter, Part::Key) => log_normal(38.0, 0.3, unit(0), unit(1)),
            (Self::Twitter, Part::Value) => log_normal(230.0, 1.2, unit(0), unit(1)),
        };
        size as u32
    }
}

/// A log-normal number with this median from two uniform ones (Box and Muller).
fn log_normal(median: f64, sigma: f64, a: f64, b: f64) -> f64 {
    let normal = (-2.0 * a.ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos();
    median * (sigma * normal).exp()
}

impl FromStr for Sizes {
    type Err = anyhow::Error;

    /// `BYTES`, `FIRST-LAST`, `etc` or `twitter`.
    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| {
            let parsed = text.parse();
            parsed.with_context(|| format!("{text:?} is not a number of bytes"))
        };
        match text {
            "etc" => Ok(Self::Etc),
            "twitter" => Ok(Self::Twitter),
            _ => match text.split_once('-') {
                None if text.starts_with(|c: char| c.is_ascii_digit()) => {
                    Ok(Self::Fixed(number(text)?))
                }
                None => bail!("{text:?} is neither BYTES nor FIRST-LAST nor `etc` nor `twitter`"),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    ensure!(first <= last, "{first} is more than {last}");
                    Ok(Self::Uniform(first, last))
                }
            },
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Uniform(first, last) => write!(f, "{first}-{last}"),
            Self::Etc => f.write_str("etc"),
            Self::Twitter => f.write_str("twitter"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn median(sizes: Sizes, part: Part) -> u32 {
        let mut all: Vec<u32> = (0..10_001).map(|n| sizes.of(n, part)).collect();
        all.sort_unstable();
        all[5_000]
    }

    #[test]
    fn medians_are_those_of_the_models() {
        assert_eq!(median(Sizes::Fixed(7), Part::Key), 7);
        assert!((48..=52).contains(&median(Sizes::Uniform(0, 100), Part::Value)));
        // 30.8 + 8.2 · 0.37, and 214.5 / 0.348 · (2^0.348 − 1).
        assert!((32..=35).contains(&median(Sizes::Etc, Part::Key)));
        assert!((155..=180).contains(&median(Sizes::Etc, Part::Value)));
        assert!((36..=40).contains(&median(Sizes::Twitter, Part::Key)));
        assert!((215..=245).contains(&median(Sizes::Twitter, Part::Value)));
    }

    #[test]
    fn names_are_read_back() {
        for text in ["32", "1-1300", "etc", "twitter"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        for text in ["", "x", "5-", "9-3", "-4"] {
            assert!(text.parse::<Sizes>().is_err(), "{text:?}");
        }
    }
}
