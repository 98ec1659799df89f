//! Reads of the latest state, and the requests that wait until leadership is confirmed.
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
//!
//! [`ReadKind::LatestOfKey`]: palisade_wire::ReadKind::LatestOfKey

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_txn::Attempt;
use palisade_wire::{
    Basis, LockGrant, Outcome, PeerAddress, Rejection, ScanRequest, TxnId, check_key,
};

use super::{Asker, MAX_WAITING, Replica, refused};
use crate::TestFault;

#[derive(Debug)]
pub(crate) enum Read {
    Key(Bytes),
    Span(Box<ScanRequest>),
}

/// A read that waits for a confirmation, an entry, a lock or a timestamp.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) asker: Asker,
    pub(super) read: Read,
    pub(super) level: Level,
}

/// The state that a read returns.
#[derive(Debug)]
pub(super) enum Level {
    /// The latest state.
    Latest,
    /// The state at a timestamp.
    AsOf(Timestamp),
    /// The latest state, under the locks of a transaction.
    Locked(Box<Locked>),
}

/// The locks that a read relies on.
#[derive(Debug)]
pub(super) struct Locked {
    pub(super) owner: TxnId,
    pub(super) grant: LockGrant,
    /// Key at which the scan continues after the locked span.
    pub(super) resume: Option<Bytes>,
}

/// A request that waits until leadership is confirmed.
#[derive(Debug)]
pub(super) enum Confirmation {
    /// A read, to be answered once the entry `after` is applied.
    Read { after: u64, read: PendingRead },
    /// The answer to a commit whose locks are lost.
    Abort { asker: Asker, lost: Attempt },
    /// The answer to a follower that asks for the safe time: see `timestamp_reads`.
    SafeTime { to: PeerAddress, index: u64, closed_ts: Timestamp },
}

/// Requests that wait for a confirmation, and reads that then wait for an entry.
#[derive(Debug, Default)]
pub(super) struct PendingReads {
    confirming: Confirming,
    next_number: u64,
    /// Confirmed reads, by the index of the entry that they wait for and by a unique number.
    applying: BTreeMap<(u64, u64), PendingRead>,
}

/// Requests that wait for a confirmation, by token. Tokens are assigned in order and confirmed
/// nearly in order.
#[derive(Debug, Default)]
struct Confirming {
    /// Token of the first slot in `waiting`.
    first: u64,
    waiting: VecDeque<Option<Confirmation>>,
}

impl Confirming {
    /// Returns the token of the next request to be pushed.
    fn next_token(&self) -> u64 {
        self.first + self.waiting.len() as u64
    }

    fn push(&mut self, confirmation: Confirmation) {
        self.waiting.push_back(Some(confirmation));
    }

    fn take(&mut self, token: u64) -> Confirmation {
        let at = token.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let slot = at.and_then(|at| self.waiting.get_mut(at));
        let taken = slot.and_then(Option::take).expect("a token is confirmed or refused once");
        while self.waiting.pop_front_if(|slot| slot.is_none()).is_some() {
            self.first += 1;
        }
        taken
    }
}

