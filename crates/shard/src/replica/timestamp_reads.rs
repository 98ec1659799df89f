//! Reads at a timestamp, without locks.
//!
//! The problem: once the state at a timestamp has been read, it must not change, at any replica.
//! The newest applied versions up to the timestamp are not enough: commits with lower timestamps
//! may be pending.
//!
//! Commits have increasing timestamps in log order. So every replica knows the state up to the
//! timestamp of the last commit that it has applied: its safe time (Spanner, OSDI'12 §4.1.3, so far
//! without prepared transactions).
//!
//! Above its safe time, a replica needs the one that sequences the writes. Once a timestamp has
//! passed, no commit is ordered below it, because a commit's timestamp is not below true time (see
//! `commit_wait`). So that replica confirms that it leads, waits until all entries that it has
//! ordered are applied, and reads.
//!
//! A follower asks that replica for an index and a timestamp: with the entries up to the index
//! applied, the state up to the timestamp is complete. This stays true after a change of
//! leadership, because entries that replace those were ordered after the timestamp had passed. So
//! the answer raises the follower's safe time permanently. An idle range sends nothing.
//! (CockroachDB's RFC 20191108 instead closes timestamps ahead of time with every entry.)
//!
//! A read protects the versions that it saw from garbage collection for a while: see `protections`.

use std::collections::BTreeMap;

use palisade_clock::{Now, Timestamp};
use palisade_replication::{After, Send};
use palisade_wire::{Outcome, PeerAddress, ReadKind, Rejection, ScanRequest};

use super::{
    Asker, MAX_WAITING, Replica,
    reads::{Confirmation, Level, PendingRead, Read},
};
use crate::{PeerBody, SafeTimeMessage, TestFault};

/// How long a read at a follower waits for the leader's answer, before it is redirected there.
const ASKING_US: u64 = 200_000;

/// Interval after which a follower asks again if it has no answer.
const ASK_AGAIN_US: u64 = 30_000;

/// Maximum age of a stale read that needs the leader's answer, beyond the clock's error.
const ASKED_STALENESS_US: u64 = 500_000;

/// Answers of the leader that may wait until their entries are applied. More are dropped.
const MAX_CLOSING: usize = 64;

/// Reads at a follower that wait for the leader's answer, and the safe time learned from it.
#[derive(Debug, Default)]
pub(super) struct TimestampReads {
    /// The lowest timestamp read at in this turn.
    pub(super) read_ts: Option<Timestamp>,
    /// Safe time learned from the leader; may be above the last applied commit.
    learned_ts: Timestamp,
    /// Reads above the safe time, by timestamp and unique number, each with its deadline on the
    /// monotonic clock in microseconds.
    unsafe_yet: BTreeMap<(Timestamp, u64), (PendingRead, u64)>,
    /// When the leader was last asked, while its answer is pending.
    asked_us: Option<u64>,
    /// Answers of the leader: the timestamp is safe once the entry at the index is applied.
    closing: BTreeMap<u64, Timestamp>,
}

impl TimestampReads {
    pub(super) fn is_idle(&self) -> bool {
        self.unsafe_yet.is_empty()
    }

    pub(super) fn wants_ticks(&self) -> bool {
        !self.unsafe_yet.is_empty()
    }
}

impl Replica {
    /// Starts a read at a timestamp that has passed, or returns an immediate outcome as `Err`.
    pub(crate) fn get_past(
        &mut self,
        asker: Asker,
        key: &[u8],
        kind: ReadKind,
        now: Now,
    ) -> Result<(), Outcome> {
        let read = self.read_of_key(key)?;
        self.read_past(asker, read, kind, now)
    }

    /// Starts a scan at a timestamp that has passed, or returns an immediate outcome as `Err`.
    pub(crate) fn scan_past(
        &mut self,
        asker: Asker,
        scan: ScanRequest,
        kind: ReadKind,
        now: Now,
    ) -> Result<(), Outcome> {
        let scan = self.check_scan(scan)?;
        self.read_past(asker, Read::Span(Box::new(scan)), kind, now)
    }

    fn read_past(
        &mut self,
        asker: Asker,
        read: Read,
        kind: ReadKind,
        now: Now,
    ) -> Result<(), Outcome> {
        let safe_ts = self.safe_ts();
        let at_ts = match kind {
            ReadKind::AsOf(at_ts) => at_ts,
            ReadKind::Stale { max_us, at_least } => {
                let latest_ts = Timestamp::from_physical_us(now.wall.latest_us);
                // An applied commit's timestamp may not have passed yet.
                let known_ts = safe_ts.min(passed_ts(now));
                if known_ts >= latest_ts.saturating_sub_us(max_us).max(at_least) {
                    known_ts
                } else {
                    // The leader must be asked anyway. A later timestamp is more likely to be still
                    // readable in the other ranges of a snapshot.
                    let asked_ts = latest_ts.saturating_sub_us(max_us.min(ASKED_STALENESS_US));
                    asked_ts.min(passed_ts(now)).max(at_least)
                }
            }
            ReadKind::Latest
            | ReadKind::LatestOfKey
            | ReadKind::Snapshot
            | ReadKind::Locking(_) => {
                unreachable!("{kind:?} is of no timestamp yet")
            }
        };
        if at_ts <= safe_ts {
            return Err(self.read_as_of(&read, at_ts));
        }
        if self.reads.len() + self.timestamp_reads.unsafe_yet.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        // Protect the versions now, not only when the read is answered.
        self.protect(at_ts);
        let read = PendingRead { asker, read, level: Level::AsOf(at_ts) };
        if self.group.orders_writes() {
            let hasty = self.planted.is(TestFault::HastySnapshots);
            let after = if hasty { 0 } else { self.group.last_index() };
            return self.confirm(Confirmation::Read { after, read });
        }
        if self.group.leader().is_none() {
            return Err(Outcome::Rejected(Rejection::NotServing { hint: None }));
        }
        let number = self.reads.number();
        let until_us = now.monotonic_us + ASKING_US;
        self.timestamp_reads.unsafe_yet.insert((at_ts, number), (read, until_us));
        if self.timestamp_reads.asked_us.is_none() {
            self.ask_for_safe_time(now);
        }
        Ok(())
    }

