//! The reads of a replica that cannot be answered yet, and what they wait for.
//!
//! At the replica that sequences the writes, a request waits until the protocol confirms that this
//! replica still leads, and a read then for an entry. At a follower, a read at a timestamp waits
//! for that timestamp alone. An entry and a timestamp are a [`Barrier`].

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_txn::Attempt;
use palisade_wire::{LockGrant, PeerAddress, ScanRequest, TxnId};

use crate::turn::RequestOrigin;

/// The keys that a read covers.
#[derive(Debug)]
pub(super) enum Read {
    Key(Bytes),
    Span(Box<ScanRequest>),
}

/// A read that waits.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) origin: RequestOrigin,
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
    Abort { origin: RequestOrigin, lost: Attempt },
    /// The answer to a follower that asks for the safe time: see `timestamp_reads`.
    SafeTime { to: PeerAddress, index: u64, closed_ts: Timestamp },
}

/// What must happen before a read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Barrier {
    /// The entry at this index is applied.
    Applied(u64),
    /// This timestamp is safe: all commits up to it are applied.
    Safe(Timestamp),
}

/// The first barrier of a timestamp.
const FIRST_SAFE: (Barrier, u64) = (Barrier::Safe(Timestamp::ZERO), 0);

/// The pending reads of a replica, and the other requests that wait for a confirmation.
#[derive(Debug, Default)]
pub(super) struct PendingReads {
    /// Token of the first slot in `confirming`.
    first_token: u64,
    /// Requests that wait for a confirmation, by token. Tokens are assigned in order and confirmed
    /// nearly in order.
    confirming: VecDeque<Option<Confirmation>>,
    /// Reads by barrier, then in order of arrival, each with its deadline.
    waiting: BTreeMap<(Barrier, u64), (PendingRead, u64)>,
    next_number: u64,
}

impl PendingReads {
    /// Returns true if no request waits.
    pub(super) fn is_empty(&self) -> bool {
        self.confirming.is_empty() && self.waiting.is_empty()
    }

    /// Returns an upper bound of the number of requests that wait.
    pub(super) fn len(&self) -> usize {
        self.confirming.len() + self.waiting.len()
    }

    /// Returns the token of the next request that is passed to [`PendingReads::confirm`].
    pub(super) fn next_token(&self) -> u64 {
        self.first_token + self.confirming.len() as u64
    }

    /// Adds a request that waits for the confirmation of [`PendingReads::next_token`].
    pub(super) fn confirm(&mut self, confirmation: Confirmation) {
        self.confirming.push_back(Some(confirmation));
    }

    /// Removes the request of a token that is confirmed or refused.
    ///
    /// # Panics
    ///
    /// If the token was confirmed or refused before.
    pub(super) fn take(&mut self, token: u64) -> Confirmation {
        let at = token.checked_sub(self.first_token).and_then(|at| usize::try_from(at).ok());
        let slot = at.and_then(|at| self.confirming.get_mut(at));
        let taken = slot.and_then(Option::take).expect("a token is confirmed or refused once");
        while self.confirming.pop_front_if(|slot| slot.is_none()).is_some() {
            self.first_token += 1;
        }
        taken
    }

    /// Adds a read that waits for a barrier, until `deadline_us` on the monotonic clock.
    pub(super) fn wait(&mut self, barrier: Barrier, read: PendingRead, deadline_us: u64) {
        self.next_number += 1;
        self.waiting.insert((barrier, self.next_number), (read, deadline_us));
    }

    /// Removes a read that waits for an entry up to `applied_index`.
    pub(super) fn next_applied(&mut self, applied_index: u64) -> Option<PendingRead> {
        let first = self.waiting.first_entry()?;
        let (barrier, _) = *first.key();
        (barrier <= Barrier::Applied(applied_index)).then(|| first.remove().0)
    }

    /// Removes the reads that wait for entries above `committed_index`.
    pub(super) fn take_uncommitted(
        &mut self,
        committed_index: u64,
    ) -> impl Iterator<Item = PendingRead> {
        let above = (Barrier::Applied(committed_index.saturating_add(1)), 0);
        self.waiting.extract_if(above..FIRST_SAFE, |_, _| true).map(|(_, (read, _))| read)
    }

    /// Removes a read whose timestamp is at most `safe_ts`.
    pub(super) fn next_safe(&mut self, safe_ts: Timestamp) -> Option<PendingRead> {
        let (first, _) = self.waiting.range(FIRST_SAFE..).next()?;
        let first = *first;
        let is_safe = first.0 <= Barrier::Safe(safe_ts);
        is_safe.then(|| self.waiting.remove(&first).expect("it was looked at just now").0)
    }

    /// Returns true if a read waits for an entry up to `applied_index`, or for a timestamp up to
    /// `safe_ts`.
    pub(super) fn is_any_ready(&self, applied_index: u64, safe_ts: Timestamp) -> bool {
        let first = self.waiting.first_key_value();
        let is_applied =
            first.is_some_and(|((first, _), _)| *first <= Barrier::Applied(applied_index));
        let first_safe = self.waiting.range(FIRST_SAFE..).next();
        is_applied || first_safe.is_some_and(|((first, _), _)| *first <= Barrier::Safe(safe_ts))
    }

    /// Removes the reads that wait for a timestamp and whose deadline has passed.
    pub(super) fn expire(&mut self, now_us: u64) -> impl Iterator<Item = PendingRead> {
        let is_late = move |_: &_, (_, deadline_us): &mut (_, u64)| *deadline_us <= now_us;
        self.waiting.extract_if(FIRST_SAFE.., is_late).map(|(_, (read, _))| read)
    }

    /// Returns true if a read waits for a timestamp.
    pub(super) fn wait_for_safe_time(&self) -> bool {
        let last = self.waiting.last_key_value();
        last.is_some_and(|((barrier, _), _)| matches!(barrier, Barrier::Safe(_)))
    }
}
