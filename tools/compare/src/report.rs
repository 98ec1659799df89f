//! The results as an HTML page: charts, the table, and how each figure was measured.
//!
//! The page is one file. It loads nothing, runs no script, and follows the reader's light or dark
//! setting.

mod chart;
mod dots;
mod figures;
mod page;
mod scale;
mod svg;

use palisade_cluster::LogBackend;

use crate::results::{Phase, Results, Run};
use crate::table::{self, count, decimal, micros};

/// Renders the whole report as an HTML document.
pub fn render_html(results: &Results) -> String {
    let modes = results.modes();
    let title = if modes.is_empty() {
        "Palisade: no run was finished".to_string()
    } else {
        format!("Palisade: {} compared", modes.join(" and "))
    };
    let mut body = summary(results);
    for phase in Phase::ALL {
        body.push_str(&charts(results, phase));
    }
    body.push_str("<h2>How it was measured</h2>\n");
    body.push_str(&page::definitions(&notes()));
    body.push_str("<h2>Settings and machine</h2>\n");
    body.push_str(&page::definitions(&facts(results)));
    body.push_str(&every_run(results));
    page::document(&title, &body)
}

/// Renders the summary: warnings, the table, and the table in words.
fn summary(results: &Results) -> String {
    let mut html = String::new();
    for warning in &results.machine.warnings {
        html.push_str(&page::paragraph("alert", &format!("Warning: {warning}")));
    }
    let rows: Vec<Vec<String>> =
        results.summaries().iter().map(|summary| table::cells(summary).into()).collect();
    let headings = table::HEADINGS.map(|heading| heading.replace('\n', " ").replace(" /", "/"));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    html.push_str(&page::table(&headings, &table::NUMBERS, &rows));
    for line in table::in_words(results) {
        let class = if line.starts_with("CHECK FAILED") { "alert" } else { "words" };
        html.push_str(&page::paragraph(class, &line));
    }
    html
}

/// Renders the charts of one phase. Returns an empty string if the phase did not run.
fn charts(results: &Results, phase: Phase) -> String {
    let typical = figures::typical_runs(results, phase);
    if typical.is_empty() {
        return String::new();
    }
    let (heading, what) = match phase {
        Phase::ClosedLoop => (
            "Closed loop",
            "Every client sends its next operation when its last one is answered: \
             how much the cluster can do.",
        ),
        Phase::OpenLoop => (
            "Open loop",
            "Operations fall due at a fixed rate, answered or not: \
             how long they take at a load users set.",
        ),
        Phase::Kill => (
            "A replica killed under load",
            "One node is killed while the load goes on: how long the others need to go on without \
             it.",
        ),
    };
    let names: Vec<String> =
        typical.iter().map(|(_, run)| format!("{} ({})", run.name, run.mode)).collect();
    let shown = format!("Lines over time show {}.", names.join(" and "));
    let throughput = figures::throughput(results, phase);
    let latency = figures::latency(results, phase);
    let percentiles = figures::percentiles(results, phase);
    let mut html = format!("<section>\n<h2>{heading}</h2>\n");
    html.push_str(&page::paragraph("words", what));
    html.push_str(&page::paragraph("muted", &shown));
    html.push_str("<div class=\"charts\">\n");
    html.push_str(&page::figure("Throughput, operations per second", &throughput.svg()));
    html.push_str(&page::figure("Latency, p50 solid and p99 dashed", &latency.svg()));
    html.push_str(&page::figure("Latency of the whole run", &percentiles.svg()));
    html.push_str("</div>\n</section>\n");
    html
}

fn notes() -> Vec<(&'static str, String)> {
    [
        ("Repeated runs", "Figures in the table and of whole runs are medians over the runs."),
        (
            "Throughput",
            "Operations that succeeded, divided by the time of the run; over time, in buckets of \
             100 ms.",
        ),
        (
            "Latency",
            "From sending an operation to its answer. In an open loop, from the time the operation \
             was due: waiting behind slow ones counts.",
        ),
        (
            "Repair",
            "Raft elects by itself. A chain is repaired by this tool, which knows at once that the \
             node is dead: no failure detector is involved.",
        ),
        ("Gap", "The longest time without a successful put on any one range, around the kill."),
        (
            "CPU",
            "User and system time of all server processes, divided by the operations. Servers and \
             clients share this machine's cores.",
        ),
        (
            "Syncs, entries per sync",
            "Times the servers made their logs durable, all servers together, and the log entries \
             each time covered.",
        ),
        (
            "Check",
            "Every operation is recorded with its start and end, and the recorded history is \
             checked for linearizability. FAILED means a violation was found.",
        ),
    ]
    .map(|(name, note)| (name, note.to_string()))
    .into()
}