impl PendingReads {
    /// Returns true if no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.confirming.waiting.is_empty() && self.applying.is_empty()
    }

    /// Returns an upper bound of the number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.confirming.waiting.len() + self.applying.len()
    }

    /// Returns a number that is unique among the reads of this replica.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl Replica {
    /// Starts a read of the latest value of a key, or returns a refusal as `Err`.
    pub(crate) fn get(&mut self, asker: Asker, key: &[u8]) -> Result<(), Outcome> {
        let read = self.read_of_key(key)?;
        self.read_latest(asker, read)
    }

    /// Starts a scan of the latest state, or returns a refusal as `Err`.
    pub(crate) fn scan(&mut self, asker: Asker, scan: ScanRequest) -> Result<(), Outcome> {
        let read = Read::Span(Box::new(self.check_scan(scan)?));
        self.read_latest(asker, read)
    }

    /// Starts a read that is linearizable for its key alone, or returns a refusal as `Err`.
    pub(crate) fn get_of_key(&mut self, asker: Asker, key: &[u8]) -> Result<(), Outcome> {
        let read = self.read_of_key(key)?;
        self.check_room()?;
        self.group.read(self.reads.confirming.next_token()).map_err(refused)?;
        let read = PendingRead { asker, read, level: Level::Latest };
        self.reads.confirming.push(Confirmation::Read { after: 0, read });
        Ok(())
    }

    fn read_latest(&mut self, asker: Asker, read: Read) -> Result<(), Outcome> {
        self.lead()?;
        self.check_room()?;
        let mut after = self.transactions.ordered_before(&read);
        if self.planted.is(TestFault::IgnorePendingWrites) {
            after = 0;
        }
        let read = PendingRead { asker, read, level: Level::Latest };
        self.confirm(Confirmation::Read { after, read })
    }

    /// Returns `Overloaded` if the queue of reads is full.
    pub(super) fn check_room(&self) -> Result<(), Outcome> {
        if self.reads.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        Ok(())
    }

    /// Checks that a key lies in this range, and copies it: the original keeps the receive buffer
    /// alive.
    pub(super) fn read_of_key(&self, key: &[u8]) -> Result<Read, Outcome> {
        check_key(key).map_err(Outcome::Rejected)?;
        if !self.descriptor.holds(key) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        Ok(Read::Key(Bytes::copy_from_slice(key)))
    }

    /// Checks that a scan begins in this range, and copies its bounds: the originals keep the
    /// receive buffer alive.
    pub(super) fn check_scan(&self, mut scan: ScanRequest) -> Result<ScanRequest, Outcome> {
        let (start, end) = (&self.descriptor.start, &self.descriptor.end);
        let ours = match (&scan.end, end) {
            _ if !scan.backward => self.descriptor.holds(&scan.begin),
            (None, None) => true,
            (None, Some(_)) => false,
            (Some(before), None) => **before > **start,
            (Some(before), Some(end)) => **before > **start && **before <= **end,
        };
        if !ours {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        scan.begin = Bytes::copy_from_slice(&scan.begin);
        scan.end = scan.end.map(|end| Bytes::copy_from_slice(&end));
        Ok(scan)
    }

    /// Queues a request until the protocol confirms that this replica still sequences the writes.
    pub(super) fn confirm(&mut self, confirmation: Confirmation) -> Result<(), Outcome> {
        let token = self.reads.confirming.next_token();
        self.group.read_where_ordered(token).map_err(refused)?;
        self.reads.confirming.push(confirmation);
        Ok(())
    }

    /// Continues a request whose check has succeeded: this replica still led when it was queued.
    pub(super) fn confirmed(&mut self, token: u64) {
        match self.reads.confirming.take(token) {
            Confirmation::Read { after, read } => self.read_once_applied(after, read),
            Confirmation::Abort { asker, lost } => self.answer_aborted(asker, &lost),
            Confirmation::SafeTime { to, index, closed_ts } => {
                self.answer_safe_time(to, index, closed_ts);
            }
        }
    }

    /// Answers a read, now or once the entry `after` is applied.
    pub(super) fn read_once_applied(&mut self, after: u64, read: PendingRead) {
        if after <= self.applied_index {
            self.answer_read(read);
        } else {
            let number = self.reads.number();
            self.reads.applying.insert((after, number), read);
        }
    }

    /// Rejects a request: this replica no longer leads, and it is unknown since when.
    pub(super) fn not_confirmed(&mut self, token: u64) {
        match self.reads.confirming.take(token) {
            Confirmation::Read { read: PendingRead { asker, .. }, .. }
            | Confirmation::Abort { asker, .. } => {
                self.answers.push((asker, Outcome::Rejected(Rejection::NotServing { hint: None })));
            }
            // The follower asks again.
            Confirmation::SafeTime { .. } => {}
        }
    }

    /// Answers the reads whose entries are applied. Rejects all others if this replica no longer
    /// holds proposals, because their entries may never be applied.
    pub(super) fn answer_reads(&mut self) {
        let may_apply = self.group.holds_proposals();
        while let Some(first) = self.reads.applying.first_entry()
            && (first.key().0 <= self.applied_index || !may_apply)
        {
            let ((after, _), read) = first.remove_entry();
            if after <= self.applied_index {
                self.answer_read(read);
            } else {
                let outcome = Outcome::Rejected(Rejection::NotServing { hint: None });
                self.answers.push((read.asker, outcome));
            }
        }
    }

    fn answer_read(&mut self, pending: PendingRead) {
        let PendingRead { asker, read, level } = pending;
        let outcome = match level {
            Level::Latest => self.read_newest(&read),
            Level::AsOf(at_ts) => self.read_as_of(&read, at_ts),
            Level::Locked(locked) => self.read_locked_span(&read, *locked),
        };
        self.answers.push((asker, outcome));
    }

    fn read_locked_span(&self, read: &Read, locked: Locked) -> Outcome {
        let Locked { owner, grant, resume } = locked;
        if !self.transactions.has_locks(owner, grant.token) {
            // The locks were lost meanwhile, so what the transaction read before may have changed.
            return Outcome::Rejected(Rejection::Aborted);
        }
        let mut found = self.read_newest(read);
        if let Outcome::Page { page, .. } = &mut found {
            page.resume = page.resume.take().or(resume);
        }
        if let Outcome::Value { basis, .. } | Outcome::Page { basis, .. } = &mut found {
            *basis = Basis::Locked(grant);
        }
        found
    }

    fn read_newest(&self, read: &Read) -> Outcome {
        match read {
            Read::Key(key) => self.state.get(key, self.planted.is(TestFault::StaleReads)),
            Read::Span(scan) => self.state.scan(scan, None, &self.descriptor),
        }
    }
}
