//! Tables of a Markdown file that the benchmarks write: each stands between two lines,
//!
//! ```text
//! <!-- bench: NAME -->
//! <!-- bench end -->
//! ```
//!
//! and what is between them is replaced. All else stays as it is.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::section::Section;

const START: &str = "<!-- bench: ";
const END: &str = "<!-- bench end -->";

/// Whether the file at `path` has a place for a table, and can be written.
///
/// # Errors
/// When that is not so.
pub(crate) fn check(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let has_place = text.contains(START) && text.contains(END);
    ensure!(
        has_place,
        "{} has no place for a table: lines `{START}NAME -->` and `{END}`",
        path.display()
    );
    let file = std::fs::File::options().append(true).open(path);
    file.with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// Writes the sections to their places in the file at `path`. Sections without a place there are left out,
/// places without a section stay as they are.
///
/// # Errors
/// When the file cannot be read or written, or has none of the places, or one without an end.
pub(crate) fn update(path: &Path, how: &str, sections: &[Section]) -> Result<()> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let text = updated(&text, how, sections).with_context(|| path.display().to_string())?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn updated(text: &str, how: &str, sections: &[Section]) -> Result<String> {
    let mut text = text.to_owned();
    let mut written = 0;
    for section in sections {
        let start = format!("{START}{} -->\n", section.name);
        let Some(at) = text.find(&start) else {
            continue;
        };
        let from = at + start.len();
        let Some(len) = text[from..].find(END) else {
            bail!("no line `{END}` follows `{}`", start.trim_end());
        };
        ensure!(
            !text[from..from + len].contains(START),
            "no line `{END}` follows `{}` before the next table",
            start.trim_end()
        );
        let table = section.table.markdown();
        text.replace_range(from..from + len, &format!("\n{table}\n{how}\n"));
        written += 1;
    }
    ensure!(
        written > 0,
        "there is no line `<!-- bench: NAME -->` for any of what was measured: {}",
        sections
            .iter()
            .map(|s| s.name)
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;

    fn section(name: &'static str) -> Section {
        let mut table = Table::new(1, ["", "n"]);
        table.row(["row", "1"]);
        Section {
            name,
            title: "",
            setting: String::new(),
            plot: None,
            table,
        }
    }

    #[test]
    fn what_stands_in_its_place_is_replaced_and_nothing_else() {
        let text = "a\n<!-- bench: keys -->\nold\n<!-- bench end -->\nb\n\
                    <!-- bench: values -->\nkept\n<!-- bench end -->\n";
        let new = updated(text, "How.", &[section("keys"), section("cpus")]).unwrap();
        let table = section("keys").table.markdown();
        assert_eq!(new, text.replace("old\n", &format!("\n{table}\nHow.\n")));
        assert_eq!(updated(&new, "How.", &[section("keys")]).unwrap(), new);
    }

    #[test]
    fn a_file_of_no_use_is_refused_before_anything_is_measured() {
        let missing = check(Path::new("/nonexistent.md")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent.md"), "{missing}");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let other = check(&manifest).unwrap_err();
        assert!(other.to_string().contains("no place"), "{other}");
    }

    #[test]
    fn a_file_without_places_is_refused() {
        let unclosed = "<!-- bench: keys -->\n<!-- bench: values -->\n<!-- bench end -->\n";
        for text in ["", "<!-- bench: keys -->\n", unclosed] {
            let error = updated(text, "", &[section("keys")]).unwrap_err();
            assert!(error.to_string().contains("no line"), "{error}");
        }
    }
}
