//! Histories as JSON lines: one operation a line, in any order.
//!
//! ```json
//! {"process":3,"start_ns":10,"end_ns":25,"type":"ok","session":"3","ops":[["w","k17",6]]}
//! {"process":4,"start_ns":30,"end_ns":41,"type":"ok","session":"4","ops":[["r","k17",6]]}
//! {"process":4,"start_ns":50,"end_ns":58,"type":"ok","session":"4","ops":[["r","k18",null]]}
//! ```
//!
//! * `process`: the client, a number below 2³².
//! * `start_ns`, `end_ns`: when the request was sent and when its response arrived, in nanoseconds.
//! * `type`: `ok`, `fail` (certainly no effect) or `info` (outcome unknown).
//! * `session`: the process as text, for checkers of session guarantees. Optional, and ignored by
//!   [`read_history`].
//! * `ops`: exactly one operation, `["w", key, value]` or `["r", key, value]`. A key is `k` and its
//!   index in decimal without leading zeros. A value is a number below 2⁶⁴, or `null` for a read of
//!   an absent key and for a read without a response.
//!
//! Other fields and blank lines are skipped. `ops` is a list because the checkers that read this
//! layout take transactions; a register history has one operation in each.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::{Action, Completion, Operation};

/// Why a stored history could not be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// Reading from the input failed.
    #[error("line {line}: cannot be read: {source}")]
    Io {
        /// The line being read, counted from 1.
        line: u64,
        /// The error that the input returned.
        source: io::Error,
    },
    /// The line is not an operation.
    #[error("line {line}: {reason}")]
    Malformed {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with the line.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
enum Kind {
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "w")]
    Write,
}

#[derive(Serialize)]
struct WrittenLine<'a> {
    process: u32,
    start_ns: u64,
    end_ns: u64,
    #[serde(rename = "type")]
    outcome: Completion,
    session: &'a str,
    ops: [(Kind, &'a str, Option<u64>); 1],
}

#[derive(Deserialize)]
struct StoredLine {
    process: u32,
    start_ns: u64,
    end_ns: u64,
    #[serde(rename = "type")]
    outcome: Completion,
    ops: Vec<(Kind, String, Option<u64>)>,
}

/// Writes the operations as JSON lines, in the order given. Does not flush.
///
/// # Errors
///
/// Returns an error if writing to `out` fails.
pub fn write_history(out: &mut impl Write, operations: &[Operation]) -> io::Result<()> {
    let mut text = Vec::new();
    for operation in operations {
        let kind = match operation.action {
            Action::Write(_) => Kind::Write,
            Action::Read(_) => Kind::Read,
        };
        let session = operation.process.to_string();
        let key = format!("k{}", operation.key);
        let line = WrittenLine {
            process: operation.process,
            start_ns: operation.start_ns,
            end_ns: operation.end_ns,
            outcome: operation.outcome,
            session: session.as_str(),
            ops: [(kind, key.as_str(), operation.action.value())],
        };
        // The serializer writes a few bytes at a time. Buffer one line, so that an unbuffered `out`
        // gets one write per operation.
        text.clear();
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
        out.write_all(&text)?;
    }
    Ok(())
}

/// Reads a history written by [`write_history`].
///
/// Checks only the form of each line. [`check`](crate::check) finds contradictory operations.
///
/// # Errors
///
/// Returns the first line that cannot be read or is not an operation, with its number.
pub fn read_history(mut input: impl BufRead) -> Result<Vec<Operation>, HistoryError> {
    let mut operations = Vec::new();
    let mut text = Vec::new();
    let mut line = 0_u64;
    loop {
        line += 1;
        text.clear();
        // Read bytes instead of `lines()`, so that invalid UTF-8 is a malformed line like any
        // other.
        let length = input
            .read_until(b'\n', &mut text)
            .map_err(|source| HistoryError::Io { line, source })?;
        if length == 0 {
            return Ok(operations);
        }
        // Without its newline the content is one line, so the parser's errors are all in line 1.
        let content = text.trim_ascii_end();
        if content.is_empty() {
            continue;
        }
        let operation =
            parse(content).map_err(|reason| HistoryError::Malformed { line, reason })?;
        operations.push(operation);
    }
}

fn parse(content: &[u8]) -> Result<Operation, String> {
    // A derived `Deserialize` also accepts an array of the fields in order. Reject it: no writer
    // produces that form.
    if !content.trim_ascii_start().starts_with(b"{") {
        return Err("not a JSON object".to_owned());
    }
    let stored: StoredLine =
        serde_json::from_slice(content).map_err(|error| json_reason(&error))?;
    let StoredLine { process, start_ns, end_ns, outcome, ops } = stored;
    let [(kind, key, value)] = ops.as_slice() else {
        return Err(format!("expected exactly one operation in \"ops\", found {}", ops.len()));
    };
    let action = match (kind, *value) {
        (Kind::Read, value) => Action::Read(value),
        (Kind::Write, Some(value)) => Action::Write(value),
        (Kind::Write, None) => return Err("a write without a value".to_owned()),
    };
    let key = key_index(key)
        .ok_or_else(|| format!("key {key:?} is not \"k\" followed by an index below 2^32"))?;
    Ok(Operation { process, start_ns, end_ns, key, action, outcome })
}

/// Parses a key in its one canonical spelling. If `k017` were accepted as `k17`, a history that
/// distinguishes them would be checked as if they were one register.
fn key_index(key: &str) -> Option<u32> {
    let digits = key.strip_prefix('k')?;
    let canonical = digits == "0" || !digits.starts_with(['0', '+']);
    if canonical { digits.parse().ok() } else { None }
}

/// Returns the parser's message with its position reduced to the column. The parser gets one line
/// at a time, so its "line 1" would contradict the line number that is reported with the message.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(position.as_str()).unwrap_or(&text);
    format!("column {}: {what}", error.column())
}
