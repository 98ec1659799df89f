//! Transactions at the replica that sequences the writes: its locks, and the requests that wait for
//! them.
//!
//! The problem: a transaction reads at the leader, computes, and commits later. What it read must
//! still be true at its commit's position in the log. If its locks were held until the commit is
//! replicated, every conflicting transaction would wait for a disk.
//!
//! So the log defines the order. An entry that writes a key is appended only while no other
//! transaction has a lock on that key. Every later entry comes after it in the log, so the
//! transaction's locks are released as soon as the entry is appended. Only a locked read must see
//! the entries ordered before it: it waits until the pending writes of its key are applied.
//!
//! A transaction at a deposed leader never commits. But its reads could still reach the caller, as
//! an error that the transaction's body derives from them. So locked reads are answered only once
//! leadership is confirmed.
//!
//! In a new term, reads wait and aborts are refused until all entries of earlier terms are applied.
//! Locks of earlier leaders are lost, and their tokens name another term. A transaction that shows
//! such a token is aborted, unless its commit is among the applied entries.
//!
//! Both modes work alike: a Raft leader uses its term, a chain's head its epoch.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use palisade_clock::{Hlc, Now, Timestamp};
use palisade_replication::Context;
use palisade_txn::{
    Attempt, CommitCommand, LockError, LockEvent, LockRequest, LockTable, Priority, Span, Strength,
    Verdict,
};
use palisade_wire::{
    CommitRequest, LockClaim, LockToken, Locking, MAX_LIFETIME_US, Outcome, Rejection, ScanRequest,
    TxnId,
};

use super::{
    Asker, MAX_WAITING, Replica, WaitingWrite,
    pending_writes::PendingWrites,
    reads::{Confirmation, Level, Locked, PendingRead, Read},
    refused,
};
use crate::{TestFault, state_machine::settled};

/// How long a request may wait for locks, in microseconds.
const MAX_LOCK_WAIT_US: u64 = 4_000_000;

/// Bytes of commits that may wait for locks at one replica.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// State of a replica while it sequences the writes of its range.
#[derive(Debug)]
pub(super) struct Transactions {
    /// The term or epoch in which this replica sequences the writes, or `None`.
    term: Option<u64>,
    /// Entries up to this index may be of earlier terms.
    begun_at: u64,
    /// The last timestamp assigned to a commit here.
    issued_ts: Timestamp,
    locks: LockTable,
    next_ticket: u64,
    /// Requests that wait for locks, by ticket.
    waiting: BTreeMap<u64, Step>,
    waiting_bytes: usize,
    pending_writes: PendingWrites,
    /// Commits with locks that are ordered but not applied, by entry index.
    ordered: VecDeque<(u64, TxnId)>,
}

/// A request that continues once it has its locks.
#[derive(Debug)]
enum Step {
    Read(PendingRead),
    Commit { asker: Asker, request: CommitRequest, owner: Option<TxnId> },
}

/// State of the locks that a commit relies on.
enum Claimed {
    /// The locks are held. `start_ts` is when the transaction's first try began.
    Held { start_ts: Timestamp },
    /// A copy of the commit is ordered already, and has released the locks.
    Ordered,
    /// The locks are not held.
    Lost,
}

impl Transactions {
    pub(super) fn new(first_token: u64) -> Self {
        Self {
            term: None,
            begun_at: 0,
            issued_ts: Timestamp::ZERO,
            locks: LockTable::new(first_token),
            next_ticket: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            pending_writes: PendingWrites::default(),
            ordered: VecDeque::new(),
        }
    }

    pub(super) fn wants_ticks(&self) -> bool {
        !self.locks.is_empty()
    }

    /// Returns true if no request waits for locks.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn take(&mut self, ticket: u64) -> Option<Step> {
        let step = self.waiting.remove(&ticket)?;
        if let Step::Commit { request, .. } = &step {
            self.waiting_bytes -= request.commit.bytes();
        }
        Some(step)
    }

    fn is_ordered(&self, txn: TxnId) -> bool {
        self.ordered.iter().any(|(_, ordered)| *ordered == txn)
    }

    /// Returns true if a transaction still has all the locks that it was granted.
    pub(super) fn has_locks(&self, owner: TxnId, token: LockToken) -> bool {
        self.locks.is_held(owner, token)
    }

    /// Returns the index of the last entry that a read of the latest state must see: a pending
    /// write of what is read, or the last entry of an earlier term.
    pub(super) fn ordered_before(&self, read: &Read) -> u64 {
        let pending = match read {
            Read::Key(key) => self.pending_writes.last_of_key(key),
            Read::Span(_) => self.pending_writes.last(),
        };
        pending.max(self.begun_at)
    }
}

