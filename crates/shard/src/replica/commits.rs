//! Orders commits, and locks what transactions read: the work of the replica that sequences the
//! writes. `transactions` explains the rules.

use bytes::Bytes;
use palisade_txn::{Attempt, CommitCommand, Priority, Span, Strength, Verdict};
use palisade_wire::{
    CommitRequest, LockClaim, Locking, MAX_LIFETIME_US, Outcome, Rejection, ScanRequest,
};

use super::{
    MAX_WAITING, Replica,
    pending_reads::{Confirmation, Level, Locked, PendingRead, Read},
    refused,
    transactions::{Claimed, Continued, PendingCommit},
};
use crate::{
    TestFault,
    log_room::Growth,
    state_machine::settled,
    turn::{RequestOrigin, Served, Turn},
};

/// A read that a transaction locks.
struct LockedRead {
    read: Read,
    /// The span to lock; `None` if it is empty.
    span: Option<Span>,
    /// Key at which the scan continues after the span.
    resume: Option<Bytes>,
}

impl Replica {
    /// Orders a commit, now or once it has its locks.
    pub(crate) fn commit(
        &mut self,
        origin: RequestOrigin,
        request: CommitRequest,
        claim: Option<LockClaim>,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        // A read-only transaction writes nothing; its commit checks that its locks are held.
        if claim.is_none() || !request.commit.is_empty() {
            request.commit.check()?;
        }
        if !request.commit.keys().all(|key| self.descriptor.holds(key)) {
            return Err(Rejection::WrongRange);
        }
        self.lead(turn)?;
        let fresh_ts = turn.hlc.tick(turn.now.wall);
        let mut attempt = Attempt::new(&request);
        if self.config.planted.is(TestFault::RunExpired) {
            attempt.expires_ts = palisade_clock::Timestamp::MAX;
        } else if turn.now.wall.beyond_us(attempt.expires_ts) > MAX_LIFETIME_US {
            return Err(Rejection::LifetimeTooLong);
        }
        if let Some(outcome) = settled(self.applied.state.look_up(&attempt, fresh_ts)) {
            return Ok(Served::Done(outcome));
        }
        let now_us = turn.now.monotonic_us;
        let owner = claim.map(|claim| claim.owner);
        let commit = PendingCommit { origin, request, owner };
        let priority = match claim {
            None if !self.transactions.has_locks() => return self.order(commit, turn),
            None => Priority { start_ts: fresh_ts, txn: commit.request.txn },
            Some(claim) => match self.transactions.claim(claim, commit.request.txn, now_us) {
                Claimed::Held { start_ts } => Priority { start_ts, txn: claim.owner },
                // The first copy of this commit is ordered and has released the locks, so this copy
                // must not run. A retry returns the outcome of the first copy.
                Claimed::Ordered => return Err(Rejection::Unknown),
                Claimed::Lost if self.config.planted.is(TestFault::TrustLostLocks) => {
                    return self.order(PendingCommit { owner: None, ..commit }, turn);
                }
                Claimed::Lost => return self.confirm_abort(origin, attempt),
            },
        };
        let result = match self.transactions.lock_commit(commit, priority, now_us)? {
            Some(commit) => self.order(commit, turn),
            None => Ok(Served::Pending),
        };
        self.continue_locked(turn);
        result
    }

    /// Appends a commit to the log, and releases its owner's locks: the log now defines the order.
    fn order(&mut self, commit: PendingCommit, turn: &mut Turn<'_>) -> Result<Served, Rejection> {
        let PendingCommit { origin, request, owner } = commit;
        if self.proposals.len() >= MAX_WAITING {
            return Err(Rejection::Overloaded);
        }
        match turn.growth {
            _ if !request.commit.writes_values() => {}
            Growth::Accepted => {}
            Growth::Later => return Err(Rejection::LogFull),
            Growth::Refused => {
                // The refusal is final, so the transaction needs its locks no more.
                self.transactions.end(owner);
                return Err(Rejection::StateTooLarge);
            }
        }
        let applied_ts = self.applied.state.last_ts();
        let proposed_ts = self.commit_timestamps.next(applied_ts, turn)?;
        let command = CommitCommand { proposed_ts, request };
        let at = self.group.propose(command.to_payload(), turn.context()).map_err(refused)?;
        self.proposals.push(at, origin, turn);
        self.commit_timestamps.ordered(proposed_ts);
        self.transactions.ordered(at.0, &command.request, owner);
        Ok(Served::Pending)
    }

