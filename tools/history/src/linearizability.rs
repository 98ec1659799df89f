//! Decides whether a history of register operations is linearizable.
//!
//! # The problem
//!
//! A history is linearizable if each operation can be assigned one instant between its start and
//! its end, such that performing the operations one by one at those instants gives the recorded
//! results. Equivalently: there is a total order of the operations in which every read returns the
//! latest write before it, and in which `a` comes before `b` whenever `a` ended before `b` started.
//! Operations that touch (`a.end == b.start`) are concurrent: the recorder's clock cannot order
//! them, and the check must not report a violation that is not certain.
//!
//! Linearizability is local: a history is linearizable exactly if its restriction to each key is.
//! So each key is checked alone, as a register of its own.
//!
//! # The naive way
//!
//! Search (Wing & Gong 1993): pick an operation that no other one must precede, perform it,
//! recurse, and backtrack when a read does not fit. For general objects nothing essentially better
//! is known: the problem is NP-complete, and the search is exponential in the number of concurrent
//! operations. One slow node that leaves a thousand writes pending makes it infeasible. The search
//! is simple enough to be evidently correct, so the tests compare this check with it on small
//! histories.
//!
//! # The algorithm
//!
//! If no value is written twice to a key, every read identifies its write, and the question is
//! solved in O(n log n) (Gibbons & Korach, "Testing Shared Memories", SIAM J. Comput. 26(4), 1997).
//!
//! The *cluster* of a value is its write and all reads that returned it. In any valid order a
//! cluster is contiguous and starts with the write: another write in between would hide the value
//! from the later reads. So it is enough to order the clusters. Within a cluster only one thing can
//! go wrong: a read that ended before the write started.
//!
//! Let `f` be the earliest end in a cluster and `s` the latest start. Cluster A must come before
//! cluster B exactly if some operation of A ended before some operation of B started, that is, if
//! `A.f < B.s`. The clusters can be ordered exactly if this relation has no cycle. If it has a
//! cycle, it also has one of length two: let A have the least `f` on the cycle. Each member B has a
//! predecessor P on the cycle with `A.f <= P.f < B.s`, so A must come before all members, including
//! its own predecessor. A and that predecessor are a cycle of length two. Therefore
//!
//! > the register is linearizable exactly if no two clusters have `A.f < B.s` and `B.f < A.s`.
//!
//! To find such a pair without comparing all pairs, take the *zone* between `f` and `s`:
//!
//! * If `f < s`, it is a *forward* zone: some operation on the value ended at `f`, another started
//!   at `s`, and the register must have held the value all the time in between.
//! * Otherwise it is a *backward* zone: all operations of the cluster are concurrent around
//!   `[s, f]`, and it is enough that the register held the value for one instant in it.
//!
//! In terms of zones, two forward zones conflict if they overlap in more than a point. A backward
//! zone conflicts with a forward zone if it lies strictly inside. Two backward zones never
//! conflict. Sort the forward zones by `f`. If any two overlap, two neighbours do. If none overlap,
//! they are sorted by `s` as well. Then, of the forward zones whose `f` is below the start of a
//! backward zone, only the last can contain it, and a binary search finds that one.
//!
//! # Failed and unknown outcomes
//!
//! * A failed operation is dropped. A read that returned the value of a failed write is a
//!   violation. A value may be written again after a failure.
//! * A read of unknown outcome is dropped: it has no result and no effect.
//! * A write of unknown outcome may take effect at any time after its start, so its end is
//!   infinite. If no read returned its value, it can be ordered last and is dropped. Otherwise it
//!   took effect.
//! * Absence is a value too, whose write ended before all operations. Its cluster is a forward zone
//!   that ends at the start of the last read that found the key absent. It needs no place on the
//!   time axis: any cluster with `f` below that start is a conflict.
//!
//! # What is left out
//!
//! * Deletes, compare-and-set and repeated values: a read then no longer identifies its write, and
//!   the polynomial bound is lost.
//! * An order as proof of acceptance: it would be the clusters in topological order.

use crate::record::{Action, Completion, Operation};
use crate::violation::Violation;
use crate::zone::{Entry, Role, Zone};

/// The contents of a history that passed the check, as counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys with at least one operation that was not dropped.
    pub keys: usize,
    /// All operations of the history, the failed ones included.
    pub operations: usize,
    /// Reads with outcome [`Completion::Ok`].
    pub reads: usize,
    /// Writes with outcome [`Completion::Ok`].
    pub writes: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
}

impl Checked {
    const fn count(&mut self, operation: &Operation) {
        self.operations += 1;
        match (operation.outcome, operation.action) {
            (Completion::Ok, Action::Read(_)) => self.reads += 1,
            (Completion::Ok, Action::Write(_)) => self.writes += 1,
            (Completion::Info, _) => self.unknown += 1,
            (Completion::Fail, _) => {}
        }
    }
}

/// Checks that a history, given in any order, is linearizable for registers that start absent.
///
/// # Errors
///
/// Returns one contradiction: the first on the lowest key that has one. An operation that succeeded
/// and ends before it starts is reported before any other contradiction.
pub fn check(operations: &[Operation]) -> Result<Checked, Violation> {
    let mut checked = Checked::default();
    let mut entries: Vec<Entry<'_>> = Vec::with_capacity(operations.len());
    for operation in operations {
        checked.count(operation);
        if operation.outcome == Completion::Ok && operation.end_ns < operation.start_ns {
            return Err(Violation::EndsBeforeStart { operation: *operation });
        }
        if let Some(role) = Role::of(operation) {
            entries.push((role, operation));
        }
    }
    // One sort groups by key, then by cluster, with the writes of each cluster first. Sorting by
    // start makes the report independent of the order in which the history was given.
    entries.sort_unstable_by_key(|&(role, operation)| {
        (operation.key, operation.action.value(), role, operation.start_ns)
    });
    for register in entries.chunk_by(|a, b| a.1.key == b.1.key) {
        checked.keys += 1;
        check_register(register)?;
    }
    Ok(checked)
}

/// Checks the sorted operations of one key.
fn check_register(register: &[Entry<'_>]) -> Result<(), Violation> {
    // `None` sorts below every value.
    let (absent, present) =
        register.split_at(register.partition_point(|entry| entry.1.action.value().is_none()));

    let mut forward: Vec<Zone<'_>> = Vec::new();
    let mut backward: Vec<Zone<'_>> = Vec::new();
    for cluster in present.chunk_by(|a, b| a.1.action.value() == b.1.action.value()) {
        match Zone::of(cluster)? {
            Some(zone) if zone.is_forward() => forward.push(zone),
            Some(zone) => backward.push(zone),
            None => {}
        }
    }

    // The reads are sorted by start, so the last one bounds the zone.
    let first_seen = forward.iter().chain(&backward).min_by_key(|zone| zone.finish());
    if let (Some(&(_, read)), Some(zone)) = (absent.last(), first_seen)
        && zone.finish() < read.start_ns
    {
        return Err(Violation::AbsentAfterWrite { seen: *zone.finished_first, read: *read });
    }

    forward.sort_unstable_by_key(|zone| zone.finish());
    for (earlier, later) in forward.iter().zip(forward.iter().skip(1)) {
        if later.finish() < earlier.start() {
            return Err(Violation::TwoValuesAtOnce(earlier.conflict(later)));
        }
    }

    for inner in &backward {
        let begun = forward.partition_point(|outer| outer.finish() < inner.start());
        if let Some(outer) = forward[..begun].last()
            && inner.finish() < outer.start()
        {
            return Err(Violation::StaleRead(outer.conflict(inner)));
        }
    }
    Ok(())
}
