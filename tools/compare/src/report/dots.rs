//! A chart with one row per percentile and one dot per mode, to show how far the modes differ.

use super::chart::plain_micros;
use super::scale::Scale;
use super::svg::{self, Anchor, Stroke};
use crate::table::micros;

/// A chart of latencies on a logarithmic axis.
pub(super) struct DotChart {
    pub(super) title: String,
    /// The modes, each with the number of its colour and marker.
    pub(super) modes: Vec<(usize, String)>,
    pub(super) rows: Vec<DotRow>,
}

/// The dots of one percentile.
pub(super) struct DotRow {
    pub(super) label: String,
    /// Number of the mode, and microseconds.
    pub(super) dots: Vec<(usize, f64)>,
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 680.0;
const TOP: f64 = 36.0;
const ROW: f64 = 58.0;

impl DotChart {
    /// Renders the chart as an SVG element.
    pub(super) fn svg(&self) -> String {
        let bottom = TOP + ROW * self.rows.len() as f64;
        let x = Scale::decades(self.rows.iter().flat_map(|row| &row.dots).map(|dot| dot.1));
        let mut body = String::new();
        for &tick in x.ticks() {
            let Some(across) = x.at(tick).map(across) else { continue };
            body.push_str(&svg::line("grid", (across, TOP), (across, bottom)));
            let label = plain_micros(tick);
            body.push_str(&svg::text("muted", Anchor::Middle, (across, bottom + 19.0), &label));
        }
        for (index, row) in self.rows.iter().enumerate() {
            body.push_str(&row.svg(&x, TOP + ROW * (index as f64 + 0.5)));
        }
        body.push_str(&svg::line("axis", (LEFT, bottom), (RIGHT, bottom)));
        let modes = self.modes.iter().map(|(mode, name)| (*mode, Stroke::Solid, name.as_str()));
        body.push_str(&svg::legend((LEFT, 18.0), modes));
        svg::picture(WIDTH, bottom + 32.0, &self.title, &body)
    }
}

impl DotRow {
    fn svg(&self, x: &Scale, y: f64) -> String {
        let mut body = svg::text("ink", Anchor::End, (LEFT - 16.0, y + 4.0), &self.label);
        let placed: Vec<(usize, f64, f64)> = self
            .dots
            .iter()
            .filter_map(|&(mode, us)| Some((mode, us, across(x.at(us)?))))
            .collect();
        let (least, most) = placed
            .iter()
            .fold((RIGHT, LEFT), |(least, most), dot| (dot.2.min(least), dot.2.max(most)));
        if least < most {
            body.push_str(&svg::line("link", (least, y), (most, y)));
        }
        for (mode, us, at) in placed {
            body.push_str(&svg::marker(mode, (at, y)));
            // Alternate the side of the row, because labels of close dots would cover each other.
            let beside = if mode.is_multiple_of(2) { y - 10.0 } else { y + 19.0 };
            body.push_str(&svg::text("ink", Anchor::Middle, (at, beside), &micros(us)));
        }
        body
    }
}

fn across(fraction: f64) -> f64 {
    LEFT + fraction * (RIGHT - LEFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(dots: Vec<(usize, f64)>) -> String {
        let modes = vec![(0, "raft".to_string()), (1, "chain".to_string())];
        let rows = vec![DotRow { label: "p99".to_string(), dots }];
        DotChart { title: "latency".to_string(), modes, rows }.svg()
    }

    #[test]
    fn dots_are_labelled_with_their_values() {
        let svg = chart(vec![(0, 1230.0), (1, 45_600.0)]);
        assert!(svg.contains("1.23 ms") && svg.contains("45.6 ms"), "{svg}");
        assert!(svg.contains("<circle") && svg.contains("<polygon"), "{svg}");
    }

    #[test]
    fn dots_with_unplottable_values_are_omitted() {
        for dots in [vec![], vec![(0, 0.0), (1, f64::NAN)], vec![(0, 5.0)]] {
            let svg = chart(dots);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
