//! The SVG elements of the charts. The style sheet sets the colours, and a shape names only its
//! mode, so that the page can follow the reader's light or dark setting.

use super::page::escape;

/// The part of a text that is at its position.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// The style of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stroke {
    Solid,
    Dashed,
    /// In the background, without regular markers and not in the legend.
    Faint,
}

impl Stroke {
    fn class(self) -> &'static str {
        match self {
            Stroke::Solid => "solid",
            Stroke::Dashed => "dashed",
            Stroke::Faint => "faint",
        }
    }
}

/// Renders a whole picture, with a title for screen readers.
pub(super) fn picture(width: f64, height: f64, title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}"><title>{title}</title>{body}</svg>"#
    )
}

/// Renders a straight line.
pub(super) fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!(r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#)
}

/// Renders a line through points, in the colour of a mode.
pub(super) fn polyline(
    mode: usize,
    stroke: Stroke,
    points: impl Iterator<Item = (f64, f64)>,
) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let (class, points) = (stroke.class(), points.join(" "));
    format!(r#"<polyline class="m{mode} {class}" points="{points}"/>"#)
}

/// Renders a text. `content` is escaped.
pub(super) fn text(class: &str, anchor: Anchor, (x, y): (f64, f64), content: &str) -> String {
    let (anchor, content) = (anchor.name(), escape(content));
    format!(
        r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{content}</text>"#
    )
}

/// Renders the marker of a mode. Modes differ in shape as well as in colour.
pub(super) fn marker(mode: usize, (x, y): (f64, f64)) -> String {
    const SIZE: f64 = 4.0;
    let corners: &[(f64, f64)] = match mode {
        0 => return format!(r#"<circle class="m0 marker" cx="{x:.1}" cy="{y:.1}" r="{SIZE}"/>"#),
        1 => &[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
        2 => &[(0.0, -1.2), (1.2, 1.0), (-1.2, 1.0)],
        _ => &[(0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)],
    };
    let corners: Vec<String> = corners
        .iter()
        .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * SIZE, y + dy * SIZE))
        .collect();
    format!(r#"<polygon class="m{mode} marker" points="{}"/>"#, corners.join(" "))
}

/// Renders the legend, which names each stroke and marker, from left to right.
pub(super) fn legend<'a>(
    (x, y): (f64, f64),
    entries: impl Iterator<Item = (usize, Stroke, &'a str)>,
) -> String {
    // The width of a text is not known here. This is wide enough for the page's font.
    const CHARACTER: f64 = 7.0;
    const SAMPLE: f64 = 32.0;
    let mut body = String::new();
    let mut left = x;
    for (mode, stroke, label) in entries {
        let ends = [(left, y - 4.0), (left + SAMPLE, y - 4.0)];
        body.push_str(&polyline(mode, stroke, ends.into_iter()));
        body.push_str(&marker(mode, (left + SAMPLE / 2.0, y - 4.0)));
        body.push_str(&text("ink", Anchor::Start, (left + SAMPLE + 6.0, y), label));
        left += SAMPLE + 26.0 + label.chars().count() as f64 * CHARACTER;
    }
    body
}
