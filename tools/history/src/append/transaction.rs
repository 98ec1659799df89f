//! Recorded transactions over lists.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Completion;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Appended an element to the key's list.
    Append {
        /// The index of the key.
        key: u32,
        /// The element. No other step of the history appends it to this key.
        element: u64,
    },
    /// Read the key's list, including the transaction's own appends before this step.
    Read {
        /// The index of the key.
        key: u32,
        /// The list that was read.
        list: Vec<u64>,
    },
}

/// One recorded transaction over lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// The client that issued the transaction.
    pub process: u32,
    /// When it began, in nanoseconds.
    pub start_ns: u64,
    /// When the client received the response or stopped waiting for it, in nanoseconds.
    pub end_ns: u64,
    /// Its steps, in order. Reads are ignored unless the outcome is [`Completion::Ok`].
    pub steps: Vec<Step>,
    /// The outcome, as far as the client knows.
    pub outcome: Completion,
}

impl Transaction {
    pub(super) fn appends(&self) -> impl Iterator<Item = (u32, u64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append { key, element } => Some((*key, *element)),
            Step::Read { .. } => None,
        })
    }

    pub(super) fn reads(&self) -> impl Iterator<Item = (usize, u32, &[u64])> {
        // A transaction that is not known to have committed may have aborted because of its reads.
        let counts = self.outcome == Completion::Ok;
        self.steps.iter().enumerate().filter(move |_| counts).filter_map(|(at, step)| match step {
            Step::Append { .. } => None,
            Step::Read { key, list } => Some((at, *key, &list[..])),
        })
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} [{}, {} ns, ", self.process, self.start_ns, self.end_ns)?;
        write!(f, "{:?}]:", self.outcome)?;
        for step in &self.steps {
            match step {
                Step::Append { key, element } => write!(f, " append {element} to k{key};")?,
                Step::Read { key, list } => match &list[..] {
                    [.., last] => write!(f, " k{key} is {} long, last {last};", list.len())?,
                    [] => write!(f, " k{key} is empty;")?,
                },
            }
        }
        Ok(())
    }
}

/// Why one transaction must come before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It appended the element before the other's to this key (`ww`).
    Appended(u32),
    /// It appended the last element that the other read of this key (`wr`).
    Read(u32),
    /// It read this key without the other's append (`rw`).
    Unseen(u32),
    /// It ended before the other started (`rt`).
    RealTime,
}
