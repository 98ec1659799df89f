//! Charts of lines over time.

use super::scale::Scale;
use super::svg::{self, Anchor, Stroke};

/// A chart of lines over the seconds of a run.
pub(super) struct LineChart {
    pub(super) title: String,
    /// True if the axis of the values is logarithmic.
    pub(super) log: bool,
    /// Formats the value at a tick, with its unit.
    pub(super) tick: fn(f64) -> String,
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<Mark>,
}

/// One line of a chart.
pub(super) struct Line {
    pub(super) label: String,
    pub(super) mode: usize,
    pub(super) stroke: Stroke,
    /// Seconds and values. The line is interrupted at a value that the axis cannot show.
    pub(super) points: Vec<(f64, f64)>,
}

/// A moment that is marked with a vertical line.
pub(super) struct Mark {
    pub(super) at_s: f64,
    pub(super) label: String,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 704.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 258.0;

/// Number of markers along a line: enough to identify it, few enough not to cover it.
const MARKERS: usize = 10;

impl LineChart {
    /// Renders the chart as an SVG element.
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let times = points().map(|point| point.0).chain(self.marks.iter().map(|mark| mark.at_s));
        let x = Scale::up_to(times);
        let values = points().map(|point| point.1);
        let y = if self.log { Scale::decades(values) } else { Scale::from_zero(values) };

        let mut body = self.axes(&x, &y);
        let mut drawn = String::new();
        // Later elements cover earlier ones, so faint lines come first.
        for faint in [true, false] {
            for line in self.lines.iter().filter(|line| (line.stroke == Stroke::Faint) == faint) {
                drawn.push_str(&line.svg(&x, &y));
            }
        }
        if drawn.is_empty() {
            let middle = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
            drawn = svg::text("muted", Anchor::Middle, middle, "nothing was measured");
        }
        body.push_str(&drawn);
        for (row, mark) in self.marks.iter().enumerate() {
            body.push_str(&mark.svg(&x, row));
        }
        let entries = self.lines.iter().filter(|line| line.stroke != Stroke::Faint);
        body.push_str(&svg::legend(
            (LEFT, 18.0),
            entries.map(|line| (line.mode, line.stroke, line.label.as_str())),
        ));
        svg::picture(WIDTH, HEIGHT, &self.title, &body)
    }

    fn axes(&self, x: &Scale, y: &Scale) -> String {
        let mut body = String::new();
        for &tick in y.ticks() {
            let Some(height) = y.at(tick).map(down) else { continue };
            body.push_str(&svg::line("grid", (LEFT, height), (RIGHT, height)));
            let label = (self.tick)(tick);
            body.push_str(&svg::text("muted", Anchor::End, (LEFT - 8.0, height + 4.0), &label));
        }
        for &tick in x.ticks() {
            let Some(across) = x.at(tick).map(across) else { continue };
            body.push_str(&svg::line("axis", (across, BOTTOM), (across, BOTTOM + 5.0)));
            let label = plain(tick);
            body.push_str(&svg::text("muted", Anchor::Middle, (across, BOTTOM + 19.0), &label));
        }
        body.push_str(&svg::line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM)));
        let below = ((LEFT + RIGHT) / 2.0, HEIGHT - 6.0);
        body.push_str(&svg::text("muted", Anchor::Middle, below, "seconds since the run began"));
        body
    }
}

impl Line {
    fn svg(&self, x: &Scale, y: &Scale) -> String {
        let placed: Vec<Option<(f64, f64)>> = self
            .points
            .iter()
            .map(|&(time, value)| Some((across(x.at(time)?), down(y.at(value)?))))
            .collect();
        let every = (placed.len() / MARKERS).max(1);
        // Modes have their markers at different points, so that those of close lines do not
        // coincide.
        let start = self.mode * every / 2 % every;
        let mut body = String::new();
        let mut index = 0;
        for piece in placed.split(Option::is_none) {
            let points = || piece.iter().flatten().copied();
            if piece.len() > 1 {
                body.push_str(&svg::polyline(self.mode, self.stroke, points()));
            }
            for (offset, point) in points().enumerate() {
                // A single point draws no line, so it always gets a marker.
                let regular = (index + offset) % every == start && self.stroke != Stroke::Faint;
                if regular || piece.len() == 1 {
                    body.push_str(&svg::marker(self.mode, point));
                }
            }
            index += piece.len() + 1;
        }
        body
    }
}

