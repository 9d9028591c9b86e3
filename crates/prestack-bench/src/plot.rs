//! Plots as SVG.

use std::fmt::Display;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::report::whole;

/// Width and height in pixels.
const SIZE: (u32, u32) = (860, 400);
/// So many marks at an axis that is divided by powers of ten do not crowd, and so many show how it is divided.
const MANY_MARKS: usize = 12;
const FEW_MARKS: usize = 3;
/// Width of the names of the lines, right of them.
const NAMES: u32 = 170;
/// Colours of lines (Okabe and Ito's, which everybody can tell apart).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// A plot.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// What is plotted, against what.
    pub(crate) axes: [&'static str; 2],
    /// How x is divided; y is linear and starts at 0.
    pub(crate) scale: Scale,
    pub(crate) lines: Vec<Line>,
}

/// A line of a plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By powers of ten.
    Log,
}

impl Plot {
    /// The picture.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub(crate) fn svg(&self) -> Result<String> {
        let all = || self.lines.iter().flat_map(|line| line.points.iter());
        let greatest =
            |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN_POSITIVE, f64::max);
        let last_x = greatest(&mut all().map(|(x, _)| *x));
        let first_x = all().map(|(x, _)| *x).fold(last_x, f64::min);
        let last_y = 1.1 * greatest(&mut all().map(|(_, y)| *y));
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            root.fill(&WHITE).map_err(failed)?;
            let (picture, names) = root.split_horizontally(SIZE.0 - NAMES);
            let mut chart = ChartBuilder::on(&picture);
            chart.margin(12).margin_right(40);
            chart.x_label_area_size(48).y_label_area_size(72);
            let y = 0.0..last_y;
            if self.scale == Scale::Log {
                let (first, last) = (first_x.max(f64::MIN_POSITIVE), last_x * 1.05);
                let x = (first..last).log_scale();
                let x = x.with_key_points(log_marks(first, last));
                self.draw(chart.build_cartesian_2d(x, y).map_err(failed)?)?;
            } else {
                let x = 0.0..last_x * 1.05;
                self.draw(chart.build_cartesian_2d(x, y).map_err(failed)?)?;
            }
            for (i, line) in self.lines.iter().enumerate() {
                let y = 24 + 24 * i as i32;
                let rule = PathElement::new([(0, y), (22, y)], colour(i).stroke_width(3));
                names.draw(&rule).map_err(failed)?;
                let name = Text::new(line.name.clone(), (30, y - 8), ("sans-serif", 15));
                names.draw(&name).map_err(failed)?;
            }
            root.present().map_err(failed)?;
        }
        Ok(format!("{svg}\n"))
    }

    fn draw<'a, X>(
        &self,
        mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>,
    ) -> Result<()>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let [x, y] = self.axes;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&|x| label(*x))
            .y_label_formatter(&|y| label(*y))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 15))
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        for (i, line) in self.lines.iter().enumerate() {
            let drawn = LineSeries::new(line.points.iter().copied(), colour(i).stroke_width(2));
            let drawn = drawn.point_size(3);
            chart.draw_series(drawn).map_err(failed)?;
        }
        Ok(())
    }
}

fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// Where an axis that is divided by powers of ten has marks: at 1, 2 and 5 times these, or at them alone if those would
/// crowd; on a short one evenly.
fn log_marks(first: f64, last: f64) -> Vec<f64> {
    let powers = first.log10().floor() as i32..=last.log10().ceil() as i32;
    let at = |factors: &[f64]| -> Vec<f64> {
        let marks = powers
            .clone()
            .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
        marks.filter(|mark| (first..=last).contains(mark)).collect()
    };
    let marks = at(&[1.0, 2.0, 5.0]);
    if marks.len() > MANY_MARKS {
        return at(&[1.0]);
    }
    if marks.len() >= FEW_MARKS {
        return marks;
    }
    let step = 10f64.powf((last - first).log10().floor());
    let numbers = (first / step).ceil() as u64..=(last / step).floor() as u64;
    numbers.map(|n| n as f64 * step).collect()
}

/// A number at an axis.
fn label(number: f64) -> String {
    // As it was meant: 0.3 and not 0.30000000000000004.
    let number = (number * 1e6).round() / 1e6;
    if number.fract() == 0.0 {
        whole(number)
    } else {
        format!("{number}")
    }
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("drawing a plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_pictures() {
        for scale in [Scale::Linear, Scale::Log] {
            let line = |name: &str, points: &[(f64, f64)]| Line {
                name: name.to_owned(),
                points: points.to_vec(),
            };
            let plot = Plot {
                axes: ["keys", "rate"],
                scale,
                lines: vec![
                    line("one", &[(1.0, 5.0), (1e6, 7.0)]),
                    line("other", &[(1.0, 2.0), (1e6, 1.0)]),
                ],
            };
            let svg = plot.svg().unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("polyline"), "{svg}");
            for text in ["one", "other", "keys", "1,000,000"] {
                assert!(svg.contains(text), "{text} in {svg}");
            }
        }
    }

    /// The labels at the x axis of a plot by powers of ten.
    fn log_labels(first: f64, last: f64) -> Vec<String> {
        let plot = Plot {
            axes: ["x", "y"],
            scale: Scale::Log,
            lines: vec![Line {
                name: "line".to_owned(),
                // Nothing at the other axis looks like these labels.
                points: vec![(first, 0.001), (last, 0.002)],
            }],
        };
        let svg = plot.svg().unwrap();
        let texts = svg.split("<text").skip(1);
        let texts = texts.map(|text| text[text.find('>').unwrap() + 1..].split('<').next());
        let texts = texts.map(|text| text.unwrap().trim().to_owned());
        texts
            .filter(|text| !["x", "y", "line"].contains(&&text[..]) && !text.starts_with("0.00"))
            .collect()
    }

    #[test]
    fn each_mark_has_a_label_of_its_own() {
        for (first, last) in [
            (1.0, 1e6),
            (37.2, 10_500.0),
            (300.0, 11_000.0),
            (146.8, 65_077.2),
            (96.0, 12_345.6),
            (400.0, 450.0),
            (5.0, 5e8),
        ] {
            let labels = log_labels(first, last);
            let mut different = labels.clone();
            different.sort();
            different.dedup();
            let are_all = (2..16).contains(&labels.len()) && different.len() == labels.len();
            assert!(
                are_all && !labels.contains(&String::new()),
                "{first} to {last}: {labels:?}"
            );
        }
    }

    #[test]
    fn crowded_marks_are_left_out() {
        assert_eq!(log_marks(3.0, 30.0), [5.0, 10.0, 20.0]);
        assert_eq!(log_marks(1.0, 1e6).len(), 7);
        assert_eq!(log_marks(400.0, 440.0), [400.0, 410.0, 420.0, 430.0, 440.0]);
        let labels = [1_000.0, 0.5, 3.0 * 0.1].map(label);
        assert_eq!(labels, ["1,000", "0.5", "0.3"]);
    }
}
