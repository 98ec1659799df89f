//! Reads of the latest state, and everything that waits for leadership to be confirmed.
//!
//! The problem: a write is ordered at its timestamp long before it is applied. A read that answers
//! the state before it, while a later write of another range is already acknowledged, makes a cycle
//! with a snapshot between the two:
//!
//! ```text
//! put x  |------------------------|      ordered at 10, applied late
//! put y       |-----|                    ordered at 20 in another range, acknowledged
//! get x                |-----|           must not answer the state before 10
//! ```
//!
//! So the replica that sequences the writes answers, because only it knows what it has ordered. A
//! read of a key waits for the pending writes of that key; a scan waits for all pending writes.
//! Then it fits a timestamp that is not below true time at its arrival: what is ordered later gets
//! a timestamp above that (see `commit_wait`).
//!
//! The replica must still have led when the read arrived. Raft confirms that by its lease or by a
//! round; in a chain, the epochs do.
//!
//! A read of one key that is linearizable for that key alone ([`ReadKind::LatestOfKey`]) waits for
//! nothing, and is answered by a chain's tail.
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

/// What is read.
#[derive(Debug)]
pub(crate) enum Read {
    Key(Bytes),
    Span(Box<ScanRequest>),
}

/// A read that waits.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) asker: Asker,
    pub(super) read: Read,
    pub(super) level: Level,
}

/// At which level a read is answered.
#[derive(Debug)]
pub(super) enum Level {
    /// The latest state.
    Latest,
    /// The state at a timestamp.
    AsOf(Timestamp),
    /// The latest state, for a transaction that has it locked.
    Locked(Box<Locked>),
}

/// The locks that a read relies on.
#[derive(Debug)]
pub(super) struct Locked {
    pub(super) owner: TxnId,
    pub(super) grant: LockGrant,
    /// Where a scan goes on after the span that is locked.
    pub(super) resume: Option<Bytes>,
}

/// What leadership is confirmed for.
#[derive(Debug)]
pub(super) enum Confirmation {
    /// A read that may run once an entry is applied.
    Read { after: u64, read: PendingRead },
    /// The answer to a transaction whose locks are lost.
    Abort { asker: Asker, lost: Attempt },
    /// An answer to another replica: see `timestamp_reads`.
    SafeTime { to: PeerAddress, index: u64, closed_ts: Timestamp },
}

/// What waits for leadership to be confirmed, and reads that then wait for an entry.
#[derive(Debug, Default)]
pub(super) struct PendingReads {
    confirming: Confirming,
    next_number: u64,
    /// By the index of the entry and their number.
    applying: BTreeMap<(u64, u64), PendingRead>,
}

/// What waits for leadership to be confirmed, by the token that the protocol confirms. Tokens are
/// given in order, and confirmed nearly in order.
#[derive(Debug, Default)]
struct Confirming {
    /// The token of the first.
    first: u64,
    waiting: VecDeque<Option<Confirmation>>,
}

impl Confirming {
    /// The token of what is pushed next.
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
    /// Whether no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.confirming.waiting.is_empty() && self.applying.is_empty()
    }

    /// How many requests wait, at most.
    pub(super) fn len(&self) -> usize {
        self.confirming.waiting.len() + self.applying.len()
    }

    /// A number that no other read of this replica has.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl Replica {
    /// Begins a read of the latest value of a key, or says at once why not.
    pub(crate) fn get(&mut self, asker: Asker, key: &[u8]) -> Result<(), Outcome> {
        let read = self.read_of_key(key)?;
        self.read_latest(asker, read)
    }

    /// Begins a scan of the latest state, or says at once why not.
    pub(crate) fn scan(&mut self, asker: Asker, scan: ScanRequest) -> Result<(), Outcome> {
        let read = Read::Span(Box::new(self.check_scan(scan)?));
        self.read_latest(asker, read)
    }

    /// Begins a read of a key that is linearizable for that key alone, or says at once why not.
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
        if self.fault == Some(TestFault::IgnorePendingWrites) {
            after = 0;
        }
        let read = PendingRead { asker, read, level: Level::Latest };
        self.confirm(Confirmation::Read { after, read })
    }

    /// Makes sure that another read may wait.
    pub(super) fn check_room(&self) -> Result<(), Outcome> {
        if self.reads.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        Ok(())
    }

    /// Makes sure that a key lies in this range, and copies it: it shares the memory of everything
    /// that arrived with it.
    pub(super) fn read_of_key(&self, key: &[u8]) -> Result<Read, Outcome> {
        check_key(key).map_err(Outcome::Rejected)?;
        if !self.descriptor.holds(key) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        Ok(Read::Key(Bytes::copy_from_slice(key)))
    }

    /// Makes sure that a scan begins in this range, and copies its bounds: they share the memory of
    /// everything that arrived with them.
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

    /// Has the protocol confirm that this replica sequences the writes, from now on.
    pub(super) fn confirm(&mut self, confirmation: Confirmation) -> Result<(), Outcome> {
        let token = self.reads.confirming.next_token();
        self.group.read_where_ordered(token).map_err(refused)?;
        self.reads.confirming.push(confirmation);
        Ok(())
    }

    /// This replica has led since it asked for a confirmation.
    pub(super) fn confirmed(&mut self, token: u64) {
        match self.reads.confirming.take(token) {
            Confirmation::Read { after, read } => self.read_once_applied(after, read),
            Confirmation::Abort { asker, lost } => self.answer_aborted(asker, &lost),
            Confirmation::SafeTime { to, index, closed_ts } => {
                self.answer_safe_time(to, index, closed_ts);
            }
        }
    }

    /// Answers a read, now or once an entry is applied.
    pub(super) fn read_once_applied(&mut self, after: u64, read: PendingRead) {
        if after <= self.applied_index {
            self.answer_read(read);
        } else {
            let number = self.reads.number();
            self.reads.applying.insert((after, number), read);
        }
    }

    /// This replica leads no more, and it is not known since when.
    pub(super) fn not_confirmed(&mut self, token: u64) {
        match self.reads.confirming.take(token) {
            Confirmation::Read { read: PendingRead { asker, .. }, .. }
            | Confirmation::Abort { asker, .. } => {
                self.answers.push((asker, Outcome::Rejected(Rejection::NotServing { hint: None })));
            }
            // The other replica asks again.
            Confirmation::SafeTime { .. } => {}
        }
    }

    /// Answers the reads for which enough is applied; or refuses all, if it may never be.
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
            // What was read before may have changed since.
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
            Read::Key(key) => self.state.get(key, self.fault == Some(TestFault::StaleReads)),
            Read::Span(scan) => self.state.scan(scan, None, &self.descriptor),
        }
    }
}