    /// Aborts a transaction whose locks are lost, once its commit certainly took no effect.
    ///
    /// Its commit may have been ordered in an earlier term, or committed by a later leader that
    /// this replica does not know yet. So the abort is final only if all entries of earlier terms
    /// are applied and this replica still leads. A commit that is not applied by then never will
    /// be, because its claim is valid in its own term alone.
    fn confirm_abort(&mut self, origin: RequestOrigin, lost: Attempt) -> Result<Served, Rejection> {
        if self.applied.index < self.transactions.begun_at() {
            return Err(Rejection::NotServing { hint: None });
        }
        if self.config.planted.is(TestFault::UnconfirmedAborts) {
            return Err(Rejection::Aborted);
        }
        self.check_room()?;
        self.confirm(Confirmation::Abort { origin, lost })
    }

    /// Answers a commit whose locks are lost, under a confirmed leadership: with the outcome of an
    /// earlier copy, or as aborted.
    pub(super) fn answer_aborted(
        &self,
        origin: RequestOrigin,
        lost: &Attempt,
        turn: &mut Turn<'_>,
    ) {
        let state = &self.applied.state;
        let aborted = Outcome::Rejected(Rejection::Aborted);
        let outcome = match state.look_up(lost, state.last_ts()) {
            Verdict::New | Verdict::Full => aborted,
            known => settled(known).unwrap_or(aborted),
        };
        turn.reply(origin, outcome);
    }

    /// Starts a read of a key for a transaction, and locks the key.
    pub(super) fn locked_get(
        &mut self,
        origin: RequestOrigin,
        read: Read,
        locking: Locking,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        let Read::Key(key) = &read else { unreachable!("it reads a key") };
        let span = Some(Span::key(key));
        self.locked_read(origin, LockedRead { read, span, resume: None }, locking, turn)
    }

    /// Starts a scan for a transaction, and locks the span of the page.
    pub(super) fn locked_scan(
        &mut self,
        origin: RequestOrigin,
        mut scan: ScanRequest,
        locking: Locking,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        // Find where the page ends now. Only that span is locked, and then read under the lock.
        let found = self.applied.state.scan(&scan, None, &self.descriptor, turn.work);
        let Outcome::Page { page, .. } = found else { return Err(Rejection::WrongRange) };
        let (start, end) = (&self.descriptor.start, &self.descriptor.end);
        if **start > *scan.begin {
            scan.begin = Bytes::copy_from_slice(start);
        }
        if let Some(end) = end
            && scan.end.as_ref().is_none_or(|scan_end| **end < **scan_end)
        {
            scan.end = Some(Bytes::copy_from_slice(end));
        }
        let resume = page.resume;
        if let Some(resume) = &resume {
            if scan.backward {
                scan.begin = resume.clone().max(scan.begin);
            } else if scan.end.as_ref().is_none_or(|end| resume < end) {
                scan.end = Some(resume.clone());
            }
        }
        let span = Span { begin: scan.begin.clone(), end: scan.end.clone() };
        let span = Some(span).filter(|span| !span.is_empty());
        let read = Read::Span(Box::new(scan));
        self.locked_read(origin, LockedRead { read, span, resume }, locking, turn)
    }

