//! Histories as JSON lines: one operation a line, in any order.
//!
//! ```json
//! {"process":3,"start_ns":10,"end_ns":25,"type":"ok","session":"3","ops":[["w","k17",6]]}
//! {"process":4,"start_ns":30,"end_ns":41,"type":"ok","session":"4","ops":[["r","k17",6]]}
//! {"process":4,"start_ns":50,"end_ns":58,"type":"ok","session":"4","ops":[["r","k18",null]]}
//! ```
//!
//! * `process`: the client, a number below 2³².
//! * `start_ns`, `end_ns`: when the request left and when its answer came, in nanoseconds.
//! * `type`: `ok`, `fail` (certainly no effect) or `info` (outcome unknown).
//! * `session`: the process as text, for checkers of session guarantees. Not read back, and may
//!   be missing.
//! * `ops`: exactly one operation, `["w", key, value]` or `["r", key, value]`. A key is `k` and its
//!   index in decimal without leading zeros. A value is a number below 2⁶⁴; a read of an absent key
//!   has `null`, and so has a read that got no answer.
//!
//! Other fields are skipped, and so are blank lines. `ops` is a list because the checkers that read
//! this layout take transactions; a register history has one operation in each.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::{Action, Operation, Outcome};

/// Why a stored history could not be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The input itself failed.
    #[error("line {line}: cannot be read: {source}")]
    Io {
        /// The line being read, counted from 1.
        line: u64,
        /// The input's own error.
        source: io::Error,
    },
    /// The line is not an operation.
    #[error("line {line}: {reason}")]
    Malformed {
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
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
    outcome: Outcome,
    session: &'a str,
    ops: [(Kind, &'a str, Option<u64>); 1],
}

#[derive(Deserialize)]
struct StoredLine {
    process: u32,
    start_ns: u64,
    end_ns: u64,
    #[serde(rename = "type")]
    outcome: Outcome,
    ops: Vec<(Kind, String, Option<u64>)>,
}

/// Writes the operations as JSON lines, in the order given. Does not flush.
///
/// # Errors
///
/// Those of `out`.
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
        // The serializer emits a few bytes at a time: gather a line, so that an unbuffered `out`
        // sees one write for each operation.
        text.clear();
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
        out.write_all(&text)?;
    }
    Ok(())
}

/// Reads a history written by [`write_history`].
///
/// Only the form is judged here: a history that contradicts itself is for [`check`](crate::check).
///
/// # Errors
///
/// The first line that cannot be read or is not an operation, with its number.
pub fn read_history(mut input: impl BufRead) -> Result<Vec<Operation>, HistoryError> {
    let mut operations = Vec::new();
    let mut text = Vec::new();
    let mut line = 0_u64;
    loop {
        line += 1;
        text.clear();
        // Bytes, not `lines()`: text that is not UTF-8 is then a malformed line like any other.
        let length = input
            .read_until(b'\n', &mut text)
            .map_err(|source| HistoryError::Io { line, source })?;
        if length == 0 {
            return Ok(operations);
        }
        // Without its newline the line is the only one that the parser sees.
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
    // Derived readers also take a list of the fields in order, which nobody writes on purpose.
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

/// One index has one spelling: were `k017` accepted as `k17`, a history that tells them apart would
/// be checked as if they were one register.
fn key_index(key: &str) -> Option<u32> {
    let digits = key.strip_prefix('k')?;
    let canonical = digits == "0" || !digits.starts_with(['0', '+']);
    if canonical { digits.parse().ok() } else { None }
}

/// The parser counts lines within what it was given, which is always one: leaving its "line 1" in
/// the text would contradict the number reported beside it.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(position.as_str()).unwrap_or(&text);
    format!("column {}: {what}", error.column())
}
