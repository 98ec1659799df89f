//! Applies committed entries to the state, and answers their proposers.

use std::collections::VecDeque;

use palisade_clock::Timestamp;
use palisade_control::RangeDescriptor;
use palisade_replication::{Entry, EntryKind, Planted};
use palisade_wire::{Outcome, RangeId, Rejection};

use crate::{
    TestFault,
    metrics::SlowRequest,
    snapshot_state::Built,
    state_machine::StateMachine,
    turn::{RequestOrigin, Turn},
    work::Work,
};

/// The state of a range after the entries up to an index.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) state: StateMachine,
    /// Index of the last entry applied to the state.
    pub(crate) index: u64,
    /// Digest of every entry applied so far, in order.
    pub(crate) digest: u32,
}

impl Applied {
    /// Returns a state that was rebuilt from a snapshot up to `index`.
    pub(crate) fn from_snapshot(built: Built, index: u64) -> Self {
        Self { state: built.state, index, digest: built.digest }
    }

    /// Applies the next entry. Returns the outcome for its proposer, or `None` for an entry that
    /// only marks the start of a term, and the range whose replicas changed, if any. Versions that
    /// a read at `oldest_ts` or later sees are kept.
    ///
    /// # Panics
    ///
    /// If the entry does not follow the last one.
    pub(super) fn apply(
        &mut self,
        range: RangeId,
        entry: Entry,
        oldest_ts: Timestamp,
        planted: Planted<TestFault>,
        work: &mut Work,
    ) -> (Option<Outcome>, Option<RangeDescriptor>) {
        let Entry { index, term, kind, payload } = entry;
        assert_eq!(index, self.index + 1, "{range}: applies out of order");
        self.index = index;
        self.digest = digest(self.digest, index, term, &payload);
        if kind == EntryKind::Members {
            return (Some(Outcome::ControlDone), None);
        }
        if payload.is_empty() {
            return (None, None);
        }
        let (outcome, changed) = self.state.apply(payload, oldest_ts, planted, work);
        (Some(outcome), changed)
    }
}

/// Requests whose entries are ordered but not applied.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    /// In the order of their indexes.
    pending: VecDeque<Proposal>,
}

#[derive(Debug)]
struct Proposal {
    index: u64,
    term: u64,
    origin: RequestOrigin,
    /// When the entry was ordered, on the monotonic clock.
    since_us: u64,
}

impl Proposals {
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns when the oldest request was ordered, on the monotonic clock.
    pub(super) fn oldest_us(&self) -> Option<u64> {
        Some(self.pending.front()?.since_us)
    }

    /// Adds a request whose entry was ordered at an index and term.
    pub(super) fn push(&mut self, at: (u64, u64), origin: RequestOrigin, turn: &Turn<'_>) {
        let ((index, term), since_us) = (at, turn.now.monotonic_us);
        self.pending.push_back(Proposal { index, term, origin, since_us });
    }

    /// Answers the proposer of an applied entry. Proposals that were replaced by it, or by an
    /// earlier entry, have an unknown outcome.
    pub(super) fn applied(
        &mut self,
        range: RangeId,
        (index, term): (u64, u64),
        outcome: Option<&Outcome>,
        turn: &mut Turn<'_>,
    ) {
        let now_us = turn.now.monotonic_us;
        while let Some(proposal) = self.pending.pop_front_if(|proposal| proposal.index <= index) {
            let is_own = proposal.index == index && proposal.term == term;
            let outcome = outcome.filter(|_| is_own).cloned();
            let Proposal { origin, since_us, .. } = proposal;
            turn.metrics.replicate.record(now_us.saturating_sub(since_us));
            turn.metrics.done(SlowRequest::Commit {
                range,
                ordered_after_us: since_us.saturating_sub(origin.since_us),
                done_after_us: now_us.saturating_sub(origin.since_us),
            });
            turn.reply(origin, outcome.unwrap_or(Outcome::Rejected(Rejection::Unknown)));
        }
    }

    /// Answers all proposers: this replica can no longer commit their entries.
    pub(super) fn lost(&mut self, turn: &mut Turn<'_>) {
        for proposal in self.pending.drain(..) {
            turn.reject(proposal.origin, Rejection::Unknown);
        }
    }
}

fn digest(before: u32, index: u64, term: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(&index.to_le_bytes());
    hasher.update(&term.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}
