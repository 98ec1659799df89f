//! The results as a table for the terminal, and in words.

use std::ops::Range;

use comfy_table::{CellAlignment, ContentLineStyle, LineStyle, Table, TableStyle};

use crate::results::{Phase, Results, Summary};

/// The headings of the table. Line breaks keep the whole table within 100 columns.
pub(crate) const HEADINGS: [&str; 11] = [
    "phase",
    "mode",
    "ops/s",
    "p50",
    "p99",
    "p99.9",
    "gap at\nkill",
    "server\nCPU/op",
    "syncs/s",
    "entries\n/sync",
    "check",
];

/// The columns that hold numbers.
pub(crate) const NUMBERS: Range<usize> = 2..10;

/// Relative difference below which two figures count as even. It is more often due to chance than
/// to the mode.
const EVEN: f64 = 0.03;

const STYLE: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none().junction(' '))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .content_lines(ContentLineStyle::none().junction(' '));

/// Renders the table of all phases and modes, followed by the comparison of the modes in words.
pub fn render(results: &Results) -> String {
    let summaries = results.summaries();
    if summaries.is_empty() {
        return "no run was finished\n".to_string();
    }
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(HEADINGS);
    let mut last_phase = None;
    for summary in &summaries {
        let mut row = cells(summary);
        if last_phase.replace(summary.phase) == Some(summary.phase) {
            row[0].clear();
        }
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if NUMBERS.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt();
    text.push_str("\n\n");
    for line in in_words(results) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// Returns one row of the table, in the order of [`HEADINGS`].
pub(crate) fn cells(summary: &Summary) -> [String; 11] {
    let failed = summary.violations.len();
    [
        summary.phase.title().to_string(),
        summary.mode.clone(),
        count(summary.ops_per_s),
        micros(summary.p50_us),
        micros(summary.p99_us),
        micros(summary.p999_us),
        summary.gap_ms.map_or_else(|| "–".to_string(), |ms| micros(ms * 1000.0)),
        micros(summary.server_cpu_us_per_op),
        count(summary.syncs_per_s),
        decimal(summary.entries_per_sync, 1),
        if failed == 0 { "ok".to_string() } else { "FAILED".to_string() },
    ]
}

/// Returns the findings, one sentence each: failed checks first, then loads that the cluster could
/// not keep up with, then comparisons of the modes.
pub(crate) fn in_words(results: &Results) -> Vec<String> {
    let summaries = results.summaries();
    let mut lines: Vec<String> = summaries
        .iter()
        .flat_map(|summary| &summary.violations)
        .map(|violation| format!("CHECK FAILED: {violation}"))
        .collect();
    lines.extend(summaries.iter().filter_map(behind));
    for phase in Phase::ALL {
        let mut modes = summaries.iter().filter(|summary| summary.phase == phase);
        if let Some(base) = modes.next() {
            lines.extend(modes.filter_map(|other| against(base, other)));
        }
    }
    if summaries.iter().any(|summary| summary.runs < 3) {
        lines.push("Fewer than three runs of each: small differences may be chance.".to_string());
    }
    lines
}

/// A figure by which two modes are compared.
struct Metric {
    name: &'static str,
    higher_is_better: bool,
    of: fn(&Summary) -> Option<f64>,
}

const THROUGHPUT: Metric =
    Metric { name: "throughput", higher_is_better: true, of: |s| Some(s.ops_per_s) };
const P50: Metric = Metric { name: "p50", higher_is_better: false, of: |s| Some(s.p50_us) };
const P99: Metric = Metric { name: "p99", higher_is_better: false, of: |s| Some(s.p99_us) };
const P999: Metric = Metric { name: "p99.9", higher_is_better: false, of: |s| Some(s.p999_us) };
const GAP: Metric = Metric { name: "gap", higher_is_better: false, of: |s| s.gap_ms };
const CPU: Metric =
    Metric { name: "CPU/op", higher_is_better: false, of: |s| Some(s.server_cpu_us_per_op) };

/// Returns the figures that a phase is meant to measure.
fn metrics(phase: Phase) -> [Metric; 3] {
    match phase {
        Phase::ClosedLoop => [THROUGHPUT, P99, CPU],
        Phase::OpenLoop => [P50, P99, P999],
        Phase::Kill => [GAP, THROUGHPUT, P99],
    }
}

/// Compares `other` with `base`, e.g. "closed loop: chain 1.12 x raft's throughput (better)".
fn against(base: &Summary, other: &Summary) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for metric in metrics(base.phase) {
        let (Some(from), Some(to)) = ((metric.of)(base), (metric.of)(other)) else { continue };
        let ratio = to / from;
        if !ratio.is_finite() {
            continue;
        }
        let verdict = if (ratio - 1.0).abs() < EVEN {
            "about even"
        } else if (ratio > 1.0) == metric.higher_is_better {
            "better"
        } else {
            "worse"
        };
        let whose = if parts.is_empty() { format!("{}'s", base.mode) } else { "its".to_string() };
        parts.push(format!("{ratio:.2} x {whose} {} ({verdict})", metric.name));
    }
    let title = base.phase.title();
    (!parts.is_empty()).then(|| format!("{title}: {} {}", other.mode, parts.join(", ")))
}

/// Returns a sentence if the cluster could not keep up with the rate of an open loop. Its latency
/// is then that of a growing queue.
fn behind(summary: &Summary) -> Option<String> {
    let rate = summary.rate.filter(|_| summary.phase == Phase::OpenLoop)?;
    let (title, mode) = (summary.phase.title(), &summary.mode);
    (summary.ops_per_s < rate as f64 * (1.0 - EVEN)).then(|| {
        let done = count(summary.ops_per_s);
        format!("{title}: {mode} fell behind the load: {done} of {} ops/s", count(rate as f64))
    })
}

/// Formats microseconds as µs, ms or s, with three significant digits.
pub(crate) fn micros(us: f64) -> String {
    let (value, unit) = if us < 999.5 {
        (us, "µs")
    } else if us < 999_500.0 {
        (us / 1e3, "ms")
    } else {
        (us / 1e6, "s")
    };
    let places = match value {
        _ if !value.is_finite() => return "–".to_string(),
        _ if value >= 99.95 || value == 0.0 => 0,
        _ if value >= 9.995 => 1,
        _ => 2,
    };
    format!("{} {unit}", decimal(value, places))
}

/// Formats a whole number with thousands separators.
pub(crate) fn count(value: f64) -> String {
    decimal(value, 0)
}

/// Formats a number with thousands separators, or as a dash if it is not finite.
pub(crate) fn decimal(value: f64, places: usize) -> String {
    if !value.is_finite() {
        return "–".to_string();
    }
    let text = format!("{value:.places$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::with_capacity(text.len() + whole.len() / 3);
    for (index, digit) in whole.chars().enumerate() {
        let before_group = (whole.len() - index).is_multiple_of(3);
        if before_group && grouped.ends_with(|last: char| last.is_ascii_digit()) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    #[test]
    fn table_has_row_per_phase_and_mode() {
        let text = render(&sample::all_phases());
        for expected in ["closed loop", "open loop", "kill", "raft", "chain"] {
            assert!(text.contains(expected), "{expected} is missing:\n{text}");
        }
        for figure in ["10,000", "11,200", "1.00 ms", "4.00 ms", "340 ms", "41.5 µs", "6.7", "–"]
        {
            assert!(text.contains(figure), "{figure} is missing:\n{text}");
        }
    }

    #[test]
    fn table_fits_100_columns() {
        let mut results = sample::all_phases();
        for run in &mut results.runs {
            run.ops_per_s = 123_456.0;
            run.latency_us.p999 = 1_234_567;
            run.log_syncs = 250_000;
            run.check.verdict = "x".repeat(200);
        }
        let text = render(&results);
        let table = text.split("\n\n").next().unwrap();
        assert!(table.lines().all(|line| line.chars().count() <= 100), "too wide:\n{text}");
    }

    #[test]
    fn summary_text_states_ratios_of_medians() {
        let words = in_words(&sample::all_phases()).join("\n");
        let closed =
            "closed loop: chain 1.12 x raft's throughput (better), 0.75 x its p99 (better)";
        assert!(words.contains(closed), "{words}");
        assert!(words.contains("kill: chain 1.00 x raft's gap (about even)"), "{words}");
    }

    #[test]
    fn summary_text_starts_with_failed_check() {
        let mut results = sample::all_phases();
        results.runs[1].check.verdict = "key 7 read a value never written".to_string();
        let words = in_words(&results);
        assert!(words[0].starts_with("CHECK FAILED: closed loop 1 (chain)"), "{words:?}");
        assert!(render(&results).contains("FAILED"));
    }

    #[test]
    fn summary_text_names_mode_that_falls_behind_load() {
        let results = sample::results(vec![sample::run(Phase::OpenLoop, "raft", 8000.0, 9000)]);
        let words = in_words(&results);
        assert_eq!(words[0], "open loop: raft fell behind the load: 8,000 of 10,000 ops/s");
    }

    #[test]
    fn table_renders_single_mode_and_empty_results() {
        let mut run = sample::run(Phase::ClosedLoop, "raft", 0.0, 0);
        run.seconds = 0.0;
        run.entries_per_sync = f64::NAN;
        assert!(render(&sample::results(vec![run])).contains("raft"));
        assert_eq!(render(&sample::results(Vec::new())), "no run was finished\n");
    }

    #[test]
    fn numbers_are_formatted_with_units_and_separators() {
        let table = [(0.0, "0 µs"), (7.0, "7.00 µs"), (999.0, "999 µs"), (999.7, "1.00 ms")];
        for (us, expected) in table.into_iter().chain([(45_600.0, "45.6 ms"), (2.5e6, "2.50 s")]) {
            assert_eq!(micros(us), expected);
        }
        let table = [(0.0, "0"), (999.0, "999"), (1e3, "1,000"), (-123_456.0, "-123,456")];
        for (value, expected) in
            table.into_iter().chain([(f64::NAN, "–"), (1_234_567.0, "1,234,567")])
        {
            assert_eq!(count(value), expected);
        }
    }
}
