//! Is there an order of the transactions that explains every answer?
//!
//! # The problem
//!
//! A history of transactions over many keys is strictly serializable if they can be put in one order,
//! in which each returns what it did return, and which agrees with real time: what ended before
//! another started comes before it.
//!
//! # The naive way
//!
//! Trying orders. For registers, whose values hide what was there before, nothing essentially better is
//! known (Papadimitriou 1979: the problem is NP-complete), and a range of accounts whose total is right
//! says little.
//!
//! # The algorithm
//!
//! As in Elle (Kingsbury & Alvaro, VLDB 2020, §4): each key holds a list, a write appends to it, and no
//! element is appended twice. So a read tells not just who wrote what it saw, but all who wrote before
//! and in what order: the longest list that was read of a key is the order of its versions, and every
//! other one must begin it. From that it follows who must come before whom:
//!
//! * `ww`: who appended an element, before who appended the next one;
//! * `wr`: who appended the last element of a list, before who read the list;
//! * `rw`: who read a list, before who appended the first element that is not in it;
//! * `rt`: who ended before another started, before that one. A chain of moments, one for each end,
//!   stands for all these pairs, so that they are as many as the transactions.
//!
//! An order exists exactly if these have no cycle; a short cycle is the report. Beside that, a transaction must see its own appends, nobody those of one that
//! failed, and of several to one key by the same transaction nobody sees but the last.
//!
//! # What is not plainly ok
//!
//! One of unknown outcome has happened if somebody saw any of it, and at any time after its start;
//! otherwise it is as if it had not. Appends that nobody read come after all that were, and among
//! themselves in any order.

mod graph;
mod versions;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Outcome;
use graph::Graph;
use versions::Versions;

/// What a transaction did to a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Added an element at the end of the key's list.
    Append {
        /// Which key.
        key: u32,
        /// Added to this key by nobody else, and nowhere else in the transaction.
        element: u64,
    },
    /// Read the key's list, its own appends before this step included.
    Read {
        /// Which key.
        key: u32,
        /// What was there.
        list: Vec<u64>,
    },
}

/// One recorded transaction over lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// The client that issued it.
    pub process: u32,
    /// When it began.
    pub start_ns: u64,
    /// When the client had the answer, or stopped waiting for it.
    pub end_ns: u64,
    /// What it did, in order. Of one that did not certainly take effect, reads say nothing.
    pub steps: Vec<Step>,
    /// What the client knows of its end.
    pub outcome: Outcome,
}

impl Transaction {
    fn appends(&self) -> impl Iterator<Item = (u32, u64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append { key, element } => Some((*key, *element)),
            Step::Read { .. } => None,
        })
    }

    fn reads(&self) -> impl Iterator<Item = (usize, u32, &[u64])> {
        // What was answered to a transaction that did not end well may have been on the way to that.
        let counts = self.outcome == Outcome::Ok;
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
    /// It appended the element before the other's, to this key.
    Appended(u32),
    /// It appended the last that the other read of this key.
    Read(u32),
    /// It read this key as it was before the other's append.
    Unseen(u32),
    /// It ended before the other started.
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
        /// One who did.
        first: Box<Transaction>,
        /// The other.
        second: Box<Transaction>,
    },
    /// A read returned an element that nobody appended, or one that was there already.
    #[error("k{key} holds {element}, which nobody appended, or holds it twice: {reader}")]
    Unexplained {
        /// The key.
        key: u32,
        /// The element.
        element: u64,
        /// Who read it.
        reader: Box<Transaction>,
    },
    /// A read returned what a failed transaction appended.
    #[error("what failed was seen: {reader}, of {writer}, in k{key}")]
    FailedSeen {
        /// The key.
        key: u32,
        /// Who read it.
        reader: Box<Transaction>,
        /// Who failed.
        writer: Box<Transaction>,
    },
    /// Of two lists of one key neither begins the other: an append is lost.
    #[error("k{key} was read as two lists of which neither begins the other: {one}, and {other}")]
    Diverged {
        /// The key.
        key: u32,
        /// Who read the longest.
        one: Box<Transaction>,
        /// Who read another.
        other: Box<Transaction>,
    },
    /// A transaction did not see what it had appended itself, or saw it elsewhere than at the end.
    #[error("a transaction does not see its own appends to k{key}: {0}", key = .1)]
    OwnUnseen(Box<Transaction>, u32),
    /// A read shows a part of what a transaction appended to one key.
    #[error("k{key} is seen in the middle of a transaction: {reader}, in {writer}")]
    HalfSeen {
        /// The key.
        key: u32,
        /// Who read it.
        reader: Box<Transaction>,
        /// Who was not through.
        writer: Box<Transaction>,
    },
    /// Each of these must come before the next, and the last before the first.
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

/// Checks that a history is strictly serializable. Returns how many transactions are in the order.
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
