//! What a part of the benchmarks has found.

use crate::plot::Plot;
use crate::table::Table;

/// A table, what it is of, and a plot.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// By which docs/benchmarks.md knows it.
    pub(crate) name: &'static str,
    /// Its heading.
    pub(crate) title: &'static str,
    /// How it was measured, in words.
    pub(crate) setting: String,
    pub(crate) plot: Option<Plot>,
    pub(crate) table: Table,
}

impl Section {
    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let setting = match self.setting.as_str() {
            "" => String::new(),
            setting => format!("{setting}\n\n"),
        };
        format!("# {}\n\n{setting}{}", self.title, self.table.text())
    }
}
