//! Reads at a timestamp, without locks.
//!
//! The problem: the state at a timestamp must never change once it was read, at any replica.
//! Looking at the newest versions up to the timestamp misses pending commits with lower timestamps.
//!
//! Commits have rising timestamps in the order of the log. So every replica knows everything up to
//! the timestamp of the last commit that it has applied: its safe time (Spanner, OSDI'12 §4.1.3, so
//! far without prepared transactions).
//!
//! Above that, only the replica that sequences the writes can tell. Once a timestamp has passed, no
//! commit is ordered below it, because a commit's timestamp is not below true time (see
//! `commit_wait`). So that replica confirms that it leads, waits until everything that it has
//! ordered is applied, and reads.
//!
//! A follower asks it, and receives an index and a timestamp: once the entries up to the index are
//! applied, everything up to the timestamp is known. This stays true if leadership changes: entries
//! that replace those were ordered after the timestamp had passed. So the answer raises the
//! follower's safe time for good. An idle range sends nothing. (CockroachDB's RFC 20191108 closes
//! timestamps ahead of time with every entry instead.)
//!
//! A read protects what it saw from collection for a while: see `protections`.

use std::collections::BTreeMap;

use palisade_clock::{Now, Timestamp};
use palisade_replication::{After, Send};
use palisade_wire::{Outcome, PeerAddress, ReadKind, Rejection, ScanRequest};

use super::{
    Asker, MAX_WAITING, Replica,
    reads::{Confirmation, Level, PendingRead, Read},
};
use crate::{PeerBody, SafeTimeMessage, TestFault};

/// How long a read at a follower waits for the leader's answer before its client is sent there.
const ASKING_US: u64 = 200_000;

/// After this long without an answer, the follower asks again.
const ASK_AGAIN_US: u64 = 30_000;

/// How old a stale read that asks the leader is at most, beside what clocks may differ by.
const ASKED_STALENESS_US: u64 = 500_000;

/// Answers that wait until enough is applied.
const MAX_CLOSING: usize = 64;

/// Reads at timestamps that wait for another replica's answer, and what protects what they see.
#[derive(Debug, Default)]
pub(super) struct TimestampReads {
    /// The lowest timestamp that was read at in this turn.
    pub(super) read_ts: Option<Timestamp>,
    /// Everything up to this is applied, even if no commit says so.
    learned_ts: Timestamp,
    /// Reads at a follower that wait until their timestamp is safe, by that and their number; and
    /// until when they wait.
    unsafe_yet: BTreeMap<(Timestamp, u64), (PendingRead, u64)>,
    /// When that was asked for last, if there is no answer yet.
    asked_us: Option<u64>,
    /// Timestamps that are safe once an entry is applied, by its index.
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
    /// Begins a read of a key at a timestamp that has passed, or says at once what is there.
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

    /// Begins a scan at a timestamp that has passed, or says at once what is there.
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
                // What is applied may be of a timestamp that has not passed yet.
                let known_ts = safe_ts.min(passed_ts(now));
                if known_ts >= latest_ts.saturating_sub_us(max_us).max(at_least) {
                    known_ts
                } else {
                    // The leader is asked anyway. A later timestamp is more likely to be still
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
        // What it sees is kept from now on, not only once it is answered.
        self.protect(at_ts);
        let read = PendingRead { asker, read, level: Level::AsOf(at_ts) };
        if self.group.orders_writes() {
            let hasty = self.fault == Some(TestFault::HastySnapshots);
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

    /// Everything up to this is known here.
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

    /// Another replica asks up to when everything is ordered, or answers.
    pub(crate) fn receive_safe_time(
        &mut self,
        from: PeerAddress,
        message: SafeTimeMessage,
        now: Now,
    ) {
        match message {
            SafeTimeMessage::Ask => {
                // A replica that can't answer is silent: the other has a deadline.
                if self.reads.len() < MAX_WAITING && self.group.orders_writes() {
                    let closed_ts = passed_ts(now);
                    let index = self.group.last_index();
                    let _ = self.confirm(Confirmation::SafeTime { to: from, index, closed_ts });
                }
            }
            SafeTimeMessage::Answer { index, closed_ts } => {
                self.timestamp_reads.asked_us = None;
                let eager = self.fault == Some(TestFault::EagerSafeTime);
                let index = if eager { 0 } else { index };
                if self.timestamp_reads.closing.len() < MAX_CLOSING {
                    let known = self.timestamp_reads.closing.entry(index).or_default();
                    *known = (*known).max(closed_ts);
                }
            }
        }
    }

    /// This replica led when another one asked: what it had ordered until then is all there is.
    pub(super) fn answer_safe_time(&mut self, to: PeerAddress, index: u64, closed_ts: Timestamp) {
        self.send_safe_time(to, SafeTimeMessage::Answer { index, closed_ts });
    }

    /// Time has passed: reads that waited for too long are sent to the leader.
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

/// The last timestamp that has certainly passed.
fn passed_ts(now: Now) -> Timestamp {
    let first_ts = Timestamp::from_physical_us(now.wall.earliest_us);
    Timestamp::from_bits(first_ts.to_bits().saturating_sub(1))
}
