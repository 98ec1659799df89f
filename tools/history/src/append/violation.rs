//! Contradictions in a history of transactions over lists.

use thiserror::Error;

use super::transaction::{Order, Transaction};

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
