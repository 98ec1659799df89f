//! Reads of the latest state, and the confirmation that this replica still leads.
//!
//! The problem: a write is ordered at its timestamp long before it is applied. If a read returns
//! the state before that write although a later write of another range is acknowledged, a snapshot
//! at a timestamp between the two writes closes a cycle:
//!
//! ```text
//! put x  |------------------------|      ordered at 10, applied late
//! put y       |-----|                    ordered at 20 in another range, acknowledged
//! get x                |-----|           must not answer the state before 10
//! ```
//!
//! So the read is served by the replica that sequences the writes, because only this replica knows
//! what it has ordered. A read of a key waits for the pending writes of that key; a scan waits for
//! all pending writes. The answer is then valid at a timestamp that is not below true time at the
//! read's arrival, because every commit ordered later gets a higher timestamp (see `commit_wait`).
//!
//! The replica must also prove that it led when the read arrived: in Raft by its lease or a round
//! to the followers, in a chain by the epochs.
//!
//! A read that is linearizable for its key alone ([`ReadKind::LatestOfKey`]) does not wait for
//! pending writes. In a chain, it is served by the tail.

use bytes::Bytes;
use palisade_wire::{Basis, MAX_PAGE_ROWS, Outcome, ReadKind, Rejection, ScanRequest, check_key};

use super::{
    MAX_WAITING, Replica,
    pending_reads::{Barrier, Confirmation, Level, Locked, PendingRead, Read},
    refused,
};
use crate::{
    TestFault,
    metrics::SlowRequest,
    turn::{RequestOrigin, Served, Turn},
    work::Work,
};

impl Replica {
    /// Starts a read of a key.
    pub(crate) fn get(
        &mut self,
        origin: RequestOrigin,
        key: &[u8],
        kind: ReadKind,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        let read = self.read_of_key(key)?;
        match kind {
            ReadKind::Latest => self.read_latest(origin, read, turn),
            ReadKind::LatestOfKey => self.read_latest_of_key(origin, read),
            ReadKind::Locking(locking) => self.locked_get(origin, read, locking, turn),
            _ => self.read_at_timestamp(origin, read, kind, turn),
        }
    }

    /// Starts a scan.
    pub(crate) fn scan(
        &mut self,
        origin: RequestOrigin,
        scan: ScanRequest,
        kind: ReadKind,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        let scan = self.check_scan(scan)?;
        // An estimate, so that a turn does not accept more scans than it answers.
        turn.work.keys(scan.max_rows.min(MAX_PAGE_ROWS) as usize / 4, 0);
        match kind {
            // A scan covers more than one key, so both kinds mean the same.
            ReadKind::Latest | ReadKind::LatestOfKey => {
                self.read_latest(origin, Read::Span(Box::new(scan)), turn)
            }
            ReadKind::Locking(locking) => self.locked_scan(origin, scan, locking, turn),
            _ => self.read_at_timestamp(origin, Read::Span(Box::new(scan)), kind, turn),
        }
    }

    fn read_latest(
        &mut self,
        origin: RequestOrigin,
        read: Read,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        self.lead(turn)?;
        self.check_room()?;
        let mut after = self.transactions.ordered_before(&read);
        if self.config.planted.is(TestFault::IgnorePendingWrites) {
            after = 0;
        }
        let read = PendingRead { origin, read, level: Level::Latest };
        self.confirm(Confirmation::Read { after, read })
    }

    fn read_latest_of_key(
        &mut self,
        origin: RequestOrigin,
        read: Read,
    ) -> Result<Served, Rejection> {
        self.check_room()?;
        self.group.read(self.reads.next_token()).map_err(refused)?;
        let read = PendingRead { origin, read, level: Level::Latest };
        self.reads.confirm(Confirmation::Read { after: 0, read });
        Ok(Served::Pending)
    }

    /// Returns `Overloaded` if too many reads wait.
    pub(super) fn check_room(&self) -> Result<(), Rejection> {
        if self.reads.len() >= MAX_WAITING {
            return Err(Rejection::Overloaded);
        }
        Ok(())
    }

    /// Checks that a key lies in this range, and copies it: the original keeps the receive buffer
    /// alive.
    fn read_of_key(&self, key: &[u8]) -> Result<Read, Rejection> {
        check_key(key)?;
        if !self.descriptor.holds(key) {
            return Err(Rejection::WrongRange);
        }
        Ok(Read::Key(Bytes::copy_from_slice(key)))
    }

