//! The charts of a phase: which runs they show, and how.

use super::chart::{Line, LineChart, Mark, plain, plain_micros};
use super::dots::{DotChart, DotRow};
use super::svg::Stroke;
use crate::results::{Bucket, Phase, Results, Run, Summary};

/// Kills closer than this, in seconds, are drawn as one: they were scheduled for the same time.
const SAME_MOMENT: f64 = 0.25;

/// Returns the chart of operations per second over time, with repeated runs faintly behind the
/// typical run.
pub(super) fn throughput(results: &Results, phase: Phase) -> LineChart {
    let typical = typical_runs(results, phase);
    let mut lines = Vec::new();
    for &(mode, shown) in &typical {
        for run in results.runs_of(phase, &shown.mode) {
            let stroke = if std::ptr::eq(run, shown) { Stroke::Solid } else { Stroke::Faint };
            let points = points(run, |bucket| bucket.ops_per_s);
            lines.push(Line { label: run.mode.clone(), mode, stroke, points });
        }
    }
    let title = format!("{}: throughput over time, operations per second", phase.title());
    LineChart { title, log: false, tick: plain, lines, marks: kills(&typical) }
}

/// Returns the chart of median and 99th percentile latency over time, of each mode's typical run.
pub(super) fn latency(results: &Results, phase: Phase) -> LineChart {
    let typical = typical_runs(results, phase);
    let mut lines = Vec::new();
    for &(mode, run) in &typical {
        let p50 = points(run, |bucket| bucket.p50_us as f64);
        let p99 = points(run, |bucket| bucket.p99_us as f64);
        for (name, stroke, points) in [("p50", Stroke::Solid, p50), ("p99", Stroke::Dashed, p99)] {
            lines.push(Line { label: format!("{} {name}", run.mode), mode, stroke, points });
        }
    }
    let title = format!("{}: latency over time, logarithmic", phase.title());
    LineChart { title, log: true, tick: plain_micros, lines, marks: kills(&typical) }
}

/// Returns the chart of the percentiles of whole runs, as medians over repeated runs.
pub(super) fn percentiles(results: &Results, phase: Phase) -> DotChart {
    let mut summaries = results.summaries();
    summaries.retain(|summary| summary.phase == phase);
    let row = |label: &str, of: fn(&Summary) -> f64| DotRow {
        label: label.to_string(),
        dots: summaries.iter().map(|s| (mode_number(results, &s.mode), of(s))).collect(),
    };
    DotChart {
        title: format!("{}: latency percentiles, logarithmic", phase.title()),
        modes: summaries
            .iter()
            .map(|summary| (mode_number(results, &summary.mode), summary.mode.clone()))
            .collect(),
        rows: vec![
            row("p50", |summary| summary.p50_us),
            row("p99", |summary| summary.p99_us),
            row("p99.9", |summary| summary.p999_us),
        ],
    }
}

/// Returns, for each mode, its number and the run with the median throughput.
pub(super) fn typical_runs(results: &Results, phase: Phase) -> Vec<(usize, &Run)> {
    let mut typical = Vec::new();
    for mode in results.modes() {
        let mut runs = results.runs_of(phase, mode);
        runs.sort_by(|a, b| a.ops_per_s.total_cmp(&b.ops_per_s));
        if let Some(&run) = runs.get(runs.len().saturating_sub(1) / 2) {
            typical.push((mode_number(results, mode), run));
        }
    }
    typical
}

/// Returns the number of a mode's colour and marker. `raft` and `chain` have the same in every
/// report.
fn mode_number(results: &Results, mode: &str) -> usize {
    match mode {
        "raft" => 0,
        "chain" => 1,
        _ => 2 + usize::from(results.modes().iter().position(|known| *known == mode) == Some(1)),
    }
}

fn points(run: &Run, value: fn(&Bucket) -> f64) -> Vec<(f64, f64)> {
    run.series.iter().map(|bucket| (bucket.at_s, value(bucket))).collect()
}

/// Returns one mark if all runs lost the same node at the same moment, otherwise one for each mode.
fn kills(runs: &[(usize, &Run)]) -> Vec<Mark> {
    let kills: Vec<_> =
        runs.iter().filter_map(|(_, run)| Some((run.mode.as_str(), run.killed?))).collect();
    let Some((_, first)) = kills.first() else { return Vec::new() };
    let together = kills
        .iter()
        .all(|(_, kill)| kill.node == first.node && (kill.at_s - first.at_s).abs() <= SAME_MOMENT);
    if together {
        return vec![Mark { at_s: first.at_s, label: format!("node {} killed", first.node) }];
    }
    kills
        .iter()
        .map(|(mode, kill)| Mark {
            at_s: kill.at_s,
            label: format!("node {} killed ({mode})", kill.node),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Kill, sample};

    #[test]
    fn median_run_is_highlighted_and_other_runs_are_faint() {
        let runs = [9000.0, 12_000.0, 10_000.0];
        let runs = runs.map(|ops| sample::run(Phase::ClosedLoop, "raft", ops, 1000));
        let results = sample::results(runs.into());
        assert_eq!(typical_runs(&results, Phase::ClosedLoop)[0].1.ops_per_s, 10_000.0);
        let lines = throughput(&results, Phase::ClosedLoop).lines;
        assert_eq!(lines.iter().filter(|line| line.stroke == Stroke::Faint).count(), 2);
    }

    #[test]
    fn kill_marks_merge_only_for_same_node_and_time() {
        let mut results = sample::all_phases();
        let labels = |results: &Results| -> Vec<String> {
            throughput(results, Phase::Kill).marks.into_iter().map(|mark| mark.label).collect()
        };
        assert_eq!(labels(&results), ["node 2 killed"]);
        for run in results.runs.iter_mut().filter(|run| run.mode == "chain") {
            run.killed = Some(Kill { node: 3, at_s: 1.0 });
        }
        assert_eq!(labels(&results), ["node 2 killed (raft)", "node 3 killed (chain)"]);
        assert!(throughput(&results, Phase::OpenLoop).marks.len() == 1);
    }

    #[test]
    fn mode_colours_are_fixed_for_raft_and_chain() {
        let results = sample::results(vec![sample::run(Phase::Kill, "chain", 1.0, 1)]);
        assert_eq!(mode_number(&results, "raft"), 0);
        assert_eq!(mode_number(&results, "chain"), 1);
        assert_eq!(mode_number(&results, "other"), 2);
    }
}
