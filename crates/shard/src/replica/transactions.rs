//! The locks of transactions at the replica that sequences the writes, and the requests that wait
//! for them.
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

use palisade_clock::Timestamp;
use palisade_replication::Planted;
use palisade_txn::{LockError, LockEvent, LockRequest, LockTable, Priority, Span, Strength};
use palisade_wire::{CommitRequest, LockClaim, LockGrant, LockToken, Rejection, TxnId};

use super::{
    pending_reads::{PendingRead, Read},
    pending_writes::PendingWrites,
};
use crate::{TestFault, turn::RequestOrigin};

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
    locks: LockTable,
    next_ticket: u64,
    /// Requests that wait for locks, by ticket, and since when on the monotonic clock.
    waiting: BTreeMap<u64, (Step, u64)>,
    waiting_bytes: usize,
    pending_writes: PendingWrites,
    /// Commits with locks that are ordered but not applied, by entry index.
    ordered: VecDeque<(u64, TxnId)>,
    planted: Planted<TestFault>,
}

/// A commit that is ordered once it has its locks.
#[derive(Debug)]
pub(super) struct PendingCommit {
    pub(super) origin: RequestOrigin,
    pub(super) request: CommitRequest,
    /// The transaction whose locks end with the commit.
    pub(super) owner: Option<TxnId>,
}

/// A request that waits for locks.
#[derive(Debug)]
enum Step {
    Read(PendingRead),
    Commit(PendingCommit),
}

/// A request that no longer waits for locks.
#[derive(Debug)]
pub(super) enum Continued {
    /// The read has its locks.
    Read(PendingRead),
    /// The commit has its locks.
    Commit(PendingCommit),
    /// The request gets no locks.
    Rejected(RequestOrigin, Rejection),
}

/// State of the locks that a commit relies on.
#[derive(Debug)]
pub(super) enum Claimed {
    /// The locks are held. `start_ts` is when the transaction's first try began.
    Held { start_ts: Timestamp },
    /// A copy of the commit is ordered already, and has released the locks.
    Ordered,
    /// The locks are not held.
    Lost,
}

impl Transactions {
    /// Creates a lock table without locks. `first_token` should be random: see [`LockTable::new`].
    pub(super) fn new(first_token: u64, planted: Planted<TestFault>) -> Self {
        Self {
            term: None,
            begun_at: 0,
            locks: LockTable::new(first_token),
            next_ticket: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            pending_writes: PendingWrites::default(),
            ordered: VecDeque::new(),
            planted,
        }
    }

    /// Returns true if locks may expire.
    pub(super) fn wants_ticks(&self) -> bool {
        self.has_locks()
    }

    /// Returns true if a transaction has locks.
    pub(super) fn has_locks(&self) -> bool {
        !self.locks.is_empty()
    }

    /// Returns true if no request waits for locks.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the term or epoch in which this replica sequences the writes.
    pub(super) fn term(&self) -> Option<u64> {
        self.term
    }

    /// Returns the index up to which entries may be of earlier terms.
    pub(super) fn begun_at(&self) -> u64 {
        self.begun_at
    }

    /// Begins to sequence the writes in a term, after the entries up to `last_index`.
    pub(super) fn begin_term(&mut self, term: u64, last_index: u64) {
        self.term = Some(term);
        self.locks.begin_term(term);
        self.begun_at = last_index;
    }

    /// Drops all locks. Returns the requests that waited for some.
    pub(super) fn end_term(&mut self) -> impl Iterator<Item = RequestOrigin> + use<> {
        self.term = None;
        self.locks.end_term();
        self.waiting_bytes = 0;
        self.pending_writes.clear();
        self.ordered.clear();
        std::mem::take(&mut self.waiting).into_values().map(|(step, _)| match step {
            Step::Read(PendingRead { origin, .. }) | Step::Commit(PendingCommit { origin, .. }) => {
                origin
            }
        })
    }

    /// Registers the use of a transaction's locks, or its start. `fresh_ts` becomes its priority if
    /// it has none yet.
    pub(super) fn enter(
        &mut self,
        claim: LockClaim,
        fresh_ts: Timestamp,
        now_us: u64,
    ) -> Result<LockGrant, Rejection> {
        self.locks.enter(claim, fresh_ts, now_us).map_err(rejection)
    }

    /// Returns the state of the locks that the commit `txn` relies on.
    pub(super) fn claim(&mut self, claim: LockClaim, txn: TxnId, now_us: u64) -> Claimed {
        let fresh_ts = claim.start_ts.unwrap_or_default();
        let entered = match claim.token {
            Some(_) => self.locks.enter(claim, fresh_ts, now_us),
            None => Err(LockError::Lost),
        };
        match entered {
            Ok(grant) => Claimed::Held { start_ts: grant.start_ts },
            Err(_) if self.is_ordered(txn) => Claimed::Ordered,
            Err(_) => Claimed::Lost,
        }
    }

    /// Returns true if a transaction still has all the locks that it was granted.
    pub(super) fn is_held(&self, owner: TxnId, token: LockToken) -> bool {
        self.locks.is_held(owner, token)
    }

