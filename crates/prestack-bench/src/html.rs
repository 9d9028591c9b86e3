//! The results as one page that needs nothing else: tables, and plots as SVG.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use crate::how::How;
use crate::section::Section;
use crate::table::escaped;

const HEAD: &str = "<!doctype html>\n<html lang=en>\n<meta charset=\"utf-8\">\n\
<meta name=viewport content=\"width=device-width\">\n<title>prestack benchmarks</title>\n\
<style>:root{color-scheme:light}body{font:16px/1.5 sans-serif;color:#222;background:#fff;\
max-width:68rem;margin:2rem auto;padding:0 1rem}h2{margin-top:3rem}.table{overflow-x:auto}\
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}\
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #ddd;}td{white-space:nowrap}\
th{border-bottom:2px solid #999;vertical-align:bottom}.w{text-align:left}\
svg{max-width:100%;height:auto}</style>\n<h1>prestack benchmarks</h1>\n";

/// Whether a page can be written to `path`. What was not there before is not there after.
///
/// # Errors
/// When that is not so.
pub(crate) fn check(path: &Path) -> Result<()> {
    let is_new = !path.exists();
    let page = File::options().append(true).create(true).open(path);
    page.with_context(|| format!("writing {}", path.display()))?;
    if is_new {
        let removed = fs::remove_file(path);
        removed.with_context(|| format!("removing {} again", path.display()))?;
    }
    Ok(())
}

/// The page of what was measured on this machine, and how.
///
/// # Errors
/// When a plot cannot be drawn.
pub(crate) fn page(machine: &str, how: &How, sections: &[Section]) -> Result<String> {
    let mut page = format!(
        "{HEAD}<p>{}<br>\n{}</p>\n",
        escaped(machine),
        escaped(&how.line())
    );
    for note in &how.notes {
        page += &format!("<p>Note: {}</p>\n", escaped(note));
    }
    for section in sections {
        page += &format!("<h2 id={}>{}</h2>\n", section.name, escaped(section.title));
        if !section.setting.is_empty() {
            page += &format!("<p>{}</p>\n", escaped(&section.setting));
        }
        if let Some(plot) = &section.plot {
            page += &plot.svg()?;
        }
        page += &section.table.html();
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{Line, Plot, Scale};
    use crate::table::Table;

    #[test]
    fn a_page_that_will_not_come_is_not_there() {
        let refusal = check(Path::new("/nonexistent/page.html")).unwrap_err();
        assert!(refusal.to_string().contains("/nonexistent/page.html"));
        let path = std::env::temp_dir().join(format!("prestack-page-{}", std::process::id()));
        check(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "an older one").unwrap();
        check(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"an older one");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let mut table = Table::new(1, ["", "n"]);
        table.row(["row", "1"]);
        let plot = Plot {
            axes: ["x", "y"],
            scale: Scale::Linear,
            lines: vec![Line {
                name: "line".to_owned(),
                points: vec![(1.0, 2.0), (2.0, 3.0)],
            }],
        };
        let section = Section {
            name: "keys",
            title: "a < b",
            setting: "how".to_owned(),
            plot: Some(plot),
            table,
        };
        let notes = vec!["only 3 < 4 rounds".to_owned()];
        let how = How::now(5, 3, "--rounds 5".to_owned(), notes);
        let page = page("a machine", &how, &[section]).unwrap();
        for part in [
            "a machine",
            "--rounds 5",
            "Note: only 3 &lt; 4 rounds",
            "a &lt; b",
            "<p>how",
            "<svg",
            "<td class=w>row<td>1",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        // SVG names itself by an address that nobody opens.
        let foreign = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http") && !foreign.contains("src="));
    }
}
