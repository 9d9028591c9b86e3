//! The results in sections, for every way in which they are shown.

use crate::bench::Results;
use crate::kernel::{self, hit_rate};
use crate::loss;
use crate::open_loop;
use crate::outcome::SHARES;
use crate::plot::{Line, Plot, Scale};
use crate::report::{self, Report};
use crate::section::Section;
use crate::suite::Series;

/// All that was measured.
pub(crate) fn of(results: &Results) -> Vec<Section> {
    let mut sections = Vec::new();
    for series in Series::ALL {
        let reports = results.comparisons.iter();
        let reports: Vec<&Report> = reports.filter(|report| report.series == series).collect();
        let Some(first) = reports.first() else {
            continue;
        };
        sections.push(Section {
            name: series.name(),
            title: series.title(),
            setting: first.setting.clone(),
            plot: plot(series, &reports),
            table: match series {
                Series::Passing => report::passing_table(&reports),
                _ => report::table(&reports),
            },
        });
    }
    sections.extend(results.kernel.iter().flat_map(kernel::sections));
    if !results.hit_rates.is_empty() {
        sections.push(hit_rate::section(&results.hit_rates));
    }
    if !results.overload.is_empty() {
        sections.extend(open_loop::sections(&results.overload));
    }
    if !results.losses.is_empty() {
        sections.push(Section {
            name: "loss",
            title: "Lost packets",
            setting: String::new(),
            plot: None,
            table: loss::table(&results.losses),
        });
    }
    sections
}

/// The plot that a series is for.
fn plot(series: Series, reports: &[&Report]) -> Option<Plot> {
    let by = |x: &dyn Fn(&Report) -> f64| -> Vec<Line> {
        let names = reports[0].sides().map(|(name, _)| name.to_owned());
        let lines = names.enumerate().map(|(i, name)| {
            let rate = |report: &Report| {
                let side = report.sides().nth(i);
                side.map_or(0.0, |(_, side)| side.median.rate / 1e3)
            };
            let point = |report: &&Report| (x(report), rate(report));
            Line {
                name,
                points: reports.iter().map(point).collect(),
            }
        });
        lines.collect()
    };
    let (axes, scale, lines) = match series {
        Series::Keys => {
            let lines = by(&|report| report.workload.keys.into());
            (["keys", "thousand requests/s"], Scale::Log, lines)
        }
        Series::Values => {
            let lines = by(&|report| report.workload.value_size as f64);
            let axes = ["bytes of the value", "thousand requests/s"];
            (axes, Scale::Linear, lines)
        }
        Series::Overview => {
            // The distribution of latencies of the last, the most life-like.
            let lines = reports.last()?.sides().map(|(name, side)| {
                let quantiles = side.median.quantiles_us.iter().copied();
                Line {
                    name: name.to_owned(),
                    points: quantiles.zip(SHARES.map(|share| 100.0 * share)).collect(),
                }
            });
            let axes = ["latency in µs", "% of the requests answered within"];
            (axes, Scale::Log, lines.collect())
        }
        Series::Mixes | Series::Cpus | Series::Tcp | Series::TcpHits | Series::Passing => {
            return None;
        }
    };
    Some(Plot { axes, scale, lines })
}
