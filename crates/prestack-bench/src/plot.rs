//! Plots as SVG.

use std::fmt::Display;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::report::whole;

/// Width and height in pixels.
const SIZE: (u32, u32) = (860, 400);
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
                let x = (first_x.max(f64::MIN_POSITIVE)..last_x * 1.05).log_scale();
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
            .x_label_formatter(&|x| label(*x, self.scale))
            .y_label_formatter(&|y| label(*y, Scale::Linear))
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

/// A number at an axis. Where it is divided by powers of ten the marks between them crowd.
fn label(number: f64, scale: Scale) -> String {
    let has_label = |first: f64| {
        (first - 1.0).abs() < 1e-6 || (first - 2.0).abs() < 1e-6 || (first - 5.0).abs() < 1e-6
    };
    if scale == Scale::Log && !has_label(number / 10f64.powf(number.log10().floor())) {
        return String::new();
    }
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

    #[test]
    fn crowded_marks_have_no_label() {
        assert_eq!(label(1000.0, Scale::Log), "1,000");
        assert_eq!(label(0.5, Scale::Log), "0.5");
        assert_eq!(label(9.0, Scale::Log), "");
        assert_eq!(label(9.0, Scale::Linear), "9");
    }
}
