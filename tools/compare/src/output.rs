//! Checks the recorded histories, and writes results and histories to files.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use palisade_history::Operation;
use thiserror::Error;

use crate::{
    report::render_html,
    results::{Results, Run},
    trial::Finished,
};

/// A file or directory could not be written. The message names it and the cause.
#[derive(Debug, Error)]
#[error("cannot write {path}: {source}", path = path.display())]
pub struct OutputError {
    /// The file or directory.
    pub path: PathBuf,
    /// The error that the kernel returned.
    pub source: io::Error,
}

/// Checks the history of every run for linearizability, and stores the verdict in the run.
pub fn check_histories(runs: &mut [Run], finished: &[Finished]) {
    for (run, finished) in runs.iter_mut().zip(finished) {
        run.check.verdict = match palisade_history::check(&finished.history) {
            Ok(_) => "ok".to_owned(),
            Err(violation) => violation.to_string(),
        };
    }
}

/// Writes the histories, `results.json` and `report.html` to a directory, which is created if
/// needed. Stores the file name of each history in its run.
///
/// # Errors
///
/// Returns the first file or directory that cannot be written.
pub fn write_all(
    dir: &Path,
    results: &mut Results,
    finished: &[Finished],
) -> Result<(), OutputError> {
    fs::create_dir_all(dir).map_err(failed(dir))?;
    for (at, (run, finished)) in results.runs.iter_mut().zip(finished).enumerate() {
        let name = format!("history-{}-{}.jsonl", at + 1, run.mode);
        write_history_file(&dir.join(&name), &finished.history)?;
        run.history = Some(name);
    }
    write_results(&dir.join("results.json"), results)?;
    let path = dir.join("report.html");
    fs::write(&path, render_html(results)).map_err(failed(&path))
}

/// Writes results as JSON.
///
/// # Errors
///
/// Returns an error if the file cannot be written.
pub fn write_results(path: &Path, results: &Results) -> Result<(), OutputError> {
    let json = serde_json::to_string_pretty(results).expect("results always encode");
    fs::write(path, json + "\n").map_err(failed(path))
}

/// Writes a history as JSON lines.
///
/// # Errors
///
/// Returns an error if the file cannot be written.
pub fn write_history_file(path: &Path, history: &[Operation]) -> Result<(), OutputError> {
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        palisade_history::write_history(&mut out, history)?;
        out.flush()
    };
    write().map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OutputError {
    let path = path.to_owned();
    move |source| OutputError { path, source }
}
