//! Transactions at the replica that orders the range's writes: its locks, and what waits for them.
//!
//! The problem: a transaction reads at the leader, thinks, and commits later; what it read must still
//! be so where its commit stands in the log. The naive way, to hold its locks until the commit is
//! replicated, makes everybody wait for a disk.
//!
//! Here the log is the order. Whatever writes a key is put into the log only when nobody else has a
//! lock on that key; once it stands there, whatever is ordered after it stands after it, so its
//! locks are let go at once. Only a locked read may not look at the state before what was ordered
//! earlier is applied: it waits for the writes of its key that are still under way.
//!
//! Nobody asks whether the leader still leads: a commit of one that does not is never committed, and
//! what it read does not matter. A leader that has just begun waits until everything before its own
//! term is applied; locks of earlier leaders are gone, and with them the tokens that prove them, so
//! that their transactions end here, unless their commit is among what was applied.
//!
//! The same for both modes: a Raft leader by its term, a chain's head by its epoch.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use palisade_clock::{Hlc, Now, Timestamp};
use palisade_replication::Context;
use palisade_txn::{
    CommitCommand, LockError, LockEvent, LockRequest, LockTable, Priority, Span, Strength,
};
use palisade_wire::{
    Basis, CommitRequest, LockClaim, LockGrant, Locking, Outcome, Rejection, ScanRequest, TxnId,
};

use super::{Asker, MAX_WAITING, Read, Replica, WaitingWrite, refused};
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
    locks: LockTable,
    next_ticket: u64,
    /// Who waits for locks, by ticket.
    waiting: BTreeMap<u64, Step>,
    waiting_bytes: usize,
    /// Locked reads that wait for an entry to be applied, by its index and their ticket.
    reads: BTreeMap<(u64, u64), LockedRead>,
    /// Keys that are written by entries which are not applied yet: index and hash.
    under_way: VecDeque<(u64, u32)>,
    /// Commits with locks that are not applied yet.
    ordered: VecDeque<(u64, TxnId)>,
}

/// What is done once its locks are there.
#[derive(Debug)]
enum Step {
    Read(LockedRead),
    Commit { asker: Asker, request: CommitRequest, owner: Option<TxnId> },
}

#[derive(Debug)]
struct LockedRead {
    asker: Asker,
    owner: TxnId,
    grant: LockGrant,
    read: Read,
    /// Where the scan goes on after the span that is locked.
    resume: Option<Bytes>,
}

impl Transactions {
    pub(super) fn new(first_token: u64) -> Self {
        Self {
            term: None,
            begun_at: 0,
            locks: LockTable::new(first_token),
            next_ticket: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            reads: BTreeMap::new(),
            under_way: VecDeque::new(),
            ordered: VecDeque::new(),
        }
    }

