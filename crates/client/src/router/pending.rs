//! Requests without an outcome, their retries and their deadlines.
//!
//! Almost every request ends long before its deadline. So deadlines are not kept in order: one
//! lower bound covers all of them, and each time it passes, one scan computes the next. Under
//! overload, deadlines pass all the time. With many requests, the next scan then comes later, so
//! that scans take a small part of the time: a call may end late by a quarter of a microsecond for
//! each request.
//!
//! Invariants:
//! - With fewer than [`MANY`] requests, none has a deadline below the bound.
//! - A request that waits for a retry is in flight at no shard.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use palisade_clock::Timestamp;
use palisade_wire::{CommitRequest, Operation, PeerAddress, RangeId, Request, ScanRequest, TxnId};

use super::{
    routes::Place,
    windows::{WindowKey, Windows},
};
use crate::{
    ClientError,
    calls::{Call, CallId, ScanSpan},
    sessions::Sessions,
};

/// Calls without an outcome, and the bytes of their requests, at which further calls are refused.
const MAX_PENDING: usize = 256 * 1024;
const MAX_PENDING_BYTES: usize = 256 * 1024 * 1024;

/// Requests from which on deadlines are not checked at once.
const MANY: usize = 1024;

/// A request without an outcome.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: CallId,
    pub(super) call: Call,
    pub(super) commit: Option<PendingCommit>,
    pub(super) deadline_us: u64,
    pub(super) timeout_us: u64,
    /// The time of the next try, while the request waits for one.
    pub(super) retry_us: Option<u64>,
    /// Number of tries that have failed.
    pub(super) tries: u32,
    /// The shard at which the request is in flight, or `None` while it waits.
    pub(super) at: Option<PeerAddress>,
    /// True if the replica that serves the request is not connected, so that another must pass the
    /// present try on.
    pub(super) is_forwarded: bool,
    /// The window in which the request is in flight, or that it waits for.
    pub(super) window: Option<WindowKey>,
    /// About the size of the request, in bytes.
    pub(super) bytes: usize,
    /// When the last try was sent.
    pub(super) sent_us: u64,
    /// Why the last try failed.
    pub(super) reason: &'static str,
    /// True if an earlier try may have taken effect, although it was not answered.
    pub(super) may_have_run: bool,
    /// Replicas that no longer keep the versions that this call reads.
    pub(super) collected_at: Vec<PeerAddress>,
}

/// The parts of a commit that stay the same on all tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingCommit {
    pub(super) txn: TxnId,
    pub(super) range: RangeId,
    /// `None` before the first send, and when a commit that has expired needs a later expiry.
    pub(super) expires_ts: Option<Timestamp>,
}

impl Pending {
    /// Returns when the call started, in microseconds.
    pub(super) fn start_us(&self) -> u64 {
        self.deadline_us.saturating_sub(self.timeout_us)
    }

    /// Ends the try of the request: it leaves the window in which it is in flight, if it is in one.
    pub(super) fn leave(&mut self, windows: &mut Windows, freed: &mut Vec<WindowKey>) {
        if self.at.is_some()
            && let Some(key) = self.window.take()
            && windows.get(key).leave()
        {
            freed.push(key);
        }
    }

    /// Returns the error of the call, once its deadline has passed.
    pub(super) fn late(&self) -> ClientError {
        let (after, reason) = (Duration::from_micros(self.timeout_us), self.reason);
        // Every rejection but `Unknown` guarantees that its try had no effect.
        let outcome_unknown = self.call.is_change() && (self.may_have_run || self.at.is_some());
        ClientError::Deadline { after, reason, outcome_unknown }
    }

    /// Returns the request to send. `place` is that of the call.
    pub(super) fn request(
        &self,
        request_id: u64,
        place: Option<Place>,
        sessions: &Sessions,
        now_us: u64,
    ) -> Request {
        let limit_us = self.deadline_us.saturating_sub(now_us).try_into().unwrap_or(u32::MAX);
        let operation = self.operation(place, sessions);
        Request { request_id, limit_us, may_forward: self.is_forwarded, operation }
    }