impl Mark {
    /// Renders the mark. The label of each row is one line of text below that of the row before.
    fn svg(&self, x: &Scale, row: usize) -> String {
        let Some(fraction) = x.at(self.at_s) else { return String::new() };
        let at = across(fraction);
        let height = TOP + 12.0 + 15.0 * row as f64;
        let (anchor, beside) =
            if fraction > 0.7 { (Anchor::End, at - 6.0) } else { (Anchor::Start, at + 6.0) };
        let mut body = svg::line("mark", (at, TOP), (at, BOTTOM));
        body.push_str(&svg::text("mark-label", anchor, (beside, height), &self.label));
        body
    }
}

fn across(fraction: f64) -> f64 {
    LEFT + fraction * (RIGHT - LEFT)
}

fn down(fraction: f64) -> f64 {
    BOTTOM - fraction * (BOTTOM - TOP)
}

/// Formats the value of a tick without a unit or trailing zeros.
pub(super) fn plain(value: f64) -> String {
    let text = crate::table::decimal(value, 3);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Formats the microseconds of a tick in the largest unit in which the value is at least 1.
pub(super) fn plain_micros(us: f64) -> String {
    if us < 999.5 {
        format!("{} µs", plain(us))
    } else if us < 999_500.0 {
        format!("{} ms", plain(us / 1e3))
    } else {
        format!("{} s", plain(us / 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(log: bool, points: &[(f64, f64)]) -> String {
        let line = Line {
            label: "raft".to_string(),
            mode: 0,
            stroke: Stroke::Solid,
            points: points.to_vec(),
        };
        let mark = Mark { at_s: 0.5, label: "node 2 killed".to_string() };
        let (title, lines, marks) = ("a <b> chart".to_string(), vec![line], vec![mark]);
        LineChart { title, log, tick: plain, lines, marks }.svg()
    }

    #[test]
    fn chart_never_panics_or_draws_non_finite_values() {
        let inputs: [&[(f64, f64)]; 5] = [
            &[],
            &[(0.0, 0.0)],
            &[(0.0, 5.0)],
            &[(f64::NAN, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY)],
            &[(0.0, 1.0), (1.0, 0.0), (2.0, -3.0), (3.0, 1e12)],
        ];
        for input in inputs {
            for log in [false, true] {
                let svg = chart(log, input);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{input:?}: {svg}");
                assert!(svg.contains("node 2 killed"));
            }
        }
        assert!(chart(true, &[(0.0, 0.0)]).contains("nothing was measured"));
    }

    #[test]
    fn chart_line_is_interrupted_at_zero_on_log_scale() {
        let points = [(0.0, 1.0), (1.0, 2.0), (2.0, 0.0), (3.0, 1.0), (4.0, 2.0)];
        // One polyline more than the pieces of the line: the legend's sample.
        assert_eq!(chart(true, &points).matches("<polyline").count(), 3);
        assert_eq!(chart(false, &points).matches("<polyline").count(), 2);
    }

    #[test]
    fn chart_title_is_escaped_and_set_as_aria_label() {
        let svg = chart(false, &[(0.0, 1.0)]);
        assert!(svg.contains(r#"aria-label="a &lt;b&gt; chart"><title>a &lt;b&gt; chart</title>"#));
    }

    #[test]
    fn tick_labels_omit_trailing_zeros() {
        for (value, expected) in [(0.0, "0"), (0.2, "0.2"), (100.0, "100"), (20_000.0, "20,000")] {
            assert_eq!(plain(value), expected);
        }
        for (us, expected) in [(50.0, "50 µs"), (1e3, "1 ms"), (2e5, "200 ms"), (1e7, "10 s")] {
            assert_eq!(plain_micros(us), expected);
        }
    }
}