fn facts(results: &Results) -> Vec<(&'static str, String)> {
    let (settings, machine) = (&results.settings, &results.machine);
    let version = match &results.commit {
        Some(commit) => format!("{} (commit {commit})", results.tool_version),
        None => results.tool_version.clone(),
    };
    vec![
        ("Version", version),
        ("Nodes", format!("{}, with {} shards each", settings.nodes, settings.shards)),
        ("Clients", settings.clients.to_string()),
        ("Open-loop rate", format!("{} ops/s", count(settings.rate as f64))),
        ("Keys", count(f64::from(settings.keys))),
        ("Value size", format!("{} bytes", count(settings.value_bytes as f64))),
        ("Reads", format!("{} %", settings.read_percent)),
        (
            "Clocks",
            settings.clock_bound_us.map_or("unknown".to_owned(), |bound_us| {
                format!("one for all nodes, trusted to within {bound_us} µs")
            }),
        ),
        (
            "Logs",
            settings.log_backend.map_or("unknown".to_owned(), |backend| match backend {
                LogBackend::Mapped => "mapped".to_owned(),
                LogBackend::Direct => "written past the page cache".to_owned(),
            }),
        ),
        ("Cores", machine.cores.to_string()),
        ("Kernel", machine.kernel.clone()),
        ("File system", machine.file_system.clone()),
        ("Load before the runs", decimal(machine.other_load, 2)),
    ]
}

/// Renders a collapsed table of every run, from which the medians are computed.
fn every_run(results: &Results) -> String {
    const HEADINGS: [&str; 14] = [
        "run",
        "mode",
        "workload",
        "seconds",
        "ops",
        "ops/s",
        "p99",
        "max",
        "errors",
        "not sent",
        "not answered",
        "aborts",
        "retries",
        "check",
    ];
    let row = |run: &Run| {
        vec![
            run.name.clone(),
            run.mode.clone(),
            run.workload.clone(),
            decimal(run.seconds, 1),
            count(run.ops as f64),
            count(run.ops_per_s),
            micros(run.latency_us.p99 as f64),
            micros(run.latency_us.max as f64),
            count(run.errors as f64),
            count(run.unsent as f64),
            count(run.unanswered as f64),
            count(run.aborts as f64),
            count(run.retries as f64),
            format!("{}: {}", run.check.name, run.check.verdict),
        ]
    };
    let rows: Vec<Vec<String>> = results.runs.iter().map(row).collect();
    let table = page::table(&HEADINGS, &(3..11), &rows);
    format!("<details>\n<summary>Every run</summary>\n{table}</details>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;

    #[test]
    fn report_shows_every_phase_and_marks_kill() {
        let html = render_html(&sample::all_phases());
        assert!(html.contains("Palisade: raft and chain compared"));
        assert!(html.contains("node 2 killed"));
        assert_eq!(html.matches("<svg ").count(), 9);
        assert_eq!(html.matches("role=\"img\" aria-label=\"").count(), 9);
        for text in ["#0072B2", "#D55E00", "prefers-color-scheme: dark", "chain 1.12 x raft"] {
            assert!(html.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn report_references_no_external_resources() {
        let html = render_html(&sample::all_phases());
        for text in ["http://", "https://", "<script", "<link", "@import", "url(", "src="] {
            assert!(!html.contains(text), "{text}");
        }
    }

    #[test]
    fn report_without_runs_shows_notice_and_no_charts() {
        let html = render_html(&sample::results(Vec::new()));
        assert!(html.contains("no run was finished"));
        assert!(!html.contains("<svg"));
    }

    #[test]
    fn report_handles_runs_without_measurements() {
        let mut results = sample::all_phases();
        for run in &mut results.runs {
            run.series.clear();
            run.seconds = 0.0;
            run.ops_per_s = f64::NAN;
            run.latency_us.p50 = 0;
        }
        let html = render_html(&results);
        assert!(!html.contains("NaN"));
        assert!(html.contains("nothing was measured"));
    }

    #[test]
    fn report_escapes_text_from_results() {
        let mut results = sample::all_phases();
        let hostile = "<b onload=\"x\">&'".to_string();
        results.machine.warnings.push(hostile.clone());
        results.machine.kernel = hostile.clone();
        results.commit = Some(hostile.clone());
        for run in &mut results.runs {
            run.mode = hostile.clone();
            run.name = hostile.clone();
            run.check.verdict = hostile.clone();
        }
        let html = render_html(&results);
        assert!(!html.contains("<b "));
        assert!(html.contains("&lt;b onload=&quot;x&quot;&gt;&amp;&#39;"));
    }
}