    pub(super) fn wants_ticks(&self) -> bool {
        !self.locks.is_empty()
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.reads.is_empty()
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

    /// The last entry under way that writes what is read.
    fn last_write_of(&self, read: &Read) -> u64 {
        let last = match read {
            Read::Key(key) => {
                let hash = crc32fast::hash(key);
                self.under_way.iter().rev().find(|(_, other)| *other == hash)
            }
            Read::Span(_) => self.under_way.back(),
        };
        last.map_or(0, |(index, _)| *index)
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
        if let Some(outcome) = settled(self.state.look_up(&request, fresh_ts)) {
            return Err(outcome);
        }
        let priority = match claim {
            None if self.transactions.locks.is_empty() => {
                return self.order(asker, request, None, hlc, now, cx);
            }
            None => Priority { start_ts: fresh_ts, txn: request.txn },
            Some(claim) => match self.check_claim(claim, request.txn, now)? {
                Some(start_ts) => Priority { start_ts, txn: claim.owner },
                // What was ordered first is the one that counts.
                None => return self.order(asker, request, None, hlc, now, cx),
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

    /// When a transaction that commits began; or `None` if its commit is ordered already.
    fn check_claim(
        &mut self,
        claim: LockClaim,
        txn: TxnId,
        now: Now,
    ) -> Result<Option<Timestamp>, Outcome> {
        let fresh_ts = claim.start_ts.unwrap_or_default();
        let entered = match claim.token {
            Some(_) => self.transactions.locks.enter(claim, fresh_ts, now.monotonic_us),
            None => Err(LockError::Lost),
        };
        match entered {
            Ok(grant) => return Ok(Some(grant.start_ts)),
            Err(_) if self.transactions.is_ordered(txn) => return Ok(None),
            Err(_) if self.fault == Some(TestFault::TrustLostLocks) => return Ok(None),
            Err(_) => {}
        }
        // An earlier leader may have ordered it: that will be seen once its entries are applied.
        if self.applied_index < self.transactions.begun_at {
            return Err(Outcome::Rejected(Rejection::NotServing { hint: None }));
        }
        Err(Outcome::Rejected(Rejection::Aborted))
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
        if self.transactions.reads.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
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
        let read = LockedRead { asker, owner: claim.owner, grant, read, resume };
        if self.lock(request)? {
            self.read_locked(ticket, read);
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
    fn lead(&mut self) -> Result<(), Outcome> {
        if !self.group.orders_writes() {
            let hint = self.group.leader();
            return Err(Outcome::Rejected(Rejection::NotServing { hint }));
        }
        let term = self.group.term();
        if self.transactions.term != Some(term) {
            self.stop_leading();
            self.transactions.term = Some(term);
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
        it.locks.clear();
        it.waiting_bytes = 0;
        it.under_way.clear();
        it.ordered.clear();
        let waiting = std::mem::take(&mut it.waiting).into_values();
        let reads = std::mem::take(&mut it.reads).into_values();
        let outcome = Outcome::Rejected(Rejection::NotServing { hint: None });
        let askers = waiting.map(|step| match step {
            Step::Read(read) => read.asker,
            Step::Commit { asker, .. } => asker,
        });
        for asker in askers.chain(reads.map(|read| read.asker)) {
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
                    self.read_locked(ticket, read);
                    continue;
                }
                (LockEvent::Granted, Step::Commit { asker, request, owner }) => self
                    .order(asker, request, owner, hlc, now, cx)
                    .map_err(|outcome| (asker, outcome)),
                // Its locks are gone because its first copy is ordered.
                (LockEvent::Wounded, Step::Commit { asker, request, .. })
                    if self.transactions.is_ordered(request.txn) =>
                {
                    self.order(asker, request, None, hlc, now, cx)
                        .map_err(|outcome| (asker, outcome))
                }
                (
                    LockEvent::Wounded,
                    Step::Read(LockedRead { asker, .. }) | Step::Commit { asker, .. },
                ) => Err((asker, Outcome::Rejected(Rejection::Aborted))),
                (
                    LockEvent::TimedOut,
                    Step::Read(LockedRead { asker, .. }) | Step::Commit { asker, .. },
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
        let proposed_ts =
            hlc.tick_commit(now.wall).map_err(|_| Outcome::Rejected(Rejection::ClockUncertain))?;
        let command = CommitCommand { proposed_ts, request };
        let (index, term) = self.group.propose(command.to_payload(), cx).map_err(refused)?;
        self.writes.push_back(WaitingWrite { index, term, asker });
        let writes = &command.request.commit.writes;
        let hashes = writes.iter().map(|write| (index, crc32fast::hash(&write.key)));
        self.transactions.under_way.extend(hashes);
        if let Some(owner) = owner {
            self.transactions.ordered.push_back((index, txn));
            self.transactions.locks.release(owner);
        }
        Ok(())
    }

    /// Reads what is locked, once everything that was ordered before is applied.
    fn read_locked(&mut self, ticket: u64, read: LockedRead) {
        let mut after = self.transactions.last_write_of(&read.read).max(self.transactions.begun_at);
        if self.fault == Some(TestFault::EarlyLockedReads) {
            after = 0;
        }
        if self.applied_index >= after {
            self.answer_locked(read);
        } else {
            self.transactions.reads.insert((after, ticket), read);
        }
    }

    /// Entries were applied: locked reads that waited for them can be answered.
    pub(super) fn answer_locked_reads(&mut self) {
        let applied = self.applied_index;
        let it = &mut self.transactions;
        while it.under_way.pop_front_if(|(index, _)| *index <= applied).is_some() {}
        while it.ordered.pop_front_if(|(index, _)| *index <= applied).is_some() {}
        while let Some(first) = self.transactions.reads.first_entry()
            && first.key().0 <= applied
        {
            let read = first.remove();
            self.answer_locked(read);
        }
    }

    fn answer_locked(&mut self, locked: LockedRead) {
        let LockedRead { asker, owner, grant, read, resume } = locked;
        // What was read before may have changed since, if the locks are gone.
        let outcome = if self.transactions.locks.is_held(owner, grant.token) {
            let mut found = match read {
                Read::Key(key) => self.state.get(&key, false),
                Read::Span(scan) => self.state.scan(&scan, None, &self.descriptor),
            };
            if let Outcome::Page { page, .. } = &mut found {
                page.resume = page.resume.take().or(resume);
            }
            if let Outcome::Value { basis, .. } | Outcome::Page { basis, .. } = &mut found {
                *basis = Basis::Locked(grant);
            }
            found
        } else {
            Outcome::Rejected(Rejection::Aborted)
        };
        self.answers.push((asker, outcome));
    }
}

fn lock_error(error: LockError) -> Outcome {
    Outcome::Rejected(match error {
        LockError::Lost => Rejection::Aborted,
        LockError::Full => Rejection::Locked,
    })
}