    /// Returns the safe time: all commits up to it are applied here.
    fn safe_ts(&self) -> Timestamp {
        self.state.last_ts().max(self.timestamp_reads.learned_ts)
    }

    fn ask_for_safe_time(&mut self, now: Now) {
        if let Some(leader) = self.group.leader() {
            self.timestamp_reads.asked_us = Some(now.monotonic_us);
            self.send_safe_time(leader, SafeTimeMessage::Ask);
        }
    }

    fn send_safe_time(&mut self, to: PeerAddress, message: SafeTimeMessage) {
        let message = PeerBody::SafeTime { range: self.descriptor.range, message };
        self.other_sends.push(Send { to, message, after: After::Nothing });
    }

    /// Handles a follower's request for the safe time, or the leader's answer.
    pub(crate) fn receive_safe_time(
        &mut self,
        from: PeerAddress,
        message: SafeTimeMessage,
        now: Now,
    ) {
        match message {
            SafeTimeMessage::Ask => {
                // Send nothing if this replica can't answer: the follower's reads have a deadline.
                if self.reads.len() < MAX_WAITING && self.group.orders_writes() {
                    let closed_ts = passed_ts(now);
                    let index = self.group.last_index();
                    let _ = self.confirm(Confirmation::SafeTime { to: from, index, closed_ts });
                }
            }
            SafeTimeMessage::Answer { index, closed_ts } => {
                self.timestamp_reads.asked_us = None;
                let eager = self.planted.is(TestFault::EagerSafeTime);
                let index = if eager { 0 } else { index };
                if self.timestamp_reads.closing.len() < MAX_CLOSING {
                    let known = self.timestamp_reads.closing.entry(index).or_default();
                    *known = (*known).max(closed_ts);
                }
            }
        }
    }

    /// Sends the safe time to a follower. This replica led when it was asked, so no commit up to
    /// `closed_ts` can be ordered beyond those up to `index`.
    pub(super) fn answer_safe_time(&mut self, to: PeerAddress, index: u64, closed_ts: Timestamp) {
        self.send_safe_time(to, SafeTimeMessage::Answer { index, closed_ts });
    }

    /// Redirects reads that waited too long to the leader, and asks it again if its answer is late.
    pub(super) fn tick_timestamp_reads(&mut self, now: Now) {
        let hint = self.group.leader();
        let late = |_: &_, (_, until_us): &mut (_, u64)| *until_us <= now.monotonic_us;
        for (_, (PendingRead { asker, .. }, _)) in
            self.timestamp_reads.unsafe_yet.extract_if(.., late)
        {
            self.answers.push((asker, Outcome::Rejected(Rejection::NotServing { hint })));
        }
        let lost = |asked_us: u64| asked_us + ASK_AGAIN_US <= now.monotonic_us;
        if self.timestamp_reads.unsafe_yet.is_empty() {
            self.timestamp_reads.asked_us = None;
        } else if self.timestamp_reads.asked_us.is_none_or(lost) {
            self.ask_for_safe_time(now);
        }
    }

    /// Answers reads at a follower whose timestamp has become safe.
    pub(super) fn answer_safe_reads(&mut self, now: Now) {
        let before_ts = self.timestamp_reads.learned_ts;
        while let Some(first) = self.timestamp_reads.closing.first_entry()
            && *first.key() <= self.applied_index
        {
            self.timestamp_reads.learned_ts = self.timestamp_reads.learned_ts.max(first.remove());
        }
        let safe_ts = self.safe_ts();
        while let Some(first) = self.timestamp_reads.unsafe_yet.first_entry()
            && first.key().0 <= safe_ts
        {
            let ((at_ts, _), (PendingRead { asker, read, .. }, _)) = first.remove_entry();
            let outcome = self.read_as_of(&read, at_ts);
            self.answers.push((asker, outcome));
        }
        // This answer predates the remaining reads, so ask again.
        let learned = self.timestamp_reads.learned_ts > before_ts;
        if learned
            && !self.timestamp_reads.unsafe_yet.is_empty()
            && self.timestamp_reads.asked_us.is_none()
        {
            self.ask_for_safe_time(now);
        }
    }

    pub(super) fn read_as_of(&mut self, read: &Read, at_ts: Timestamp) -> Outcome {
        let outcome = match read {
            Read::Key(key) => self.state.get_as_of(key, at_ts),
            Read::Span(scan) => self.state.scan(scan, Some(at_ts), &self.descriptor),
        };
        if !matches!(outcome, Outcome::Rejected(_)) {
            self.protect(at_ts);
        }
        outcome
    }

    fn protect(&mut self, at_ts: Timestamp) {
        let lowest_ts = self.timestamp_reads.read_ts.map_or(at_ts, |ts| ts.min(at_ts));
        self.timestamp_reads.read_ts = Some(lowest_ts);
    }
}

/// Returns the last timestamp that has certainly passed.
fn passed_ts(now: Now) -> Timestamp {
    let first_ts = Timestamp::from_physical_us(now.wall.earliest_us);
    Timestamp::from_bits(first_ts.to_bits().saturating_sub(1))
}
