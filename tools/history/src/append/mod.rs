//! Decides whether a history of transactions over lists is strictly serializable.
//!
//! # The problem
//!
//! A history of transactions over many keys is strictly serializable if the transactions have a
//! total order in which each returns what it returned, and which agrees with real time: a
//! transaction that ended before another started comes first.
//!
//! # The naive way
//!
//! Try all orders. For registers, whose values do not show the values that they replaced, nothing
//! essentially better is known: the problem is NP-complete (Papadimitriou 1979). Checking an
//! invariant instead, such as the total of a range of accounts, shows little.
//!
//! # The algorithm
//!
//! As in Elle (Kingsbury & Alvaro, VLDB 2020, §4), each key holds a list, a write appends to it,
//! and no element is appended to a key twice. So a read shows every append before it, in order. The
//! longest list read of a key is the order of its versions, and every other list read must be a
//! prefix of it. This gives a graph, whose edges lead from a transaction to one that must come
//! after it:
//!
//! * `ww`: from the transaction that appended an element to the one that appended the next element.
//! * `wr`: from the transaction that appended the last element of a list to one that read the list.
//! * `rw`: from a transaction that read a list to the one that appended the first element not in
//!   it.
//! * `rt`: from a transaction that ended before another started to that one. A chain of moments,
//!   one per end, represents all these pairs, so these edges are linear in the number of
//!   transactions.
//!
//! An order exists exactly if the graph has no cycle; a short cycle is reported. In addition:
//!
//! * A transaction sees its own appends.
//! * No transaction sees an append of a failed transaction.
//! * No transaction sees only some of another transaction's appends to one key.
//!
//! # Unknown outcomes
//!
//! A transaction of unknown outcome took effect, at any time after its start, if one of its
//! elements was read. Otherwise it is ignored. Appends that were not read come after all appends
//! that were, and in any order among themselves.

mod graph;
mod versions;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Completion;
use graph::Graph;
use versions::Versions;

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
    fn appends(&self) -> impl Iterator<Item = (u32, u64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append { key, element } => Some((*key, *element)),
            Step::Read { .. } => None,
        })
    }

    fn reads(&self) -> impl Iterator<Item = (usize, u32, &[u64])> {
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

/// The first contradiction found in a history of transactions.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendViolation {
    /// The recording is at fault: one element was appended twice to one key.
    #[error("not a history: {element} is appended to k{key} twice, by {first}, and {second}")]
    AppendedTwice {
        /// The key.
        key: u32,
        /// The element.
        element: u64,
        /// One transaction that appended it.
        first: Box<Transaction>,
        /// The other transaction.
        second: Box<Transaction>,
    },
    /// A read returned an element that no transaction appended, or one element twice.
    #[error("k{key} holds {element}, which was never appended, or holds it twice: {reader}")]
    Unexplained {
        /// The key.
        key: u32,
        /// The element.
        element: u64,
        /// The transaction that read it.
        reader: Box<Transaction>,
    },
    /// A read returned an element that a failed transaction appended.
    #[error("what failed was seen: {reader}, of {writer}, in k{key}")]
    FailedSeen {
        /// The key.
        key: u32,
        /// The transaction that read it.
        reader: Box<Transaction>,
        /// The failed transaction.
        writer: Box<Transaction>,
    },
    /// Two lists were read of one key, and neither is a prefix of the other: an append was lost.
    #[error("k{key} was read as two lists of which neither begins the other: {one}, and {other}")]
    Diverged {
        /// The key.
        key: u32,
        /// The transaction that read the longest list.
        one: Box<Transaction>,
        /// The transaction that read the other list.
        other: Box<Transaction>,
    },
    /// A list that was read does not end with exactly the elements that its reader had appended.
    #[error("a transaction does not see its own appends to k{key}: {0}", key = .1)]
    OwnUnseen(Box<Transaction>, u32),
    /// A read returned only some of another transaction's appends to one key.
    #[error("k{key} is seen in the middle of a transaction: {reader}, in {writer}")]
    HalfSeen {
        /// The key.
        key: u32,
        /// The transaction that read the list.
        reader: Box<Transaction>,
        /// The transaction of which only some appends were read.
        writer: Box<Transaction>,
    },
    /// A cycle: each transaction must come before the next, and the last before the first.
    #[error("no order explains these:{}", shown(.0))]
    Cycle(Vec<(Transaction, Order)>),
}

fn shown(cycle: &[(Transaction, Order)]) -> String {
    let line = |(transaction, order): &(Transaction, Order)| {
        let why = match order {
            Order::Appended(key) => format!("appended to k{key} just before"),
            Order::Read(key) => format!("appended what was read of k{key} by"),
            Order::Unseen(key) => format!("did not see what was appended to k{key} by"),
            Order::RealTime => "ended before the start of".to_owned(),
        };
        format!("\n  {transaction}\n    {why}")
    };
    cycle.iter().map(line).collect::<String>() + "\n  the first"
}

/// Checks that a history is strictly serializable. Returns the number of transactions that took
/// effect.
///
/// # Errors
///
/// Returns the first contradiction found. [`AppendViolation::Cycle`] is returned only if the
/// history has no other.
pub fn check_appends(history: &[Transaction]) -> Result<usize, AppendViolation> {
    let versions = Versions::of(history)?;
    let mut graph = Graph::new(history, |at| versions.happened(at));
    versions.visit(|before, after, order| graph.add(before, after, order));
    match graph.cycle() {
        None => Ok(graph.len()),
        Some(cycle) => {
            let named = cycle.into_iter().map(|(at, order)| (history[at].clone(), order));
            Err(AppendViolation::Cycle(named.collect()))
        }
    }
}
