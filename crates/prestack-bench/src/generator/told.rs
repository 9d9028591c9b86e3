//! What the generator tells.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Error, Result, anyhow, bail, ensure};
use serde::Serialize;

use crate::client::WrongAnswer;
use crate::load::Transport;
use crate::outcome::{Outcome, SHARES};
use crate::report::whole;

/// Where so much was refused or not there, or more, it is something else that was measured.
const TOO_MUCH: f64 = 0.5;
/// Silence at the end from which on a server has stopped: requests have been given up, and others sent in vain.
const STOPPED: f64 = 1.0;

/// What came of a load.
#[derive(Serialize)]
pub(super) struct Told {
    pub(super) server: SocketAddr,
    /// What was offered, in words.
    pub(super) load: String,
    #[serde(flatten)]
    pub(super) offer: Offer,
    pub(super) items: u32,
    pub(super) bytes: u64,
    /// For how long it was measured.
    pub(super) seconds: f64,
    /// Whether it was to be longer.
    pub(super) interrupted: bool,
    /// Share of the answered GETs that found their item.
    pub(super) hit_ratio: Option<f64>,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    /// The shares of the requests that `quantiles_us` is about.
    pub(super) shares: [f64; SHARES.len()],
}

/// What was offered, for programs.
#[derive(Serialize)]
pub(super) struct Offer {
    pub(super) transport: String,
    pub(super) protocol: String,
    /// None of a trace.
    pub(super) popularity: Option<String>,
    /// None of a trace.
    pub(super) write_ratio: Option<f64>,
    pub(super) sockets: usize,
    pub(super) depth: u16,
    /// Requests a second of an open loop.
    #[serde(rename = "offered_rate")]
    pub(super) rate: Option<f64>,
}

/// The share of the answered GETs that found their item.
pub(super) fn hit_ratio(outcome: &Outcome) -> Option<f64> {
    let found = outcome.gets - outcome.get_misses - outcome.gets_refused;
    (outcome.gets > 0).then(|| found as f64 / outcome.gets as f64)
}

impl Told {
    /// For people.
    pub(super) fn table(&self) -> String {
        let Self { outcome, .. } = self;
        let mut table = format!(
            "{}: {}\n{} items, {} bytes of keys and values, every answer checked byte for byte\n",
            self.server,
            self.load,
            whole(self.items.into()),
            whole(self.bytes as f64)
        );
        let mut row = |name: &str, cells: &[String]| {
            write!(table, "\n{name:<26}").expect("a string takes everything");
            for cell in cells {
                write!(table, "{cell:>14}").expect("a string takes everything");
            }
        };
        if outcome.apart.is_some() {
            row("", &["all", "GETs", "SETs"].map(str::to_owned));
        }
        row("requests/s", &[whole(outcome.rate)]);
        let mut latency = |share: &str, of: &dyn Fn(&[f64], f64) -> f64| {
            let mut times = vec![of(&outcome.quantiles_us, outcome.max_us)];
            if let Some(apart) = &outcome.apart {
                let kinds = [&apart.gets, &apart.sets];
                times.extend(kinds.map(|kind| of(&kind.quantiles_us, kind.max_us)));
            }
            let cells: Vec<String> = times.iter().map(|time| format!("{time:.1}")).collect();
            row(&format!("latency {share} (µs)"), &cells);
        };
        for (i, share) in SHARES.into_iter().enumerate() {
            let name = format!("p{}", (1e5 * share).round() / 1e3);
            latency(&name, &|quantiles, _| quantiles[i]);
        }
        latency("max", &|_, max| max);
        let count = |n: u64| whole(n as f64);
        let mut answered = vec![count(outcome.answered)];
        if outcome.apart.is_some() {
            answered.extend([outcome.gets, outcome.sets].map(count));
        }
        row("answered", &answered);
        if let Some(ratio) = self.hit_ratio {
            row("hit ratio", &[format!("{:.1} %", 100.0 * ratio)]);
        }
        for (name, n) in [
            ("GET misses", outcome.get_misses),
            ("GETs refused", outcome.gets_refused),
            ("SETs refused", outcome.sets_refused),
            ("unanswered", outcome.timeouts),
            ("not sent", outcome.not_sent),
            ("wrong", outcome.wrong),
            ("answers to nothing", outcome.strays),
        ] {
            row(name, &[count(n)]);
        }
        table
    }
}

