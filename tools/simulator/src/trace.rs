//! The record of a run: a readable trace, and a hash over its events.

use std::collections::VecDeque;

/// How many lines of a run are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// No lines.
    Off,
    /// The last lines, at most this many.
    Last(usize),
}

#[derive(Debug)]
pub(crate) struct Record {
    trace: Trace,
    lines: VecDeque<String>,
    hash: u64,
    pub(crate) events: u64,
}

impl Record {
    pub(crate) fn new(trace: Trace) -> Self {
        Self { trace, lines: VecDeque::new(), hash: 0, events: 0 }
    }

    /// Records a line, unless the trace is off.
    pub(crate) fn line(&mut self, now_us: u64, line: impl FnOnce() -> String) {
        if let Trace::Last(most) = self.trace {
            if self.lines.len() >= most {
                self.lines.pop_front();
            }
            let (ms, us) = (now_us / 1_000, now_us % 1_000);
            self.lines.push_back(format!("{ms:>7}.{us:03} ms  {}", line()));
        }
    }

    /// Adds a number to the hash.
    pub(crate) fn mix(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x517C_C1B7_2722_0A95);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines).into()
    }
}
