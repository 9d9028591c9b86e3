//! The results as one page that needs nothing else: tables, and plots as SVG.

use std::fmt::{Display, Write};

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::bench::Results;
use crate::load::SHARES;
use crate::loss;
use crate::report::Report;
use crate::suite::Series;

/// Width and height of a plot in pixels.
const SIZE: (u32, u32) = (760, 380);
/// Colours of lines (Okabe and Ito's, which everybody can tell apart).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

const HEAD: &str = "<!doctype html>\n<meta charset=\"utf-8\">\n<title>prestack benchmarks</title>\n\
<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
pre{font-size:13px;overflow-x:auto;background:#f6f6f6;padding:.7rem}\
svg{max-width:100%;height:auto}</style>\n<h1>prestack benchmarks</h1>\n";

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// How an axis is divided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
}

/// The page.
///
/// # Errors
/// When a plot cannot be drawn.
pub(crate) fn page(results: &Results) -> Result<String> {
    let mut page = HEAD.to_owned();
    let mut push = |text: &dyn Display| write!(page, "{text}").expect("a string takes everything");
    push(&format_args!(
        "<p>{}</p>\n",
        escaped(&results.machine.line())
    ));
    let of = |series| {
        let reports = results.comparisons.iter();
        let reports: Vec<&Report> = reports.filter(|r: &&Report| r.series == series).collect();
        reports
    };
    for series in [
        Series::Overview,
        Series::Keys,
        Series::Values,
        Series::Mixes,
        Series::Cpus,
        Series::Memory,
        Series::Tcp,
    ] {
        let reports = of(series);
        if reports.is_empty() {
            continue;
        }
        push(&format_args!("<h2>{}</h2>\n", series.title()));
        if let Some(plot) = plot_of(series, &reports)? {
            push(&plot);
        }
        for report in reports {
            push(&format_args!(
                "<pre>{}\n\n{}</pre>\n",
                escaped(&report.setting),
                escaped(&report.table())
            ));
        }
    }
    if !results.kernel.is_empty() {
        push(&"<h2>Nanoseconds in the kernel</h2>\n");
        let points = crate::kernel::hits_by_size(&results.kernel);
        if points.len() > 1 {
            let lines = [line("hit, text get, 1,000 keys", points)];
            push(&plot(
                ["bytes of the value", "net ns"],
                [Scale::Linear; 2],
                &lines,
            )?);
        }
        let table = crate::kernel::table(&results.kernel);
        push(&format_args!("<pre>{}</pre>\n", escaped(&table)));
    }
    if !results.losses.is_empty() {
        let table = loss::table(&results.losses);
        push(&format_args!(
            "<h2>Lost packets</h2>\n<pre>{}</pre>\n",
            escaped(&table)
        ));
    }
    Ok(page)
}

/// The plot that a series is for.
fn plot_of(series: Series, reports: &[&Report]) -> Result<Option<String>> {
    let thousand = |report: &Report, i: usize| {
        let side = report.sides().nth(i);
        side.map_or(0.0, |(_, side)| side.median.rate / 1e3)
    };
    let by = |x: &dyn Fn(&Report) -> f64| -> Vec<Line> {
        let names = reports[0].sides().map(|(name, _)| name);
        let lines = names.enumerate().map(|(i, name)| {
            let point = |report: &&Report| (x(report), thousand(report, i));
            line(name, reports.iter().map(point).collect())
        });
        lines.collect()
    };
    let (axes, scales, lines) = match series {
        Series::Keys => (
            ["keys", "thousand requests/s"],
            [Scale::Log, Scale::Linear],
            by(&|report| report.workload.keys.into()),
        ),
        Series::Values => (
            ["bytes of the value", "thousand requests/s"],
            [Scale::Linear; 2],
            by(&|report| report.workload.value_size as f64),
        ),
        Series::Memory => {
            let mib = |report: &Report| {
                let memory = report.workload.memory.as_deref().unwrap_or_default();
                memory.trim_end_matches("MiB").parse().unwrap_or(0.0)
            };
            let point = |report: &&Report| (mib(report), 100.0 * report.with.hit_ratio);
            let points = reports.iter().map(point).collect();
            let axes = ["MiB", "% hits"];
            (
                axes,
                [Scale::Log, Scale::Linear],
                vec![line("prestack", points)],
            )
        }
        Series::Overview => {
            // The distribution of latencies of the last, the most life-like.
            let Some(report) = reports.last() else {
                return Ok(None);
            };
            let lines = report.sides().map(|(name, side)| {
                let quantiles = side.median.quantiles_us.iter().copied();
                line(
                    name,
                    quantiles.zip(SHARES.map(|share| 100.0 * share)).collect(),
                )
            });
            let axes = ["latency in µs", "% of the requests answered within"];
            (axes, [Scale::Log, Scale::Linear], lines.collect())
        }
        Series::Mixes | Series::Cpus | Series::Tcp => return Ok(None),
    };
    plot(axes, scales, &lines).map(Some)
}

fn line(name: &str, points: Vec<(f64, f64)>) -> Line {
    Line {
        name: name.to_owned(),
        points,
    }
}

/// Draws lines; `y` starts at 0.
fn plot(axes: [&str; 2], scales: [Scale; 2], lines: &[Line]) -> Result<String> {
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    let greatest = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN_POSITIVE, f64::max);
    let last_x = greatest(&mut all().map(|(x, _)| x));
    let first_x = all().map(|(x, _)| x).fold(last_x, f64::min);
    let last_y = 1.1 * greatest(&mut all().map(|(_, y)| y));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root);
        chart.margin(12).x_label_area_size(40).y_label_area_size(60);
        if scales[0] == Scale::Log {
            let x = (first_x.max(f64::MIN_POSITIVE)..last_x * 1.05).log_scale();
            draw(
                chart.build_cartesian_2d(x, 0.0..last_y).map_err(failed)?,
                axes,
                lines,
            )?;
        } else {
            let x = 0.0..last_x * 1.05;
            draw(
                chart.build_cartesian_2d(x, 0.0..last_y).map_err(failed)?,
                axes,
                lines,
            )?;
        }
        root.present().map_err(failed)?;
    }
    Ok(format!("{svg}\n"))
}

fn draw<'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>,
    [x, y]: [&str; 2],
    lines: &[Line],
) -> Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .light_line_style(WHITE)
        .draw()
        .map_err(failed)?;
    for (i, line) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let drawn = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(drawn.point_size(3))
            .map_err(failed)?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .draw()
        .map_err(failed)
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("drawing a plot: {error}")
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_pictures() {
        for x in [Scale::Linear, Scale::Log] {
            let lines = [
                line("one", vec![(1.0, 5.0), (1e6, 7.0)]),
                line("other", vec![(1.0, 2.0), (1e6, 1.0)]),
            ];
            let svg = plot(["keys", "rate"], [x, Scale::Linear], &lines).unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("polyline"), "{svg}");
            assert!(svg.contains("one") && svg.contains("other") && svg.contains("keys"));
        }
    }

    #[test]
    fn text_is_no_markup() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