    fn locked_read(
        &mut self,
        origin: RequestOrigin,
        read: LockedRead,
        locking: Locking,
        turn: &mut Turn<'_>,
    ) -> Result<Served, Rejection> {
        self.lead(turn)?;
        self.check_room()?;
        let Locking { claim, exclusive } = locking;
        let LockedRead { read, span, resume } = read;
        let now_us = turn.now.monotonic_us;
        let grant = self.transactions.enter(claim, turn.hlc.tick(turn.now.wall), now_us)?;
        let strength = if exclusive { Strength::Exclusive } else { Strength::Shared };
        let lock = span.map(|span| (span, strength));
        let priority = Priority { start_ts: grant.start_ts, txn: claim.owner };
        let level = Level::Locked(Box::new(Locked { owner: claim.owner, grant, resume }));
        let read = PendingRead { origin, read, level };
        if let Some(read) = self.transactions.lock_read(read, lock, priority, now_us)? {
            self.read_locked(read, turn);
        }
        self.continue_locked(turn);
        Ok(Served::Pending)
    }

    /// Answers a locked read once all writes ordered before it are applied and leadership is
    /// confirmed. What it reads must be true even if the transaction never commits: its caller may
    /// act on it.
    fn read_locked(&mut self, read: PendingRead, turn: &mut Turn<'_>) {
        let mut after = self.transactions.ordered_before(&read.read);
        if self.config.planted.is(TestFault::EarlyLockedReads) {
            after = 0;
        }
        if self.config.planted.is(TestFault::UnconfirmedLockedReads) {
            return self.read_once_applied(after, read, turn);
        }
        let origin = read.origin;
        if let Err(rejection) = self.confirm(Confirmation::Read { after, read }) {
            turn.reject(origin, rejection);
        }
    }

    /// Releases the locks of a transaction that commits nothing.
    pub(crate) fn rollback(&mut self, claim: LockClaim, turn: &mut Turn<'_>) -> Served {
        self.transactions.release(claim);
        self.continue_locked(turn);
        Served::Done(Outcome::RolledBack)
    }

    /// Rejects requests that have waited too long, and releases the locks of idle transactions.
    pub(super) fn expire_locks(&mut self, turn: &mut Turn<'_>) {
        self.transactions.expire(turn.now.monotonic_us);
        self.continue_locked(turn);
    }

    /// Continues the requests that have their locks now, and rejects those that will not get them.
    fn continue_locked(&mut self, turn: &mut Turn<'_>) {
        let now_us = turn.now.monotonic_us;
        while let Some((continued, since_us)) = self.transactions.next_continued() {
            turn.work.keys(1, 0);
            turn.metrics.lock_wait.record(now_us.saturating_sub(since_us));
            match continued {
                Continued::Read(read) => self.read_locked(read, turn),
                Continued::Commit(commit) => {
                    let origin = commit.origin;
                    if let Err(rejection) = self.order(commit, turn) {
                        turn.reject(origin, rejection);
                    }
                }
                Continued::Rejected(origin, rejection) => turn.reject(origin, rejection),
            }
        }
    }

    /// Checks that this replica sequences the writes. Resets the lock table if the term is new.
    pub(super) fn lead(&mut self, turn: &mut Turn<'_>) -> Result<(), Rejection> {
        if !self.group.orders_writes() {
            return Err(Rejection::NotServing { hint: self.group.leader() });
        }
        let term = self.group.term();
        if self.transactions.term() != Some(term) {
            self.stop_leading(turn);
            self.transactions.begin_term(term, self.group.last_index());
        }
        Ok(())
    }

    /// Drops all locks and rejects all waiting requests if leadership has ended.
    pub(super) fn check_leadership(&mut self, turn: &mut Turn<'_>) {
        let Some(term) = self.transactions.term() else { return };
        if term != self.group.term() || !self.group.holds_proposals() {
            self.stop_leading(turn);
        }
    }

    fn stop_leading(&mut self, turn: &mut Turn<'_>) {
        for origin in self.transactions.end_term() {
            turn.reject(origin, Rejection::NotServing { hint: None });
        }
    }
}