    fn operation(&self, place: Option<Place>, sessions: &Sessions) -> Operation {
        let range = place.map_or(RangeId::CONTROL, |(range, _)| range);
        match &self.call {
            Call::Commit { commit, locks } => {
                let PendingCommit { txn, range, expires_ts } =
                    self.commit.expect("a commit was named");
                let settled_below = sessions.settled_below(txn, range);
                let commit = commit.clone();
                let expires_ts = expires_ts.expect("it is set before each send");
                let request = CommitRequest { txn, settled_below, expires_ts, commit };
                let claim = locks.as_ref().map(|locks| locks.claim);
                Operation::Commit { range, request, claim }
            }
            Call::Get { key, mode } => {
                Operation::Get { range, key: key.clone(), kind: mode.kind() }
            }
            Call::Scan { span, mode } => {
                let ScanSpan { begin, end, backward, max_rows } = span.clone();
                let scan = ScanRequest { range, begin, end, backward, max_rows };
                Operation::Scan { scan, kind: mode.kind() }
            }
            Call::Rollback(locks) => Operation::Rollback { range, claim: locks.claim },
            Call::Topology => Operation::RangeMap,
            Call::Status(_) => Operation::Status,
            Call::Control(change) => Operation::Control(change.clone()),
        }
    }
}

/// The requests without an outcome.
#[derive(Debug)]
pub(super) struct Requests {
    /// By id. Boxed, because removals move their neighbours.
    pending: BTreeMap<u64, Box<Pending>>,
    /// The requests that wait for a retry, by its time and their id.
    retries: BTreeSet<(u64, u64)>,
    /// The reads that take locks, by their transaction and their id.
    locking: BTreeSet<(TxnId, u64)>,
    /// When the deadlines are checked next. `u64::MAX` if there is none.
    next_check_us: u64,
    /// The bytes of all requests.
    bytes: usize,
}

impl Default for Requests {
    fn default() -> Self {
        let (pending, retries, locking) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { pending, retries, locking, next_check_us: u64::MAX, bytes: 0 }
    }
}