impl Replica {
    /// Orders a commit, now or once it has its locks, or returns an immediate outcome as `Err`.
    pub(crate) fn commit(
        &mut self,
        asker: Asker,
        request: CommitRequest,
        claim: Option<LockClaim>,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        // A read-only transaction writes nothing; its commit checks that its locks are held.
        if claim.is_none() || !request.commit.is_empty() {
            request.commit.check().map_err(Outcome::Rejected)?;
        }
        if !request.commit.keys().all(|key| self.descriptor.holds(key)) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        self.lead()?;
        let fresh_ts = hlc.tick(now.wall);
        let mut attempt = Attempt::new(&request);
        if self.planted.is(TestFault::RunExpired) {
            attempt.expires_ts = Timestamp::MAX;
        } else if now.wall.beyond_us(attempt.expires_ts) > MAX_LIFETIME_US {
            return Err(Outcome::Rejected(Rejection::LifetimeTooLong));
        }
        if let Some(outcome) = settled(self.state.look_up(&attempt, fresh_ts)) {
            return Err(outcome);
        }
        let priority = match claim {
            None if self.transactions.locks.is_empty() => {
                return self.order(asker, request, None, hlc, now, cx);
            }
            None => Priority { start_ts: fresh_ts, txn: request.txn },
            Some(claim) => match self.check_claim(claim, request.txn, now) {
                Claimed::Held { start_ts } => Priority { start_ts, txn: claim.owner },
                // The first copy of this commit is ordered and has released the locks, so this copy
                // must not run. A retry returns the outcome of the first copy.
                Claimed::Ordered => return Err(Outcome::Rejected(Rejection::Unknown)),
                Claimed::Lost if self.planted.is(TestFault::TrustLostLocks) => {
                    return self.order(asker, request, None, hlc, now, cx);
                }
                Claimed::Lost => return self.confirm_abort(asker, attempt),
            },
        };
        let mut keys: Vec<_> = request.commit.writes.iter().map(|write| &write.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let wants = keys.into_iter().map(|key| (Span::key(key), Strength::Exclusive));
        let owner = claim.map(|claim| claim.owner);
        let ticket = self.transactions.ticket();
        let locks = LockRequest {
            ticket,
            priority,
            keeps: owner.is_some(),
            wants: wants.collect(),
            deadline_us: now.monotonic_us + MAX_LOCK_WAIT_US,
        };
        let bytes = request.commit.bytes();
        if self.transactions.waiting_bytes + bytes > MAX_WAITING_BYTES {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        let result = if self.lock(locks)? {
            self.order(asker, request, owner, hlc, now, cx)
        } else {
            // Copy the commit: while it waits, it must not keep its receive buffer alive.
            let request = CommitRequest { commit: request.commit.detached(), ..request };
            self.transactions.waiting_bytes += bytes;
            self.transactions.waiting.insert(ticket, Step::Commit { asker, request, owner });
            Ok(())
        };
        self.act_on_locks(hlc, now, cx);
        result
    }

    /// Returns the state of the locks that a commit relies on.
    fn check_claim(&mut self, claim: LockClaim, txn: TxnId, now: Now) -> Claimed {
        let fresh_ts = claim.start_ts.unwrap_or_default();
        let entered = match claim.token {
            Some(_) => self.transactions.locks.enter(claim, fresh_ts, now.monotonic_us),
            None => Err(LockError::Lost),
        };
        match entered {
            Ok(grant) => Claimed::Held { start_ts: grant.start_ts },
            Err(_) if self.transactions.is_ordered(txn) => Claimed::Ordered,
            Err(_) => Claimed::Lost,
        }
    }

    /// Aborts a transaction whose locks are lost, once its commit certainly took no effect.
    ///
    /// Its commit may have been ordered in an earlier term, or committed by a later leader that
    /// this replica does not know yet. So the abort is final only if all entries of earlier terms
    /// are applied and this replica still leads. A commit that is not applied by then never will
    /// be, because its claim is valid in its own term alone.
    fn confirm_abort(&mut self, asker: Asker, lost: Attempt) -> Result<(), Outcome> {
        if self.applied_index < self.transactions.begun_at {
            return Err(Outcome::Rejected(Rejection::NotServing { hint: None }));
        }
        if self.planted.is(TestFault::UnconfirmedAborts) {
            return Err(Outcome::Rejected(Rejection::Aborted));
        }
        self.check_room()?;
        self.confirm(Confirmation::Abort { asker, lost })
    }

    /// Answers a commit whose locks are lost, under a confirmed leadership: with the outcome of an
    /// earlier copy, or as aborted.
    pub(super) fn answer_aborted(&mut self, asker: Asker, lost: &Attempt) {
        let aborted = Outcome::Rejected(Rejection::Aborted);
        let outcome = match self.state.look_up(lost, self.state.last_ts()) {
            Verdict::New | Verdict::Full => aborted,
            known => settled(known).unwrap_or(aborted),
        };
        self.answers.push((asker, outcome));
    }

    /// Starts a read of a key for a transaction, and locks the key.
    pub(crate) fn locked_get(
        &mut self,
        asker: Asker,
        key: &[u8],
        locking: Locking,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        let read = self.read_of_key(key)?;
        self.locked_read(asker, locking, Some(Span::key(key)), read, None, hlc, now, cx)
    }

    /// Starts a scan for a transaction, and locks the span of the page.
    pub(crate) fn locked_scan(
        &mut self,
        asker: Asker,
        scan: ScanRequest,
        locking: Locking,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        let mut scan = self.check_scan(scan)?;
        // Find where the page ends now. Only that span is locked, and then read under the lock.
        let Outcome::Page { page, .. } = self.state.scan(&scan, None, &self.descriptor) else {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        };
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
        self.locked_read(asker, locking, span, read, resume, hlc, now, cx)
    }

    #[allow(clippy::too_many_arguments, reason = "what is read, for whom, and when")]
    fn locked_read(
        &mut self,
        asker: Asker,
        locking: Locking,
        span: Option<Span>,
        read: Read,
        resume: Option<Bytes>,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        self.lead()?;
        self.check_room()?;
        let Locking { claim, exclusive } = locking;
        let entered = self.transactions.locks.enter(claim, hlc.tick(now.wall), now.monotonic_us);
        let grant = entered.map_err(lock_error)?;
        let strength = if exclusive { Strength::Exclusive } else { Strength::Shared };
        let ticket = self.transactions.ticket();
        let request = LockRequest {
            ticket,
            priority: Priority { start_ts: grant.start_ts, txn: claim.owner },
            keeps: true,
            wants: span.into_iter().map(|span| (span, strength)).collect(),
            deadline_us: now.monotonic_us + MAX_LOCK_WAIT_US,
        };
        let level = Level::Locked(Box::new(Locked { owner: claim.owner, grant, resume }));
        let read = PendingRead { asker, read, level };
        if self.lock(request)? {
            self.read_locked(read);
        } else {
            self.transactions.waiting.insert(ticket, Step::Read(read));
        }
        self.act_on_locks(hlc, now, cx);
        Ok(())
    }

    /// Releases the locks of a transaction that commits nothing.
    pub(crate) fn rollback(
        &mut self,
        claim: LockClaim,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Outcome {
        // A client without a token may own locks: the reply with the token may not have arrived.
        let locks = &mut self.transactions.locks;
        if claim.token.is_none_or(|token| locks.is_held(claim.owner, token)) {
            locks.release(claim.owner);
            self.act_on_locks(hlc, now, cx);
        }
        Outcome::RolledBack
    }

    /// Rejects requests that have waited too long, and releases the locks of idle transactions.
    pub(super) fn expire_locks(&mut self, hlc: &mut Hlc, now: Now, cx: Context<'_>) {
        if self.transactions.wants_ticks() {
            self.transactions.locks.expire(now.monotonic_us);
            self.act_on_locks(hlc, now, cx);
        }
    }

    /// Checks that this replica sequences the writes. Resets the lock table if the term is new.
    pub(super) fn lead(&mut self) -> Result<(), Outcome> {
        if !self.group.orders_writes() {
            let hint = self.group.leader();
            return Err(Outcome::Rejected(Rejection::NotServing { hint }));
        }
        let term = self.group.term();
        if self.transactions.term != Some(term) {
            self.stop_leading();
            self.transactions.term = Some(term);
            self.transactions.locks.begin_term(term);
            self.transactions.begun_at = self.group.last_index();
        }
        Ok(())
    }

    /// Drops all locks and rejects all waiting requests if leadership has ended.
    pub(super) fn check_leadership(&mut self) {
        let is_same = self.transactions.term == Some(self.group.term());
        if self.transactions.term.is_some() && !(is_same && self.group.holds_proposals()) {
            self.stop_leading();
        }
    }

    fn stop_leading(&mut self) {
        let it = &mut self.transactions;
        it.term = None;
        it.locks.end_term();
        it.waiting_bytes = 0;
        it.pending_writes.clear();
        it.ordered.clear();
        let waiting = std::mem::take(&mut it.waiting).into_values();
        let outcome = Outcome::Rejected(Rejection::NotServing { hint: None });
        let askers = waiting.map(|step| match step {
            Step::Read(read) => read.asker,
            Step::Commit { asker, .. } => asker,
        });
        for asker in askers {
            self.answers.push((asker, outcome.clone()));
        }
    }

    fn lock(&mut self, request: LockRequest) -> Result<bool, Outcome> {
        if self.planted.is(TestFault::IgnoreLocks) {
            return Ok(true);
        }
        self.transactions.locks.request(request).map_err(lock_error)
    }

    /// Continues the requests that have their locks now, and rejects those that will not get them.
    fn act_on_locks(&mut self, hlc: &mut Hlc, now: Now, cx: Context<'_>) {
        while let Some((ticket, event)) = self.transactions.locks.next_event() {
            let step =
                self.transactions.take(ticket).expect("a request that waits for locks is known");
            let refused = match (event, step) {
                (LockEvent::Granted, Step::Read(read)) => {
                    self.read_locked(read);
                    continue;
                }
                (LockEvent::Granted, Step::Commit { asker, request, owner }) => self
                    .order(asker, request, owner, hlc, now, cx)
                    .map_err(|outcome| (asker, outcome)),
                // The locks were released when the first copy was ordered.
                (LockEvent::Wounded, Step::Commit { asker, request, .. })
                    if self.transactions.is_ordered(request.txn) =>
                {
                    Err((asker, Outcome::Rejected(Rejection::Unknown)))
                }
                (
                    LockEvent::Wounded,
                    Step::Read(PendingRead { asker, .. }) | Step::Commit { asker, .. },
                ) => Err((asker, Outcome::Rejected(Rejection::Aborted))),
                (
                    LockEvent::TimedOut,
                    Step::Read(PendingRead { asker, .. }) | Step::Commit { asker, .. },
                ) => Err((asker, Outcome::Rejected(Rejection::Locked))),
            };
            self.answers.extend(refused.err());
        }
    }

    /// Appends a commit to the log, and releases its owner's locks: the log now defines the order.
    fn order(
        &mut self,
        asker: Asker,
        request: CommitRequest,
        owner: Option<TxnId>,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        if self.writes.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        let txn = request.txn;
        // The commit may have waited. Its timestamp must not be below true time now.
        let issued_ts = self.transactions.issued_ts.max(self.state.last_ts());
        let proposed_ts = hlc
            .commit_ts(now.wall, issued_ts)
            .map_err(|_| Outcome::Rejected(Rejection::ClockUncertain))?;
        let command = CommitCommand { proposed_ts, request };
        let (index, term) = self.group.propose(command.to_payload(), cx).map_err(refused)?;
        self.transactions.issued_ts = proposed_ts;
        self.writes.push_back(WaitingWrite { index, term, asker });
        for write in &command.request.commit.writes {
            self.transactions.pending_writes.push(index, &write.key);
        }
        if let Some(owner) = owner {
            self.transactions.ordered.push_back((index, txn));
            self.transactions.locks.release(owner);
        }
        Ok(())
    }

    /// Answers a locked read once all writes ordered before it are applied and leadership is
    /// confirmed. What it reads must be true even if the transaction never commits: its caller may
    /// act on it.
    fn read_locked(&mut self, read: PendingRead) {
        let mut after = self.transactions.ordered_before(&read.read);
        if self.planted.is(TestFault::EarlyLockedReads) {
            after = 0;
        }
        if self.planted.is(TestFault::UnconfirmedLockedReads) {
            return self.read_once_applied(after, read);
        }
        let asker = read.asker;
        let begun = self.confirm(Confirmation::Read { after, read });
        self.answers.extend(begun.err().map(|outcome| (asker, outcome)));
    }

    /// Removes applied entries: reads no longer wait for them.
    pub(super) fn forget_applied_writes(&mut self) {
        let applied = self.applied_index;
        let it = &mut self.transactions;
        it.pending_writes.applied(applied);
        while it.ordered.pop_front_if(|(index, _)| *index <= applied).is_some() {}
    }
}

fn lock_error(error: LockError) -> Outcome {
    Outcome::Rejected(match error {
        LockError::Lost => Rejection::Aborted,
        LockError::Full => Rejection::Locked,
    })
}