/// What was found out of an outcome that is to be known.
pub(super) struct Judge {
    pub(super) transport: Transport,
    /// The items were there already (`--stored`).
    pub(super) is_stored: bool,
    /// Bytes of all keys and values.
    pub(super) bytes: u64,
}

impl Judge {
    /// What may be the cause of a wrong answer, to go behind it.
    fn or_stored_otherwise(&self) -> &'static str {
        if self.is_stored {
            ". Were the items stored with other sizes (--stored), or written since?"
        } else {
            ""
        }
    }

    /// The same behind an answer for which the run was given up.
    pub(super) fn explained(&self, error: Error) -> Error {
        match error.downcast::<WrongAnswer>() {
            Ok(wrong) => anyhow!("{wrong}{}", self.or_stored_otherwise()),
            Err(other) => other,
        }
    }

    /// Fails when an outcome is not worth telling.
    pub(super) fn is_any(&self, outcome: &Outcome) -> Result<()> {
        let due = outcome.answered + outcome.timeouts + outcome.not_sent + outcome.wrong;
        ensure!(
            due > 0,
            "no request was due: --rate is too low for the time"
        );
        Ok(())
    }

    /// Fails when an answer was wrong, or when most of what was asked was not answered as a cache would, and says what
    /// to look at. Returns what else is to be known.
    pub(super) fn judge(&self, outcome: &Outcome) -> Result<Vec<String>> {
        self.is_any(outcome)?;
        if outcome.wrong > 0 {
            bail!(
                "{} answers were wrong{}{}",
                whole(outcome.wrong as f64),
                outcome.such_as(),
                self.or_stored_otherwise()
            );
        }
        ensure!(
            outcome.answered > 0,
            "nothing was answered: {}",
            match self.transport {
                Transport::Udp =>
                    "is UDP on? Stock memcached has it off unless it is told a port (-U PORT; `stats settings` says \
                     which). Does a firewall drop it?",
                Transport::Tcp => "is memcached stopped or overloaded?",
            }
        );
        let silence = Duration::from_secs_f64(outcome.silent_s);
        ensure!(
            outcome.silent_s < STOPPED,
            "nothing was answered in the last {:.1} s, after {} answers: is memcached stopped?",
            silence.as_secs_f64(),
            whole(outcome.answered as f64)
        );
        let mut notes = Vec::new();
        let nothing = if self.is_stored {
            "--stored says that the items are there, with these keys and sizes. Are they, and does the server's memory \
             hold them?"
                .to_owned()
        } else {
            format!(
                "the server has too little memory for {} bytes of keys and values, or something removes them",
                whole(self.bytes as f64)
            )
        };
        let no_memory = || "the server has too little memory".to_owned();
        for (n, of, what, why) in [
            (
                outcome.get_misses,
                outcome.gets,
                "GETs found nothing",
                nothing,
            ),
            (
                outcome.gets_refused,
                outcome.gets,
                "GETs were refused",
                no_memory(),
            ),
            (
                outcome.sets_refused,
                outcome.sets,
                "SETs were refused",
                no_memory(),
            ),
        ] {
            if n == 0 {
                continue;
            }
            let share = n as f64 / of as f64;
            let said = format!(
                "{} of {} {what} ({:.1} %): {why}",
                whole(n as f64),
                whole(of as f64),
                100.0 * share
            );
            ensure!(share < TOO_MUCH, "{said}");
            notes.push(said);
        }
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(outcome: &Outcome, transport: Transport) -> Result<Vec<String>, String> {
        let judge = Judge {
            transport,
            is_stored: true,
            bytes: 1,
        };
        judge.judge(outcome).map_err(|error| error.to_string())
    }

    /// What is said against an outcome over UDP.
    fn refusal(outcome: &Outcome) -> String {
        judge(outcome, Transport::Udp).expect_err("it is refused")
    }

    fn answered(gets: u64) -> Outcome {
        Outcome {
            answered: gets,
            gets,
            ..Outcome::default()
        }
    }

    #[test]
    fn a_load_that_nothing_answered_says_what_to_look_at() {
        assert!(refusal(&Outcome::default()).contains("--rate"));
        let lost = Outcome {
            timeouts: 1,
            ..Outcome::default()
        };
        assert!(refusal(&lost).contains("-U PORT"));
        let refusal = judge(&lost, Transport::Tcp).unwrap_err();
        assert!(!refusal.contains("-U"), "{refusal}");
        let some = Outcome {
            timeouts: 1,
            ..answered(1)
        };
        assert_eq!(judge(&some, Transport::Udp), Ok(Vec::new()));
    }

    #[test]
    fn misses_are_noted_and_too_many_of_them_fail() {
        let outcome = |get_misses| Outcome {
            get_misses,
            ..answered(100)
        };
        let notes = judge(&outcome(49), Transport::Udp).unwrap();
        assert!(
            notes[0].starts_with("49 of 100 GETs found nothing (49.0 %)"),
            "{notes:?}"
        );
        assert!(refusal(&outcome(50)).contains("--stored"));
        let refused = Outcome {
            answered: 2,
            sets: 2,
            sets_refused: 1,
            ..Outcome::default()
        };
        assert!(refusal(&refused).starts_with("1 of 2 SETs were refused"));
    }

    #[test]
    fn a_server_that_has_stopped_fails() {
        let silent = |silent_s| Outcome {
            silent_s,
            ..answered(1_000)
        };
        assert!(refusal(&silent(1.5)).contains("the last 1.5 s, after 1,000 answers"));
        assert_eq!(judge(&silent(0.9), Transport::Udp), Ok(Vec::new()));
    }

    #[test]
    fn a_wrong_answer_is_shown() {
        let wrong = Outcome {
            wrong: 2,
            first_wrong: Some("GET of a".to_owned()),
            ..answered(1)
        };
        let refusal = refusal(&wrong);
        assert!(
            refusal.starts_with("2 answers were wrong; the first: GET of a. Were"),
            "{refusal}"
        );
        let judge = Judge {
            transport: Transport::Tcp,
            is_stored: true,
            bytes: 1,
        };
        let explained = judge.explained(WrongAnswer("GET of a".to_owned()).into());
        let explained = explained.to_string();
        assert!(
            explained.starts_with("an answer was wrong: GET of a. Were"),
            "{explained}"
        );
        assert_eq!(judge.explained(anyhow!("other")).to_string(), "other");
    }

    #[test]
    fn gets_and_sets_have_columns_where_there_are_both() {
        use crate::outcome::{Apart, Latencies};
        let latencies = |time| Latencies {
            quantiles_us: vec![time; SHARES.len()],
            max_us: 10.0 * time,
        };
        let mut told = Told {
            server: ([127, 0, 0, 1], 1).into(),
            load: String::new(),
            offer: Offer {
                transport: "UDP".to_owned(),
                protocol: "text".to_owned(),
                popularity: None,
                write_ratio: None,
                sockets: 1,
                depth: 1,
                rate: None,
            },
            items: 1,
            bytes: 1,
            seconds: 1.0,
            interrupted: false,
            hit_ratio: Some(0.75),
            outcome: Outcome {
                quantiles_us: vec![3.0; SHARES.len()],
                max_us: 40.0,
                ..answered(8)
            },
            shares: SHARES,
        };
        let line = |told: &Told, name: &str| {
            let table = told.table();
            let line = table.lines().find(|line| line.starts_with(name));
            let cells = line.map(|line| line[name.len()..].split_whitespace().collect::<Vec<_>>());
            cells.expect("there is a line").join(" ")
        };
        assert_eq!(line(&told, "latency max (µs)"), "40.0");
        assert_eq!(line(&told, "hit ratio"), "75.0 %");
        told.outcome.sets = 2;
        told.outcome.apart = Some(Apart {
            gets: latencies(2.0),
            sets: latencies(4.0),
        });
        assert_eq!(line(&told, "latency p99 (µs)"), "3.0 2.0 4.0");
        assert_eq!(line(&told, "latency max (µs)"), "40.0 20.0 40.0");
        assert_eq!(line(&told, "answered"), "8 8 2");
    }
}
