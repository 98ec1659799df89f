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

use palisade_clock::{Now, Timestamp};
use palisade_replication::After;
use palisade_wire::{Outcome, PeerAddress, ReadKind, Rejection};

use super::{
    Replica,
    pending_reads::{Barrier, Confirmation, Level, PendingRead, Read},
};
use crate::{
    TestFault,
    messages::{PeerBody, SafeTimeMessage},
    turn::{RequestOrigin, Served, Turn},
    work::Work,
};

/// How long a read at a follower waits for the leader's answer, before it is redirected there.
const ASKING_US: u64 = 200_000;

/// Maximum age of a stale read that needs the leader's answer, beyond the clock's error.
const ASKED_STALENESS_US: u64 = 500_000;

impl Replica {
    /// Starts a read at a timestamp that has passed.
    pub(super) fn read_at_timestamp(
        &mut self,
        origin: RequestOrigin,
        read: Read,
        kind: ReadKind,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        let now = turn.now;
        let at_ts = self.timestamp_of(kind, now);
        if at_ts <= self.safe_ts() {
            return match self.read_as_of(&read, at_ts, turn.work) {
                Outcome::Rejected(rejection) => Err(rejection),
                outcome => Ok(Served::Done(outcome)),
            };
        }
        self.check_room()?;
        // Protect the versions now, not only when the read is answered.
        self.protect(at_ts);
        let read = PendingRead { origin, read, level: Level::AsOf(at_ts) };
        if self.group.orders_writes() {
            let hasty = self.config.planted.is(TestFault::HastySnapshots);
            let after = if hasty { 0 } else { self.group.last_index() };
            return self.confirm(Confirmation::Read { after, read });
        }
        if self.group.leader().is_none() {
            return Err(Rejection::NotServing { hint: None });
        }
        self.reads.wait(Barrier::Safe(at_ts), read, now.monotonic_us + ASKING_US);
        if !self.safe_time.is_asked() {
            self.ask_for_safe_time(now);
        }
        Ok(Served::Pending)
    }

    /// Returns the timestamp that a read is served at.
    fn timestamp_of(&self, kind: ReadKind, now: Now) -> Timestamp {
        match kind {
            ReadKind::AsOf(at_ts) => at_ts,
            ReadKind::Stale { max_us, at_least } => {
                let latest_ts = Timestamp::from_physical_us(now.wall.latest_us);
                // An applied commit's timestamp may not have passed yet.
                let known_ts = self.safe_ts().min(passed_ts(now));
                if known_ts >= latest_ts.saturating_sub_us(max_us).max(at_least) {
                    return known_ts;
                }
                // The leader must be asked anyway. A later timestamp is more likely to be still
                // readable in the other ranges of a snapshot.
                let asked_ts = latest_ts.saturating_sub_us(max_us.min(ASKED_STALENESS_US));
                asked_ts.min(passed_ts(now)).max(at_least)
            }
            ReadKind::Latest
            | ReadKind::LatestOfKey
            | ReadKind::Snapshot
            | ReadKind::Locking(_) => unreachable!("{kind:?} has no timestamp yet"),
        }
    }

    /// Returns the safe time: all commits up to it are applied here.
    pub(super) fn safe_ts(&self) -> Timestamp {
        self.applied.state.last_ts().max(self.safe_time.learned_ts())
    }

    fn ask_for_safe_time(&mut self, now: Now) {
        if let Some(leader) = self.group.leader() {
            self.safe_time.asked(now.monotonic_us);
            self.send_safe_time(leader, SafeTimeMessage::Ask);
        }
    }

    fn send_safe_time(&mut self, to: PeerAddress, message: SafeTimeMessage) {
        let range = self.descriptor.range;
        self.send(to, PeerBody::SafeTime { range, message }, After::Nothing);
    }

    /// Handles a follower's request for the safe time, or the leader's answer.
    pub(crate) fn receive_safe_time(
        &mut self,
        from: PeerAddress,
        message: SafeTimeMessage,
        turn: &Turn<'_>,
    ) {
        match message {
            SafeTimeMessage::Ask => {
                // Send nothing if this replica can't answer: the follower's reads have a deadline.
                if self.check_room().is_ok() && self.group.orders_writes() {
                    let closed_ts = passed_ts(turn.now);
                    let index = self.group.last_index();
                    let _ = self.confirm(Confirmation::SafeTime { to: from, index, closed_ts });
                }
            }
            SafeTimeMessage::Answer { index, closed_ts } => {
                let is_eager = self.config.planted.is(TestFault::EagerSafeTime);
                self.safe_time.answered(if is_eager { 0 } else { index }, closed_ts);
            }
        }
    }

    /// Sends the safe time to a follower. This replica led when it was asked, so no commit up to
    /// `closed_ts` can be ordered beyond those up to `index`.
    pub(super) fn answer_safe_time(&mut self, to: PeerAddress, index: u64, closed_ts: Timestamp) {
        self.send_safe_time(to, SafeTimeMessage::Answer { index, closed_ts });
    }

    /// Redirects reads that waited too long to the leader, and asks it again if its answer is late.
    pub(super) fn tick_timestamp_reads(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        let hint = self.group.leader();
        for PendingRead { origin, .. } in self.reads.expire(now.monotonic_us) {
            turn.reject(origin, Rejection::NotServing { hint });
        }
        if !self.reads.wait_for_safe_time() {
            self.safe_time.forget_question();
        } else if self.safe_time.is_question_due(now.monotonic_us) {
            self.ask_for_safe_time(now);
        }
    }

    /// Answers reads at a follower whose timestamp has become safe.
    pub(super) fn answer_safe_reads(&mut self, turn: &mut Turn<'_>) {
        let has_learned = self.safe_time.applied(self.applied.index);
        let safe_ts = self.safe_ts();
        while turn.work.is_left()
            && let Some(read) = self.reads.next_safe(safe_ts)
        {
            self.answer_read(read, turn);
        }
        // This answer predates the remaining reads, so ask again.
        if has_learned && self.reads.wait_for_safe_time() && !self.safe_time.is_asked() {
            self.ask_for_safe_time(turn.now);
        }
    }

    pub(super) fn read_as_of(&mut self, read: &Read, at_ts: Timestamp, work: &mut Work) -> Outcome {
        let state = &self.applied.state;
        let outcome = match read {
            Read::Key(key) => state.get_as_of(key, at_ts, work),
            Read::Span(scan) => state.scan(scan, Some(at_ts), &self.descriptor, work),
        };
        if !matches!(outcome, Outcome::Rejected(_)) {
            self.protect(at_ts);
        }
        outcome
    }

    fn protect(&mut self, at_ts: Timestamp) {
        self.read_ts = Some(self.read_ts.map_or(at_ts, |lowest_ts| lowest_ts.min(at_ts)));
    }
}

/// Returns the last timestamp that has certainly passed.
fn passed_ts(now: Now) -> Timestamp {
    let first_ts = Timestamp::from_physical_us(now.wall.earliest_us);
    Timestamp::from_bits(first_ts.to_bits().saturating_sub(1))
}
