//! Is there an order of the operations that explains every answer?
//!
//! # The problem
//!
//! A history is linearizable if each operation can be given one instant between its start and its
//! end such that, performed one after another at those instants, all operations return what they
//! did return. Equivalently: there is a total order of the operations in which every read returns
//! the latest write before it, and in which `a` comes before `b` whenever `a` ended before `b`
//! started. Operations that merely touch (`a.end == b.start`) are concurrent: the recorder's clock
//! could not tell them apart, and the check must not accuse on a doubt.
//!
//! Linearizability is local: a history is linearizable exactly if its restriction to each key is.
//! So each key is a register of its own, and is checked alone.
//!
//! # The naive way
//!
//! Search: pick any operation that no other one must precede, perform it, recur, and go back when a
//! read does not fit (Wing & Gong 1993). For general objects nothing essentially better is known:
//! the problem is NP-complete, and the search is exponential in the number of concurrent
//! operations. One slow node that leaves a thousand writes hanging is enough to make it hopeless.
//! It is simple enough to be evidently right, though, so the tests run it beside this one on small
//! histories.
//!
//! # The algorithm
//!
//! If no value is written twice to a key, every read names the write it saw, and the question is
//! solved in O(n log n) (Gibbons & Korach, "Testing Shared Memories", SIAM J. Comput. 26(4), 1997).
//!
//! Take the *cluster* of a value: its write and all reads that returned it. In any valid order a
//! cluster is contiguous, the write first: another write in between would hide the value from the
//! reads behind it. So it is enough to order the clusters. Within a cluster the one thing that can
//! go wrong is a read that ended before the write started.
//!
//! Let `f` be the earliest end in a cluster and `s` the latest start. Cluster A must come before
//! cluster B exactly if some operation of A ended before some operation of B started, that is, if
//! `A.f < B.s`. The clusters can be ordered exactly if this relation has no cycle, and then it has
//! none of length two either. The converse holds as well: on a cycle, let A have the least `f`.
//! Each member B has a predecessor P on the cycle with `A.f <= P.f < B.s`, so A must come before
//! all members, its own predecessor included; and those two are a cycle of length two. Therefore
//!
//! > the register is linearizable exactly if no two clusters have `A.f < B.s` and `B.f < A.s`.
//!
//! To find such a pair without trying all, look at the *zone* between `f` and `s`:
//!
//! * if `f < s` it is a *forward* zone: some operation on the value ended at `f`, another started
//!   at `s`, and the register must have held the value all the time in between;
//! * otherwise it is a *backward* zone: all operations of the cluster are concurrent around
//!   `[s, f]`, and it is enough that the register held the value for an instant in it.
//!
//! The condition on a pair then reads: two forward zones conflict if they overlap in more than a
//! point; a backward zone conflicts with a forward one if it lies strictly inside; two backward
//! zones never conflict. Sort the forward zones by `f`. If any two overlap, two neighbours do. If
//! none do they are sorted by `s` as well, so of all those with `f` below the start of a backward
//! zone only the last can contain it, and a binary search finds it.
//!
//! # What is not plainly ok
//!
//! * A failed operation is dropped, and a read that returned the value of a failed write is an
//!   anomaly. A value may be written again after a failure.
//! * A read of unknown outcome is dropped: it saw nothing and changed nothing.
//! * A write of unknown outcome may take effect at any time after its start, so it never ends. If
//!   nobody read its value it can be ordered last, and is dropped. If somebody did, it took part.
//! * The absent key is a value too, whose write ended before time began: its cluster is a forward
//!   zone from before everything to the start of the last read that found the key absent. It needs
//!   no place on the time axis: a conflict is any cluster with `f` below that start.
//!
//! # What is left out
//!
//! Deletes, compare-and-set and repeated values: they break the link from a read to its write, and
//! with it the polynomial bound. Also an order as proof of acceptance: it would be the clusters
//! sorted topologically, and nobody has asked for it.

use crate::record::{Action, Operation, Outcome};
use crate::violation::Violation;
use crate::zone::{Entry, Role, Zone};

/// What a history that passed the check consisted of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Keys with at least one operation that counts.
    pub keys: usize,
    /// All operations of the history, the failed ones included.
    pub operations: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Writes that were acknowledged.
    pub writes: usize,
    /// Operations of unknown outcome.
    pub unknown: usize,
}

impl Checked {
    const fn count(&mut self, operation: &Operation) {
        self.operations += 1;
        match (operation.outcome, operation.action) {
            (Outcome::Ok, Action::Read(_)) => self.reads += 1,
            (Outcome::Ok, Action::Write(_)) => self.writes += 1,
            (Outcome::Info, _) => self.unknown += 1,
            (Outcome::Fail, _) => {}
        }
    }
}

/// Checks that the history, given in any order, is linearizable for registers that start absent.
///
/// # Errors
///
/// One contradiction, not all of them: the first on the lowest key that has one. Operations that
/// succeeded with an end before their start are reported ahead of any.
pub fn check(operations: &[Operation]) -> Result<Checked, Violation> {
    let mut checked = Checked::default();
    let mut entries: Vec<Entry<'_>> = Vec::with_capacity(operations.len());
    for operation in operations {
        checked.count(operation);
        if operation.outcome == Outcome::Ok && operation.end_ns < operation.start_ns {
            return Err(Violation::EndsBeforeStart { operation: *operation });
        }
        if let Some(role) = Role::of(operation) {
            entries.push((role, operation));
        }
    }
    // One sort puts keys, then clusters, then the writes of each cluster side by side. The start
    // makes the report independent of the order in which the history was given.
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

    // The reads are sorted by start, so the last one is the one that bounds the zone.
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
