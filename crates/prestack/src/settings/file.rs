//! The configuration file: what is in it, and which settings there are.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use clap::{Args as _, Command};
use serde::de::IgnoredAny;
use toml::Spanned;

use super::{Settings, SettingsError};

/// How much alike a name has to be to be meant, from 0 to 1 (Jaro).
const ALIKE: f64 = 0.8;
/// The flag whose setting says the opposite, and that setting.
const NEGATED: (&str, &str) = ("no-watch-lo", "watch-lo");

/// A name in the file that no setting has.
#[derive(Debug)]
pub struct Unknown {
    path: PathBuf,
    line: usize,
    name: String,
}

impl Settings {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or holds something that is not a setting.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
            path: path.into(),
            source,
        })?;
        if let Some((line, name)) = unknown(&text) {
            let path = path.into();
            return Err(SettingsError::Unknown(Unknown { path, line, name }));
        }
        toml::from_str(&text).map_err(|source| SettingsError::Malformed {
            path: path.into(),
            source: Box::new(source),
        })
    }
}

/// The first name that no setting has, and its line; `None` also if the file is not TOML at all.
fn unknown(text: &str) -> Option<(usize, String)> {
    let given: BTreeMap<Spanned<String>, IgnoredAny> = toml::from_str(text).ok()?;
    let known = names(|_| true);
    let unknown = given
        .into_keys()
        .filter(|name| !known.contains(name.as_ref()));
    let first = unknown.min_by_key(|name| name.span().start)?;
    let line = text[..first.span().start].matches('\n').count() + 1;
    Some((line, first.into_inner()))
}

/// The names of settings in the file, of those for whose flags it `is_meant`.
fn names(is_meant: impl Fn(&clap::Arg) -> bool) -> Vec<String> {
    let flags = Settings::augment_args(Command::new("run"));
    let flags = flags.get_arguments().filter(|flag| is_meant(flag));
    let names = flags.filter_map(|flag| flag.get_long());
    let names = names.map(|name| if name == NEGATED.0 { NEGATED.1 } else { name });
    names.map(str::to_owned).collect()
}

impl fmt::Display for Unknown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, line, name) = (self.path.display(), self.line, &self.name);
        write!(
            out,
            "configuration file {path}: line {line}: there is no setting {name}: "
        )?;
        let written = name.to_lowercase().replace('_', "-");
        if written == NEGATED.0 {
            return write!(out, "write {} = false", NEGATED.1);
        }
        let known = names(|flag| !flag.is_hide_set());
        let likeness = |known: &String| strsim::jaro(known, &written);
        let nearest = known
            .iter()
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match nearest.filter(|known| likeness(known) >= ALIKE) {
            Some(known) => write!(out, "did you mean {known}?"),
            None => write!(out, "there are {}", known.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("prestack.toml");
        fs::write(&path, text).expect("written");
        Settings::read(&path).unwrap_err().to_string()
    }

    #[test]
    fn unknown_names_are_told_with_what_may_be_meant() {
        for (text, said) in [
            (
                "max_age = '1s'",
                "line 1: there is no setting max_age: did you mean max-age?",
            ),
            (
                "\n\nMax-Age = '1s'",
                "line 3: there is no setting Max-Age: did you mean max-age?",
            ),
            ("interfaces = ['vs']", "did you mean interface?"),
            (
                "pin = true\nports = [1]\nx = 1",
                "line 2: there is no setting ports: did you mean port?",
            ),
            ("no-watch-lo = true", "write watch-lo = false"),
            (
                "[network]\ninterface = 'vs'",
                "line 1: there is no setting network: there are interface, port, ",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(said), "{error}");
            assert!(error.contains("prestack.toml"), "{error}");
        }
    }

    #[test]
    fn what_is_hidden_is_not_told() {
        let error = error("zzz = 1");
        assert!(
            error.contains("watch-lo, ") && error.contains("egress"),
            "{error}"
        );
        for hidden in ["settle", "rest,", "much", "no-watch"] {
            assert!(!error.contains(hidden), "{error}");
        }
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        let error = error("pin = true\nport = = 1");
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_manual_shows_every_setting() {
        let manual = include_str!("../../../../docs/operations.md");
        let example = manual.split_once("```toml\n").expect("an example").1;
        let example = example.split_once("```").expect("its end").0;
        let settings: Settings = toml::from_str(example).expect("well-formed");
        assert_eq!(settings.doubts(), [""; 0]);
        settings.resolve("").expect("in range");
        for name in names(|flag| !flag.is_hide_set()) {
            let mut lines = example.lines().map(|line| line.trim_start_matches("# "));
            assert!(
                lines.any(|line| line.starts_with(&format!("{name} = "))),
                "{name}"
            );
            let flag = if name == NEGATED.1 { NEGATED.0 } else { &name };
            assert!(manual.contains(&format!("`--{flag}")), "--{flag}");
        }
    }

    #[test]
    fn every_flag_has_a_setting() {
        for name in names(|_| true) {
            // It is known, whatever it may hold.
            let error = toml::from_str::<Settings>(&format!("{name} = {{}}")).unwrap_err();
            assert!(!error.to_string().contains("unknown field"), "{error}");
        }
    }
}
