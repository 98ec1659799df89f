//! Revocations to one peer, repeated until the peer has confirmed them.

use std::collections::VecDeque;

use palisade_wire::RangeId;

/// Maximum number of revocations in one heartbeat (about 53 KB).
pub(super) const MAX_REVOCATIONS: usize = 4_096;

/// A withdrawal of the sender's leadership or support in one range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The range.
    pub range: RangeId,
    /// The term that the sender no longer leads, or the term to which it has moved.
    pub term: u64,
    /// Whether the sender's leadership or its support ends.
    pub what: Revoked,
}

/// The kind of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The sender no longer leads this term.
    Leadership,
    /// The sender has moved to this term, and follows no leader of an earlier one.
    Support,
}

/// The revocations that a peer has not confirmed, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    pending: VecDeque<Revocation>,
    /// Number of revocations before the first pending one.
    confirmed: u64,
}

impl Unconfirmed {
    /// Keeps the revocations for the peer's next session, which has confirmed none: it may follow
    /// this shard, or count on it, because of an old message.
    pub(super) fn for_next_session(&mut self) -> Self {
        Self { pending: std::mem::take(&mut self.pending), confirmed: 0 }
    }

    pub(super) fn push(&mut self, revocation: Revocation) {
        self.pending.push_back(revocation);
    }

    /// Takes in that the peer has processed the first `taken_in` revocations.
    pub(super) fn confirm(&mut self, taken_in: u64) {
        while self.confirmed < taken_in && self.pending.pop_front().is_some() {
            self.confirmed += 1;
        }
    }

    /// Returns the number of confirmed revocations.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Returns true if all pending revocations fit into a heartbeat.
    pub(super) fn fit(&self) -> bool {
        self.pending.len() <= MAX_REVOCATIONS
    }

    /// Returns the pending revocations that fit into a heartbeat.
    pub(super) fn first(&self) -> Vec<Revocation> {
        self.pending.iter().take(MAX_REVOCATIONS).copied().collect()
    }
}
