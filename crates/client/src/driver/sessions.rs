//! Names of commits, and their expiry.
//!
//! A commit is named by a session and a sequence number before its first send. It keeps its name
//! and its expiry over all tries, so its range runs it at most once. See
//! `palisade_txn::OutcomeTable`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use palisade_clock::Timestamp;
use palisade_wire::{MAX_LIFETIME_US, RangeId, SessionId, TxnId};

use crate::ClientError;

/// How long a commit may still take effect after its call has ended. Covers the error of the
/// client's estimate of the cluster's time.
const SLACK: Duration = Duration::from_secs(5);

/// Limit on the span of one session's sequence numbers at a range, from the first unsettled one to
/// the next one.
const MAX_WINDOW: u64 = 4_096;

/// Returns a session with a random name from the operating system. If two clients had one name,
/// each would receive outcomes of the other's commits.
pub(crate) fn fresh_session() -> Result<SessionId, ClientError> {
    let random = getrandom::u64().map_err(|error| ClientError::NoEntropy(error.to_string()))?;
    Ok(SessionId(random))
}

/// The names of a client's commits, and which of them have no outcome yet.
#[derive(Debug)]
pub(super) struct Sessions {
    current: SessionId,
    next_sequence: u64,
    /// Sequence numbers without an outcome, by session and range. Kept by range, so that a stuck
    /// range does not keep other ranges from forgetting outcomes.
    unsettled: BTreeMap<(SessionId, RangeId), BTreeSet<u64>>,
    /// The cluster's time, and when it was received.
    learned: (Timestamp, Instant),
}

impl Sessions {
    /// Starts with the session `first`. `now_ts` is the cluster's time.
    pub(super) fn new(first: SessionId, now_ts: Timestamp, now: Instant) -> Self {
        Self {
            current: first,
            next_sequence: 1,
            unsettled: BTreeMap::new(),
            learned: (now_ts, now),
        }
    }

    /// Names a new commit to a range.
    pub(super) fn begin(&mut self, range: RangeId) -> TxnId {
        let txn = TxnId { session: self.current, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.unsettled.entry((txn.session, range)).or_default().insert(txn.sequence);
        txn
    }

    /// Returns true if a commit has been pending at a range for so long that the range remembers
    /// many outcomes of this session. A range limits the outcomes of one session, so the next
    /// commits should use a new session.
    pub(super) fn is_wide(&self, range: RangeId) -> bool {
        let first = self.unsettled.get(&(self.current, range)).and_then(BTreeSet::first);
        first.is_some_and(|first| self.next_sequence - first > MAX_WINDOW)
    }

    /// Returns the sequence number below which the session waits for no answer from the range.
    pub(super) fn settled_below(&self, txn: TxnId, range: RangeId) -> u64 {
        let unsettled = self.unsettled.get(&(txn.session, range));
        unsettled.and_then(|sequences| sequences.first().copied()).unwrap_or(txn.sequence)
    }

    /// Records that a commit to a range has ended, with any outcome.
    pub(super) fn end(&mut self, txn: TxnId, range: RangeId) {
        if let Some(sequences) = self.unsettled.get_mut(&(txn.session, range)) {
            sequences.remove(&txn.sequence);
            if sequences.is_empty() {
                self.unsettled.remove(&(txn.session, range));
            }
        }
    }

    /// Uses another session for further commits. Called when a connection breaks: the machine may
    /// have been resumed from a saved state, and a copy of it may run under the same session.
    pub(super) fn renew(&mut self, next: SessionId) {
        self.current = next;
    }

    /// Records the time that a shard has reported.
    pub(super) fn learn(&mut self, now_ts: Timestamp, now: Instant) {
        self.learned = (now_ts, now);
    }

    /// Returns the expiry of a commit that begins now, if its call may take `timeout`.
    pub(super) fn expires_ts(&self, timeout: Duration, now: Instant) -> Timestamp {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let (learned_ts, learned_at) = self.learned;
        let elapsed_us = us(now.saturating_duration_since(learned_at));
        let lifetime_us = us(timeout.saturating_add(SLACK)).min(MAX_LIFETIME_US / 3 * 2);
        learned_ts.saturating_add_us(elapsed_us.saturating_add(lifetime_us))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(now: Instant) -> Sessions {
        Sessions::new(SessionId(7), Timestamp::from_physical_us(1_000_000), now)
    }

    #[test]
    fn a_stuck_range_does_not_hold_back_what_is_settled_in_others() {
        let (stuck, healthy) = (RangeId(1), RangeId(2));
        let mut sessions = sessions(Instant::now());
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
    fn another_session_goes_on_counting_and_leaves_the_first_as_it_is() {
        let range = RangeId(1);
        let mut sessions = sessions(Instant::now());
        let before = sessions.begin(range);
        sessions.renew(SessionId(8));
        let after = sessions.begin(range);
        assert_eq!((after.session, after.sequence), (SessionId(8), before.sequence + 1));
        assert_eq!(sessions.settled_below(after, range), after.sequence);
        assert_eq!(sessions.settled_below(before, range), before.sequence);
    }

    #[test]
    fn a_session_is_wide_once_many_commits_followed_one_that_waits() {
        let (stuck, other) = (RangeId(1), RangeId(2));
        let mut sessions = sessions(Instant::now());
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
    fn a_commit_outlives_its_call_by_the_slack_and_never_the_limit() {
        let start = Instant::now();
        let sessions = sessions(start);
        let second = Duration::from_secs(1);
        let expires_us =
            |timeout, after: Duration| sessions.expires_ts(timeout, start + after).physical_us();
        assert_eq!(expires_us(second, Duration::ZERO), 1_000_000 + 6_000_000);
        assert_eq!(expires_us(second, 2 * second), 3_000_000 + 6_000_000);
        assert_eq!(expires_us(Duration::MAX, Duration::ZERO), 1_000_000 + 600_000_000);
    }
}
