//! Names of commits, and their expiry.
//!
//! A commit is named by a session and a sequence number before its first send. It keeps its name
//! and its expiry over all tries, so its range runs it at most once. See
//! `palisade_txn::OutcomeTable`.

use std::collections::{BTreeMap, BTreeSet};

use palisade_clock::Timestamp;
use palisade_wire::{MAX_LIFETIME_US, RangeId, SessionId, TxnId};

/// How long a commit may still take effect after its call has ended, in microseconds. Covers the
/// error of the client's estimate of the cluster's time.
const SLACK_US: u64 = 5_000_000;

/// Limit on the span of one session's sequence numbers at a range, from the first unsettled one to
/// the next one.
const MAX_WINDOW: u64 = 4_096;

/// The names of a client's commits, and which of them have no outcome yet.
#[derive(Debug)]
pub(crate) struct Sessions {
    current: SessionId,
    next_sequence: u64,
    /// Sequence numbers without an outcome, by session and range. Kept by range, so that a stuck
    /// range does not keep other ranges from forgetting outcomes.
    unsettled: BTreeMap<(SessionId, RangeId), BTreeSet<u64>>,
    /// The cluster's time, and when it was received: microseconds of the client's monotonic clock.
    learned: (Timestamp, u64),
}

impl Sessions {
    /// Starts with the session `first`. `now_ts` is the cluster's time.
    pub(crate) fn new(first: SessionId, now_ts: Timestamp, now_us: u64) -> Self {
        Self {
            current: first,
            next_sequence: 1,
            unsettled: BTreeMap::new(),
            learned: (now_ts, now_us),
        }
    }

    /// Names a new commit to a range.
    pub(crate) fn begin(&mut self, range: RangeId) -> TxnId {
        let txn = TxnId { session: self.current, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.unsettled.entry((txn.session, range)).or_default().insert(txn.sequence);
        txn
    }

    /// Returns true if a commit has been pending at a range for so long that the range remembers
    /// many outcomes of this session. A range limits the outcomes of one session, so the next
    /// commits should use a new session.
    pub(crate) fn is_wide(&self, range: RangeId) -> bool {
        let first = self.unsettled.get(&(self.current, range)).and_then(BTreeSet::first);
        first.is_some_and(|first| self.next_sequence - first > MAX_WINDOW)
    }

    /// Returns the sequence number below which the session waits for no answer from the range.
    pub(crate) fn settled_below(&self, txn: TxnId, range: RangeId) -> u64 {
        let unsettled = self.unsettled.get(&(txn.session, range));
        unsettled.and_then(|sequences| sequences.first().copied()).unwrap_or(txn.sequence)
    }

    /// Records that a commit to a range has ended, with any outcome.
    pub(crate) fn end(&mut self, txn: TxnId, range: RangeId) {
        if let Some(sequences) = self.unsettled.get_mut(&(txn.session, range)) {
            sequences.remove(&txn.sequence);
            if sequences.is_empty() {
                self.unsettled.remove(&(txn.session, range));
            }
        }
    }

    /// Uses another session for further commits. Called when a connection breaks: the machine may
    /// have been resumed from a saved state, and a copy of it may run under the same session.
    pub(crate) fn renew(&mut self, next: SessionId) {
        self.current = next;
    }

    /// Records the time that a shard has reported.
    pub(crate) fn learn(&mut self, now_ts: Timestamp, now_us: u64) {
        self.learned = (now_ts, now_us);
    }

    /// Returns the expiry of a commit that begins now, if its call may take `timeout_us`.
    pub(crate) fn expires_ts(&self, timeout_us: u64, now_us: u64) -> Timestamp {
        let (learned_ts, learned_us) = self.learned;
        let elapsed_us = now_us.saturating_sub(learned_us);
        let lifetime_us = timeout_us.saturating_add(SLACK_US).min(MAX_LIFETIME_US / 3 * 2);
        learned_ts.saturating_add_us(elapsed_us.saturating_add(lifetime_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(now_us: u64) -> Sessions {
        Sessions::new(SessionId(7), Timestamp::from_physical_us(1_000_000), now_us)
    }

    #[test]
    fn settled_below_ignores_stuck_commit_of_other_range() {
        let (stuck, healthy) = (RangeId(1), RangeId(2));
        let mut sessions = sessions(0);
        let first = sessions.begin(stuck);
        for _ in 0..100 {
            let txn = sessions.begin(healthy);
            assert_eq!(sessions.settled_below(txn, healthy), txn.sequence);
            sessions.end(txn, healthy);
        }
        let next = sessions.begin(stuck);
        assert_eq!(sessions.settled_below(next, stuck), first.sequence);
        sessions.end(first, stuck);
        assert_eq!(sessions.settled_below(next, stuck), next.sequence);
        sessions.end(next, stuck);
        assert!(sessions.unsettled.is_empty());
    }

    #[test]
    fn session_renewal_continues_sequence_numbers() {
        let range = RangeId(1);
        let mut sessions = sessions(0);
        let before = sessions.begin(range);
        sessions.renew(SessionId(8));
        let after = sessions.begin(range);
        assert_eq!((after.session, after.sequence), (SessionId(8), before.sequence + 1));
        assert_eq!(sessions.settled_below(after, range), after.sequence);
        assert_eq!(sessions.settled_below(before, range), before.sequence);
    }

    #[test]
    fn session_is_wide_once_window_exceeds_limit() {
        let (stuck, other) = (RangeId(1), RangeId(2));
        let mut sessions = sessions(0);
        let first = sessions.begin(stuck);
        for _ in 0..MAX_WINDOW {
            assert!(!sessions.is_wide(stuck));
            let txn = sessions.begin(stuck);
            sessions.end(txn, stuck);
        }
        assert!(sessions.is_wide(stuck) && !sessions.is_wide(other));
        sessions.renew(SessionId(8));
        assert!(!sessions.is_wide(stuck));
        sessions.end(first, stuck);
        assert!(sessions.unsettled.is_empty());
    }

    #[test]
    fn commit_expiry_adds_slack_up_to_limit() {
        let (start_us, second_us) = (77, 1_000_000);
        let sessions = sessions(start_us);
        let expires_us = |timeout_us, after_us: u64| {
            sessions.expires_ts(timeout_us, start_us + after_us).physical_us()
        };
        assert_eq!(expires_us(second_us, 0), 1_000_000 + 6_000_000);
        assert_eq!(expires_us(second_us, 2 * second_us), 3_000_000 + 6_000_000);
        assert_eq!(expires_us(u64::MAX, 0), 1_000_000 + 600_000_000);
    }
}
