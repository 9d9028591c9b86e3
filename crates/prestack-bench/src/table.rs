//! A table, as text, Markdown and HTML.

use std::fmt::Write;

use serde::Serialize;

/// Rows under a head. The first columns are words, the others numbers.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    /// How many columns are words.
    words: usize,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows, of whose columns so many are words.
    pub(crate) fn new<T: Into<String>>(words: usize, head: impl IntoIterator<Item = T>) -> Self {
        Self {
            words,
            head: head.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, of as many cells as the head has.
    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.head.len(), "cells of a row");
        self.rows.push(cells);
    }

    /// In columns, for a terminal.
    pub(crate) fn text(&self) -> String {
        let width = |i: usize| {
            let cells = self.lines().map(|line| line[i].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for line in self.lines() {
            let mut row = String::new();
            for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let gap = if i == 0 { "" } else { "  " };
                if i < self.words {
                    write!(row, "{gap}{cell:<width$}")
                } else {
                    write!(row, "{gap}{cell:>width$}")
                }
                .expect("a string takes everything");
            }
            writeln!(text, "{}", row.trim_end()).expect("a string takes everything");
        }
        text
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let numbers = self.head.len() - self.words;
        let rule = format!("|{}{}\n", "---|".repeat(self.words), "--:|".repeat(numbers));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}{rule}{rows}", line(&self.head))
    }

    /// As HTML.
    pub(crate) fn html(&self) -> String {
        let line = |cells: &[String], tag: &str| {
            let cells = cells.iter().enumerate().map(|(i, cell)| {
                let class = if i < self.words { " class=w" } else { "" };
                format!("<{tag}{class}>{}", escaped(cell))
            });
            format!("<tr>{}\n", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(|row| line(row, "td")).collect();
        format!(
            "<div class=table><table>\n{}{rows}</table></div>\n",
            line(&self.head, "th")
        )
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.head).chain(&self.rows)
    }
}

/// Text as HTML.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(1, ["", "µs"]);
        table.row(["a<b", "1"]);
        table.row(["c", "1,000"]);
        table
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(table().text(), "        µs\na<b      1\nc    1,000\n");
    }

    #[test]
    fn markdown_and_html_say_the_same() {
        assert_eq!(
            table().markdown(),
            "|  | µs |\n|---|--:|\n| a<b | 1 |\n| c | 1,000 |\n"
        );
        let html = table().html();
        assert!(html.contains("<tr><td class=w>a&lt;b<td>1\n<tr><td class=w>c<td>1,000\n"));
    }
}