    /// Requests exclusive locks on the keys that a commit writes. Returns the commit if it has them
    /// now, or `None` if it waits for them.
    pub(super) fn lock_commit(
        &mut self,
        commit: PendingCommit,
        priority: Priority,
        now_us: u64,
    ) -> Result<Option<PendingCommit>, Rejection> {
        let writes = &commit.request.commit.writes;
        let mut keys: Vec<_> = writes.iter().map(|write| &write.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let wants = keys.into_iter().map(|key| (Span::key(key), Strength::Exclusive));
        let wants = wants.collect();
        let ticket = self.ticket();
        let bytes = commit.request.commit.bytes();
        if self.waiting_bytes + bytes > MAX_WAITING_BYTES {
            return Err(Rejection::Overloaded);
        }
        let keeps = commit.owner.is_some();
        let deadline_us = now_us + MAX_LOCK_WAIT_US;
        if self.lock(LockRequest { ticket, priority, keeps, wants, deadline_us })? {
            return Ok(Some(commit));
        }
        // Copy the commit: while it waits, it must not keep its receive buffer alive.
        let PendingCommit { origin, request, owner } = commit;
        let request = CommitRequest { commit: request.commit.detached(), ..request };
        self.waiting_bytes += bytes;
        let step = Step::Commit(PendingCommit { origin, request, owner });
        self.waiting.insert(ticket, (step, now_us));
        Ok(None)
    }

    /// Requests a lock on the span of a read, if it is not empty. Returns the read if it has the
    /// lock now, or `None` if it waits for it.
    pub(super) fn lock_read(
        &mut self,
        read: PendingRead,
        lock: Option<(Span, Strength)>,
        priority: Priority,
        now_us: u64,
    ) -> Result<Option<PendingRead>, Rejection> {
        let ticket = self.ticket();
        let wants = lock.into_iter().collect();
        let deadline_us = now_us + MAX_LOCK_WAIT_US;
        if self.lock(LockRequest { ticket, priority, keeps: true, wants, deadline_us })? {
            return Ok(Some(read));
        }
        self.waiting.insert(ticket, (Step::Read(read), now_us));
        Ok(None)
    }

    /// Releases the locks of a transaction that commits nothing.
    pub(super) fn release(&mut self, claim: LockClaim) {
        // A client without a token may own locks: the reply with the token may not have arrived.
        if claim.token.is_none_or(|token| self.locks.is_held(claim.owner, token)) {
            self.locks.release(claim.owner);
        }
    }

    /// Releases the locks of a transaction that was refused for good.
    pub(super) fn end(&mut self, owner: Option<TxnId>) {
        if let Some(owner) = owner {
            self.locks.release(owner);
        }
    }

    /// Ends the waits that have taken too long, and releases the locks of idle transactions.
    pub(super) fn expire(&mut self, now_us: u64) {
        if self.wants_ticks() {
            self.locks.expire(now_us);
        }
    }

    /// Returns the next request that no longer waits for locks, and since when it has waited.
    pub(super) fn next_continued(&mut self) -> Option<(Continued, u64)> {
        let (ticket, event) = self.locks.next_event()?;
        let (step, since_us) =
            self.waiting.remove(&ticket).expect("a request that waits for locks is known");
        if let Step::Commit(commit) = &step {
            self.waiting_bytes -= commit.request.commit.bytes();
        }
        let rejection = match (event, &step) {
            (LockEvent::Granted, _) => {
                let continued = match step {
                    Step::Read(read) => Continued::Read(read),
                    Step::Commit(commit) => Continued::Commit(commit),
                };
                return Some((continued, since_us));
            }
            // The locks were released when the first copy was ordered.
            (LockEvent::Wounded, Step::Commit(commit)) if self.is_ordered(commit.request.txn) => {
                Rejection::Unknown
            }
            (LockEvent::Wounded, _) => Rejection::Aborted,
            (LockEvent::TimedOut, _) => Rejection::Locked,
        };
        let (Step::Read(PendingRead { origin, .. }) | Step::Commit(PendingCommit { origin, .. })) =
            step;
        Some((Continued::Rejected(origin, rejection), since_us))
    }

    /// Records that a commit was appended to the log, and releases its owner's locks.
    pub(super) fn ordered(&mut self, index: u64, request: &CommitRequest, owner: Option<TxnId>) {
        for write in &request.commit.writes {
            self.pending_writes.push(index, &write.key);
        }
        if let Some(owner) = owner {
            self.ordered.push_back((index, request.txn));
            self.locks.release(owner);
        }
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

    /// Removes the entries up to `applied_index`: reads no longer wait for them.
    pub(super) fn applied(&mut self, applied_index: u64) {
        self.pending_writes.applied(applied_index);
        while self.ordered.pop_front_if(|(index, _)| *index <= applied_index).is_some() {}
    }

    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn is_ordered(&self, txn: TxnId) -> bool {
        self.ordered.iter().any(|(_, ordered)| *ordered == txn)
    }

    fn lock(&mut self, request: LockRequest) -> Result<bool, Rejection> {
        if self.planted.is(TestFault::IgnoreLocks) {
            return Ok(true);
        }
        self.locks.request(request).map_err(rejection)
    }
}

fn rejection(error: LockError) -> Rejection {
    match error {
        LockError::Lost => Rejection::Aborted,
        LockError::Full => Rejection::Locked,
    }
}
