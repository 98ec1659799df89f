//! Transactions at the replica that orders the range's writes: its locks, and what waits for them.
//!
//! The problem: a transaction reads at the leader, thinks, and commits later; what it read must
//! still be so where its commit stands in the log. The naive way, to hold its locks until the
//! commit is replicated, makes everybody wait for a disk.
//!
//! Here the log is the order. Whatever writes a key is put into the log only when nobody else has a
//! lock on that key; once it stands there, whatever is ordered after it stands after it, so its
//! locks are let go at once. Only a locked read may not look at the state before what was ordered
//! earlier is applied: it waits for the pending writes of its key.
//!
//! A commit of a leader that does not lead any more is never committed. What it read could still
//! reach its caller, as an error that the transaction's body derives from it. So locked reads are
//! answered only under a confirmed leadership.
//!
//! A leader that has just begun waits until everything before its own term is applied. Locks of
//! earlier leaders are gone, and their tokens name another term: a transaction that shows one is
//! aborted, unless its commit is among what was applied.
//!
//! The same for both modes: a Raft leader by its term, a chain's head by its epoch.

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

/// How long a request may wait for locks.
const MAX_LOCK_WAIT_US: u64 = 4_000_000;

/// Bytes of commits that may wait for locks.
const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;

/// What a replica knows of transactions while it orders the writes of its range.
#[derive(Debug)]
pub(super) struct Transactions {
    /// The term or epoch in which it does; `None` while it does not.
    term: Option<u64>,
    /// Entries up to this one may be of earlier terms.
    begun_at: u64,
    /// The last timestamp that was given to a commit here.
    issued_ts: Timestamp,
    locks: LockTable,
    next_ticket: u64,
    /// Who waits for locks, by ticket.
    waiting: BTreeMap<u64, Step>,
    waiting_bytes: usize,
    pending_writes: PendingWrites,
    /// Commits with locks that are not applied yet.
    ordered: VecDeque<(u64, TxnId)>,
}

/// What is done once its locks are there.
#[derive(Debug)]
enum Step {
    Read(PendingRead),
    Commit { asker: Asker, request: CommitRequest, owner: Option<TxnId> },
}

/// What a leader knows of the locks that a commit relies on.
enum Claimed {
    /// They are held. `start_ts` is when the transaction's first try began.
    Held { start_ts: Timestamp },
    /// The commit is ordered already: its locks have done their part.
    Ordered,
    /// They are not held.
    Lost,
    /// They are not held, and the commit is ordered all the same: a planted fault.
    Unlocked,
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

    /// Whether nobody waits for an answer.
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

    /// Whether a transaction has all the locks that it was granted.
    pub(super) fn has_locks(&self, owner: TxnId, token: LockToken) -> bool {
        self.locks.is_held(owner, token)
    }

    /// The last entry that a read of the latest state must see: one of an earlier term, or a
    /// pending write of what is read.
    pub(super) fn ordered_before(&self, read: &Read) -> u64 {
        let pending = match read {
            Read::Key(key) => self.pending_writes.last_of_key(key),
            Read::Span(_) => self.pending_writes.last(),
        };
        pending.max(self.begun_at)
    }
}

impl Replica {
    /// Orders a commit, now or once it has its locks, or says at once why not.
    pub(crate) fn commit(
        &mut self,
        asker: Asker,
        request: CommitRequest,
        claim: Option<LockClaim>,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        // A transaction that only read has nothing to write, and its locks to show.
        if claim.is_none() || !request.commit.is_empty() {
            request.commit.check().map_err(Outcome::Rejected)?;
        }
        if !request.commit.keys().all(|key| self.descriptor.holds(key)) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        self.lead()?;
        let fresh_ts = hlc.tick(now.wall);
        let mut attempt = Attempt::new(&request);
        if self.fault == Some(TestFault::RunExpired) {
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
                // Its locks are gone: only the copy that was ordered may run. A retry meets what
                // became of it.
                Claimed::Ordered => return Err(Outcome::Rejected(Rejection::Unknown)),
                Claimed::Lost => return self.confirm_abort(asker, attempt),
                Claimed::Unlocked => return self.order(asker, request, None, hlc, now, cx),
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
            // What waits must not keep the memory of everything that arrived with it.
            let request = CommitRequest { commit: request.commit.detached(), ..request };
            self.transactions.waiting_bytes += bytes;
            self.transactions.waiting.insert(ticket, Step::Commit { asker, request, owner });
            Ok(())
        };
        self.act_on_locks(hlc, now, cx);
        result
    }