    /// Checks that a scan begins in this range, and copies its bounds: the originals keep the
    /// receive buffer alive.
    fn check_scan(&self, mut scan: ScanRequest) -> Result<ScanRequest, Rejection> {
        let (start, end) = (&self.descriptor.start, &self.descriptor.end);
        let is_here = match (&scan.end, end) {
            _ if !scan.backward => self.descriptor.holds(&scan.begin),
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(before), None) => **before > **start,
            (Some(before), Some(end)) => **before > **start && **before <= **end,
        };
        if !is_here {
            return Err(Rejection::WrongRange);
        }
        scan.begin = Bytes::copy_from_slice(&scan.begin);
        scan.end = scan.end.map(|end| Bytes::copy_from_slice(&end));
        Ok(scan)
    }

    /// Queues a request until the protocol confirms that this replica still sequences the writes.
    pub(super) fn confirm(&mut self, confirmation: Confirmation) -> Result<Served, Rejection> {
        self.group.read_at_sequencer(self.reads.next_token()).map_err(refused)?;
        self.reads.confirm(confirmation);
        Ok(Served::Pending)
    }

    /// Continues a request whose check has succeeded: this replica still led when it was queued.
    pub(super) fn confirmed(&mut self, token: u64, turn: &mut Turn<'_>) {
        match self.reads.take(token) {
            Confirmation::Read { after, read } => self.read_once_applied(after, read, turn),
            Confirmation::Abort { origin, lost } => self.answer_aborted(origin, &lost, turn),
            Confirmation::SafeTime { to, index, closed_ts } => {
                self.answer_safe_time(to, index, closed_ts);
            }
        }
    }

    /// Rejects a request: this replica no longer leads, and it is unknown since when.
    pub(super) fn not_confirmed(&mut self, token: u64, turn: &mut Turn<'_>) {
        match self.reads.take(token) {
            Confirmation::Read { read: PendingRead { origin, .. }, .. }
            | Confirmation::Abort { origin, .. } => {
                turn.reject(origin, Rejection::NotServing { hint: None });
            }
            // The follower asks again.
            Confirmation::SafeTime { .. } => {}
        }
    }

    /// Answers a read, now or once the entry `after` is applied, and all others that are known to
    /// be committed.
    pub(super) fn read_once_applied(&mut self, after: u64, read: PendingRead, turn: &mut Turn<'_>) {
        let after = after.max(self.committed.back().map_or(0, |entry| entry.index));
        if after <= self.applied.index && turn.work.is_left() {
            self.answer_read(read, turn);
        } else {
            self.reads.wait(Barrier::Applied(after), read, u64::MAX);
        }
    }

    /// Answers the reads whose entries are applied. If this replica no longer holds proposals,
    /// rejects those whose entries are not committed, because these may never be applied.
    pub(super) fn answer_applied_reads(&mut self, turn: &mut Turn<'_>) {
        while turn.work.is_left()
            && let Some(read) = self.reads.next_applied(self.applied.index)
        {
            self.answer_read(read, turn);
        }
        if !self.group.holds_proposals() {
            for read in self.reads.take_uncommitted(self.group.commit_index()) {
                turn.reject(read.origin, Rejection::NotServing { hint: None });
            }
        }
    }

    pub(super) fn answer_read(&mut self, pending: PendingRead, turn: &mut Turn<'_>) {
        let PendingRead { origin, read, level } = pending;
        let outcome = match level {
            Level::Latest => self.read_newest(&read, turn.work),
            Level::AsOf(at_ts) => self.read_as_of(&read, at_ts, turn.work),
            Level::Locked(locked) => self.read_locked_span(&read, *locked, turn.work),
        };
        let waited_us = turn.now.monotonic_us.saturating_sub(origin.since_us);
        turn.metrics.read.record(waited_us);
        turn.metrics
            .done(SlowRequest::Read { range: self.descriptor.range, done_after_us: waited_us });
        turn.reply(origin, outcome);
    }

    fn read_locked_span(&self, read: &Read, locked: Locked, work: &mut Work) -> Outcome {
        let Locked { owner, grant, resume } = locked;
        if !self.transactions.is_held(owner, grant.token) {
            // The locks were lost meanwhile, so what the transaction read before may have changed.
            return Outcome::Rejected(Rejection::Aborted);
        }
        let mut found = self.read_newest(read, work);
        if let Outcome::Page { page, .. } = &mut found {
            page.resume = page.resume.take().or(resume);
        }
        if let Outcome::Value { basis, .. } | Outcome::Page { basis, .. } = &mut found {
            *basis = Basis::Locked(grant);
        }
        found
    }

    fn read_newest(&self, read: &Read, work: &mut Work) -> Outcome {
        let is_stale = self.config.planted.is(TestFault::StaleReads);
        match read {
            Read::Key(key) => self.applied.state.get(key, is_stale, work),
            Read::Span(scan) => self.applied.state.scan(scan, None, &self.descriptor, work),
        }
    }
}