impl Requests {
    /// Returns true if no further call may be added.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING || self.bytes >= MAX_PENDING_BYTES
    }

    pub(super) fn insert(&mut self, request_id: u64, pending: Pending) {
        self.bytes += pending.bytes;
        self.next_check_us = self.next_check_us.min(pending.deadline_us);
        self.locking.extend(pending.call.locks_for().map(|owner| (owner, request_id)));
        self.pending.insert(request_id, Box::new(pending));
    }

    pub(super) fn get_mut(&mut self, request_id: u64) -> Option<&mut Pending> {
        self.pending.get_mut(&request_id).map(Box::as_mut)
    }

    pub(super) fn remove(&mut self, request_id: u64) -> Option<Box<Pending>> {
        let pending = self.pending.remove(&request_id)?;
        self.bytes -= pending.bytes;
        if let Some(retry_us) = pending.retry_us {
            self.retries.remove(&(retry_us, request_id));
        }
        if let Some(owner) = pending.call.locks_for() {
            self.locking.remove(&(owner, request_id));
        }
        if self.pending.is_empty() {
            self.next_check_us = u64::MAX;
        }
        Some(pending)
    }

    /// Returns a read that takes locks for a transaction.
    pub(super) fn locking_for(&self, owner: TxnId) -> Option<u64> {
        let (_, request_id) = self.locking.range((owner, 0)..=(owner, u64::MAX)).next()?;
        Some(*request_id)
    }

    /// Makes a request wait until `retry_us` for its next try.
    pub(super) fn retry_at(&mut self, request_id: u64, retry_us: u64) {
        if let Some(pending) = self.pending.get_mut(&request_id) {
            if let Some(earlier_us) = pending.retry_us.replace(retry_us) {
                self.retries.remove(&(earlier_us, request_id));
            }
            self.retries.insert((retry_us, request_id));
        }
    }

    /// Returns a request whose retry is due, and removes the retry.
    pub(super) fn take_retry(&mut self, now_us: u64) -> Option<u64> {
        let (_, request_id) = self.retries.first().copied().filter(|(us, _)| *us <= now_us)?;
        self.retries.pop_first();
        self.get_mut(request_id)?.retry_us = None;
        Some(request_id)
    }

    /// Returns the requests whose deadline has passed. They must be removed.
    pub(super) fn late(&mut self, now_us: u64) -> Vec<u64> {
        let mut late = Vec::new();
        if self.next_check_us <= now_us {
            let count = self.pending.len();
            let earliest_us = if count < MANY { now_us } else { now_us + count as u64 / 4 };
            let mut next_us = u64::MAX;
            for (request_id, pending) in &self.pending {
                if pending.deadline_us <= now_us {
                    late.push(*request_id);
                } else {
                    next_us = next_us.min(pending.deadline_us);
                }
            }
            self.next_check_us = next_us.max(earliest_us);
        }
        late
    }

    /// Returns the time of the next retry, or `u64::MAX`.
    pub(super) fn next_retry_us(&self) -> u64 {
        self.retries.first().map_or(u64::MAX, |(retry_us, _)| *retry_us)
    }

    /// Returns when the deadlines must be checked, or `u64::MAX`.
    pub(super) fn next_deadline_us(&self) -> u64 {
        self.next_check_us
    }

    /// Records that the requests in flight at a shard may have run, and returns them.
    pub(super) fn lose(&mut self, at: PeerAddress) -> Vec<u64> {
        let lost = self.pending.iter_mut().filter(|(_, pending)| pending.at == Some(at));
        let lost = lost.map(|(request_id, pending)| {
            pending.may_have_run = true;
            *request_id
        });
        lost.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(deadline_us: u64) -> Pending {
        Pending {
            id: CallId(0),
            call: Call::Topology,
            commit: None,
            deadline_us,
            timeout_us: 1,
            retry_us: None,
            tries: 0,
            at: None,
            is_forwarded: false,
            window: None,
            bytes: 1,
            sent_us: 0,
            reason: "",
            may_have_run: false,
            collected_at: Vec::new(),
        }
    }

    #[test]
    fn deadlines_share_a_lower_bound() {
        let mut requests = Requests::default();
        for (request_id, deadline_us) in [(1, 30), (2, 10), (3, 20), (4, 20)] {
            requests.insert(request_id, pending(deadline_us));
        }
        assert_eq!((requests.next_deadline_us(), requests.late(9)), (10, Vec::new()));
        assert!(requests.remove(2).is_some());
        assert_eq!((requests.next_deadline_us(), requests.late(10)), (10, Vec::new()));
        assert_eq!((requests.next_deadline_us(), requests.late(20)), (20, vec![3, 4]));
        assert!(requests.remove(3).is_some() && requests.remove(4).is_some());
        assert_eq!(requests.next_deadline_us(), 30);
        assert!(requests.remove(1).is_some());
        assert_eq!(requests.next_deadline_us(), u64::MAX, "nothing is pending");
    }

    #[test]
    fn deadlines_of_many_requests_are_checked_less_often() {
        let mut requests = Requests::default();
        (0..4_000).for_each(|number| requests.insert(number, pending(1_000 + number)));
        let late = requests.late(1_000);
        assert_eq!((late, requests.next_deadline_us()), (vec![0], 2_000));
        requests.insert(4_000, pending(1_500));
        assert_eq!(requests.next_deadline_us(), 1_500, "of a new call at once");
        assert_eq!(requests.late(2_000).len(), 1_002);
    }

    #[test]
    fn retries_are_due_in_order_and_end_with_their_request() {
        let mut requests = Requests::default();
        (1..=3).for_each(|request_id| requests.insert(request_id, pending(100)));
        requests.retry_at(1, 30);
        requests.retry_at(2, 20);
        requests.retry_at(3, 10);
        requests.retry_at(1, 15);
        assert!(requests.remove(3).is_some());
        assert_eq!((requests.next_retry_us(), requests.take_retry(14)), (15, None));
        assert_eq!([requests.take_retry(20), requests.take_retry(20)], [Some(1), Some(2)]);
        assert_eq!((requests.take_retry(99), requests.next_retry_us()), (None, u64::MAX));
    }
}
