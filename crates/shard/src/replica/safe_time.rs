//! The safe time that a replica has learned from the one that sequences the writes.

use std::collections::BTreeMap;

use palisade_clock::Timestamp;

/// Interval after which a follower asks again if it has no answer, in microseconds.
const ASK_AGAIN_US: u64 = 30_000;

/// Answers that may wait until their entries are applied. More are dropped.
const MAX_CLOSING: usize = 64;

/// What a replica has learned about the safe time.
#[derive(Debug, Default)]
pub(super) struct SafeTime {
    /// Safe time learned from the leader; may be above the last applied commit.
    learned_ts: Timestamp,
    /// When the leader was last asked, while its answer is pending.
    asked_us: Option<u64>,
    /// Answers of the leader: the timestamp is safe once the entry at the index is applied.
    closing: BTreeMap<u64, Timestamp>,
}

impl SafeTime {
    /// Returns the safe time learned from the leader.
    pub(super) fn learned_ts(&self) -> Timestamp {
        self.learned_ts
    }

    /// Records that a question to the leader is sent now.
    pub(super) fn asked(&mut self, now_us: u64) {
        self.asked_us = Some(now_us);
    }

    /// Records that no read needs an answer any more.
    pub(super) fn forget_question(&mut self) {
        self.asked_us = None;
    }

    /// Returns true while the leader's answer is pending.
    pub(super) fn is_asked(&self) -> bool {
        self.asked_us.is_some()
    }

    /// Returns true if the leader was not asked, or if its answer is late.
    pub(super) fn is_question_due(&self, now_us: u64) -> bool {
        self.asked_us.is_none_or(|asked_us| asked_us + ASK_AGAIN_US <= now_us)
    }

    /// Takes in the leader's answer: with the entries up to `index` applied, the state up to
    /// `closed_ts` is complete.
    pub(super) fn answered(&mut self, index: u64, closed_ts: Timestamp) {
        self.asked_us = None;
        if self.closing.len() < MAX_CLOSING {
            let known = self.closing.entry(index).or_default();
            *known = (*known).max(closed_ts);
        }
    }

    /// Uses the answers whose entries are applied. Returns true if the safe time has risen.
    pub(super) fn applied(&mut self, applied_index: u64) -> bool {
        let before_ts = self.learned_ts;
        while let Some(first) = self.closing.first_entry()
            && *first.key() <= applied_index
        {
            self.learned_ts = self.learned_ts.max(first.remove());
        }
        self.learned_ts > before_ts
    }
}