    /// Whether a transaction that commits still has its locks.
    fn check_claim(&mut self, claim: LockClaim, txn: TxnId, now: Now) -> Claimed {
        let fresh_ts = claim.start_ts.unwrap_or_default();
        let entered = match claim.token {
            Some(_) => self.transactions.locks.enter(claim, fresh_ts, now.monotonic_us),
            None => Err(LockError::Lost),
        };
        match entered {
            Ok(grant) => Claimed::Held { start_ts: grant.start_ts },
            Err(_) if self.transactions.is_ordered(txn) => Claimed::Ordered,
            Err(_) if self.fault == Some(TestFault::TrustLostLocks) => Claimed::Unlocked,
            Err(_) => Claimed::Lost,
        }
    }

    /// Answers a transaction whose locks are lost, once that is certain.
    ///
    /// Its commit may have been ordered in an earlier term, or be committed by a later leader that
    /// this one has not heard of. So it is aborted for good only if everything of earlier terms is
    /// applied, and if this replica still leads. A commit that is not among what is applied then
    /// never will be: its claim holds in its own term alone.
    fn confirm_abort(&mut self, asker: Asker, lost: Attempt) -> Result<(), Outcome> {
        if self.applied_index < self.transactions.begun_at {
            return Err(Outcome::Rejected(Rejection::NotServing { hint: None }));
        }
        if self.fault == Some(TestFault::UnconfirmedAborts) {
            return Err(Outcome::Rejected(Rejection::Aborted));
        }
        self.check_room()?;
        self.confirm(Confirmation::Abort { asker, lost })
    }

    /// This replica has led since a transaction whose locks are lost asked to commit.
    pub(super) fn answer_aborted(&mut self, asker: Asker, lost: &Attempt) {
        let aborted = Outcome::Rejected(Rejection::Aborted);
        let outcome = match self.state.look_up(lost, self.state.last_ts()) {
            Verdict::New | Verdict::Full => aborted,
            known => settled(known).unwrap_or(aborted),
        };
        self.answers.push((asker, outcome));
    }

    /// Begins a read of a key for a transaction, which then has it locked.
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

    /// Begins a scan for a transaction, which then has the page locked.
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
        // As far as the page goes now: that much is locked, and then read.
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

    /// Ends a transaction that commits nothing.
    pub(crate) fn rollback(
        &mut self,
        claim: LockClaim,
        hlc: &mut Hlc,
        now: Now,
        cx: Context<'_>,
    ) -> Outcome {
        // Who has no token yet may not know that it has locks.
        let locks = &mut self.transactions.locks;
        if claim.token.is_none_or(|token| locks.is_held(claim.owner, token)) {
            locks.release(claim.owner);
            self.act_on_locks(hlc, now, cx);
        }
        Outcome::RolledBack
    }

    /// Time has passed: whoever waited or did nothing for too long is told, or forgotten.
    pub(super) fn expire_locks(&mut self, hlc: &mut Hlc, now: Now, cx: Context<'_>) {
        if self.transactions.wants_ticks() {
            self.transactions.locks.expire(now.monotonic_us);
            self.act_on_locks(hlc, now, cx);
        }
    }

    /// Makes sure that this replica orders the writes, and notices a new beginning.
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

    /// If leadership has ended, so have all locks.
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
        if self.fault == Some(TestFault::IgnoreLocks) {
            return Ok(true);
        }
        self.transactions.locks.request(request).map_err(lock_error)
    }

    /// Does what those waited for who have their locks now, and tells those who won't get them.
    fn act_on_locks(&mut self, hlc: &mut Hlc, now: Now, cx: Context<'_>) {
        while let Some((ticket, event)) = self.transactions.locks.next_event() {
            let step = self.transactions.take(ticket).expect("whoever waits for locks is known");
            let refused = match (event, step) {
                (LockEvent::Granted, Step::Read(read)) => {
                    self.read_locked(read);
                    continue;
                }
                (LockEvent::Granted, Step::Commit { asker, request, owner }) => self
                    .order(asker, request, owner, hlc, now, cx)
                    .map_err(|outcome| (asker, outcome)),
                // Its locks are gone because its first copy is ordered.
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

    /// Puts a commit into the log. The locks of its owner have done their part then.
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
        // Above what true time may be now, not when it was asked for: it may have waited.
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

    /// Reads what is locked, once everything that was ordered before is applied, and if this
    /// replica still leads: what a transaction concludes from its reads must hold even if it never
    /// commits.
    fn read_locked(&mut self, read: PendingRead) {
        let mut after = self.transactions.ordered_before(&read.read);
        if self.fault == Some(TestFault::EarlyLockedReads) {
            after = 0;
        }
        if self.fault == Some(TestFault::UnconfirmedLockedReads) {
            return self.read_once_applied(after, read);
        }
        let asker = read.asker;
        let begun = self.confirm(Confirmation::Read { after, read });
        self.answers.extend(begun.err().map(|outcome| (asker, outcome)));
    }

    /// Entries were applied: reads need not wait for them any more.
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
