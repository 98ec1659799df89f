//! Records the history of all operations over all ranges, with the timestamps of their answers.

use palisade_clock::Timestamp;
use palisade_history::{
    TimestampedOperation,
    timestamps::{Order, Saw},
};
use palisade_wire::{Outcome, Page};

use super::{Clients, PairAction, Task, unique};
use crate::invariants::Seen;

/// The first number of the keys in pairs, two for each range.
const FIRST_PAIR: u32 = 10_000;

/// The first number of the cells, eight for each range.
const FIRST_CELL: u32 = 20_000;

fn pair_number(place: usize, second: bool) -> u32 {
    FIRST_PAIR + 2 * number(place) + u32::from(second)
}

fn cell_number(place: usize, cell: usize) -> u32 {
    FIRST_CELL + 8 * number(place) + number(cell)
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("keys and ranges are few")
}

/// Converts what a read of a key returned.
fn saw(ts: Timestamp, value: Option<u64>) -> Saw {
    value.map_or(Saw::Absent, |value| Saw::Value { ts: ts.to_bits(), value })
}

/// Converts what a transaction or snapshot read from the cells of a range.
fn saw_cells(place: usize, seen: &[Seen]) -> Vec<(u32, Saw)> {
    seen.iter().map(|seen| (cell_number(place, seen.cell), saw(seen.ts, seen.value))).collect()
}

impl Clients {
    /// Records an operation that ends now.
    pub(super) fn record(
        &mut self,
        at: usize,
        now_us: u64,
        order: Order,
        reads: Vec<(u32, Saw)>,
        writes: Vec<(u32, Option<u64>)>,
    ) {
        let caller = &self.callers[at];
        let current = caller.current.as_ref().expect("there was an operation");
        self.timestamped.push(TimestampedOperation {
            process: caller.process,
            start_ns: current.try_us * 1_000,
            // Events in the same microsecond count as concurrent.
            end_ns: now_us * 1_000 + 1,
            order,
            reads,
            writes,
        });
    }

    /// Returns what the current operation of a client writes: empty for reads.
    fn writes_of(&self, at: usize) -> Vec<(u32, Option<u64>)> {
        let caller = &self.callers[at];
        let current = caller.current.as_ref().expect("there was an operation");
        match current.task {
            Task::Register { key, value: Some(value), .. } => vec![(number(key), Some(value))],
            Task::Pair { place, action: PairAction::Write { value, .. }, .. } => {
                [false, true].map(|second| (pair_number(place, second), value)).to_vec()
            }
            Task::Transaction { place } => {
                let transaction = caller.transaction.as_ref().expect("it is the operation");
                let writes = transaction.writes.iter();
                writes.map(|(cell, value)| (cell_number(place, *cell), *value)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Records the writes of an operation that had no effect, or whose outcome is unknown.
    pub(super) fn record_without_effect(&mut self, at: usize, now_us: u64, order: Order) {
        let writes = self.writes_of(at);
        if !writes.is_empty() {
            self.record(at, now_us, order, Vec::new(), writes);
        }
    }

    /// Records an answered put or get of a register.
    pub(super) fn record_register(&mut self, at: usize, now_us: u64, outcome: &Outcome) {
        let current = self.callers[at].current.as_ref().expect("there was an operation");
        let Task::Register { key, of_key, .. } = current.task else { return };
        match outcome {
            Outcome::Committed { commit_ts, .. } => {
                let writes = self.writes_of(at);
                self.record(at, now_us, Order::Commit(commit_ts.to_bits()), Vec::new(), writes);
            }
            Outcome::Value { version_ts, value, .. } => {
                let reads = vec![(number(key), saw(*version_ts, value.as_ref().map(unique)))];
                let order = if of_key { Order::LatestOfKey } else { Order::Latest };
                self.record(at, now_us, order, reads, Vec::new());
            }
            _ => {}
        }
    }

    /// Records an answered operation on a pair.
    pub(super) fn record_pair(&mut self, at: usize, now_us: u64, outcome: &Outcome) {
        let current = self.callers[at].current.as_ref().expect("there was an operation");
        let Task::Pair { place, action, .. } = current.task else { return };
        let key = |second| pair_number(place, second);
        match (action, outcome) {
            (PairAction::Write { expected, .. }, Outcome::Committed { commit_ts, .. }) => {
                let value = expected.and_then(|ts| Some((ts, self.pairs[place].value_at(ts)?)));
                let read = |(ts, value)| [false, true].map(|b| (key(b), saw(ts, Some(value))));
                let reads = value.map(read).into_iter().flatten().collect();
                let writes = self.writes_of(at);
                self.record(at, now_us, Order::Commit(commit_ts.to_bits()), reads, writes);
            }
            (
                PairAction::Write { expected: Some(expected), .. },
                Outcome::ConditionFailed { condition, .. },
            ) => {
                let ts = expected.to_bits();
                let reads = vec![(key(*condition > 0), Saw::NotVersion { ts })];
                self.record(at, now_us, Order::Latest, reads, Vec::new());
                self.record_without_effect(at, now_us, Order::Failed);
            }
            (PairAction::Read { second }, Outcome::Value { version_ts, value, .. }) => {
                let reads = vec![(key(second), saw(*version_ts, value.as_ref().map(unique)))];
                self.record(at, now_us, Order::Latest, reads, Vec::new());
            }
            (PairAction::Scan { backward }, Outcome::Page { page: Page { rows, .. }, .. }) => {
                let mut reads = [false, true].map(|second| (key(second), Saw::Absent));
                let in_order = reads.iter_mut().rev().take(rows.len()).rev();
                for (read, row) in in_order.zip(rows) {
                    read.1 = saw(row.version_ts, Some(unique(&row.value)));
                }
                if backward && rows.len() == 2 {
                    let [first, second] = &mut reads;
                    std::mem::swap(&mut first.1, &mut second.1);
                }
                self.record(at, now_us, Order::Latest, reads.to_vec(), Vec::new());
            }
            _ => {}
        }
    }

    /// Records a committed transaction.
    pub(super) fn record_transaction(&mut self, at: usize, now_us: u64, commit_ts: Timestamp) {
        let transaction = self.callers[at].transaction.as_ref().expect("it is the operation");
        let reads = saw_cells(transaction.place, &transaction.seen);
        let writes = self.writes_of(at);
        self.record(at, now_us, Order::Commit(commit_ts.to_bits()), reads, writes);
    }

    /// Records the reads of a transaction that ended without a commit. All of them held at the time
    /// of the last read, because the transaction then held all of its locks.
    pub(super) fn record_locked_reads(&mut self, at: usize, now_us: u64) {
        let transaction = self.callers[at].transaction.as_ref().expect("it is the operation");
        let reads = saw_cells(transaction.place, &transaction.seen);
        if !reads.is_empty() {
            self.record(at, now_us, Order::Latest, reads, Vec::new());
        }
    }

    /// Records one read of a snapshot.
    pub(super) fn record_snapshot(
        &mut self,
        at: usize,
        now_us: u64,
        order: Order,
        place: usize,
        seen: &[Seen],
    ) {
        self.record(at, now_us, order, saw_cells(place, seen), Vec::new());
    }
}
