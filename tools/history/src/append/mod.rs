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
mod transaction;
mod versions;
mod violation;

pub use transaction::{Order, Step, Transaction};
pub use violation::AppendViolation;

use graph::Graph;
use versions::Versions;

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
