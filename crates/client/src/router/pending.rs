//! Requests without an outcome, and their timers.
//!
//! Invariants:
//! - Each pending request has one timer: its retry while it waits for one, otherwise its deadline.
//! - A request that waits for a retry is in flight at no shard.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use palisade_clock::Timestamp;
use palisade_wire::{CommitRequest, Operation, PeerAddress, RangeId, ScanRequest, TxnId};

use super::routes::Place;
use crate::{
    ClientError,
    calls::{Call, CallId, ScanSpan},
    sessions::Sessions,
};

/// A request without an outcome.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: CallId,
    pub(super) call: Call,
    pub(super) commit: Option<PendingCommit>,
    pub(super) deadline_us: u64,
    pub(super) timeout_us: u64,
    /// The time of the request's timer.
    pub(super) due_us: u64,
    /// Number of tries that have failed.
    pub(super) tries: u32,
    /// The shard at which the request is in flight, or `None` while it waits for a retry.
    pub(super) at: Option<PeerAddress>,
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
    /// Returns the error of the call if its deadline has passed.
    pub(super) fn late(&self, now_us: u64) -> Option<ClientError> {
        let (after, reason) = (Duration::from_micros(self.timeout_us), self.reason);
        // Every rejection but `Unknown` guarantees that its try had no effect.
        let outcome_unknown = self.call.is_change() && (self.may_have_run || self.at.is_some());
        let error = ClientError::Deadline { after, reason, outcome_unknown };
        (self.deadline_us <= now_us).then_some(error)
    }

    /// Returns the operation to send. `place` is that of the call.
    pub(super) fn operation(&self, place: Option<Place>, sessions: &Sessions) -> Operation {
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

/// The requests without an outcome, by id, and their timers, by time and id.
#[derive(Debug, Default)]
pub(super) struct Requests {
    pending: BTreeMap<u64, Pending>,
    timers: BTreeSet<(u64, u64)>,
}

impl Requests {
    pub(super) fn insert(&mut self, request_id: u64, pending: Pending) {
        self.timers.insert((pending.due_us, request_id));
        self.pending.insert(request_id, pending);
    }

    pub(super) fn get_mut(&mut self, request_id: u64) -> Option<&mut Pending> {
        self.pending.get_mut(&request_id)
    }

    pub(super) fn remove(&mut self, request_id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&request_id)?;
        self.timers.remove(&(pending.due_us, request_id));
        Some(pending)
    }

    /// Sets the timer of a request to `due_us`, or to its deadline if that is earlier.
    pub(super) fn wake_at(&mut self, request_id: u64, due_us: u64) {
        if let Some(pending) = self.pending.get_mut(&request_id) {
            self.timers.remove(&(pending.due_us, request_id));
            pending.due_us = due_us.min(pending.deadline_us);
            self.timers.insert((pending.due_us, request_id));
        }
    }

    /// Returns a request whose timer is due, and sets the timer to the deadline.
    pub(super) fn take_due(&mut self, now_us: u64) -> Option<u64> {
        let (due_us, request_id) = *self.timers.first()?;
        if due_us > now_us {
            return None;
        }
        self.wake_at(request_id, u64::MAX);
        Some(request_id)
    }

    pub(super) fn next_due_us(&self) -> Option<u64> {
        self.timers.first().map(|(due_us, _)| *due_us)
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
