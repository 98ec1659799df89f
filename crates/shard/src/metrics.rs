//! What a shard counts for its operators: how long each stage of a request takes, and what it
//! rejects.
//!
//! ```text
//! request ── queue ── lock wait ── replicate ── commit wait ── reply     a commit
//!         ── queue ── read ────────────────────────────────── reply     a read
//! ```

use std::collections::BTreeMap;

use palisade_wire::{Durations, Outcome, RangeId, Rejection, Response, Stage};

/// A request that takes this long is logged, in microseconds. At most one is logged in this time.
pub const SLOW_US: u64 = 1_000_000;

/// Slow requests that are reported for one turn, at most.
const MAX_SLOW: usize = 8;

/// The time for which rejections are counted before a storm is reported, in microseconds.
const STORM_US: u64 = 10_000_000;

/// Rejections in that time that are a storm.
const STORM_REJECTIONS: u64 = 10_000;

/// A request that took long, and where its time went. Times are in microseconds from the first turn
/// that found the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowRequest {
    /// A commit that was applied.
    Commit {
        /// The range.
        range: RangeId,
        /// Until it was ordered: the queue, locks, and room in the log.
        ordered_after_us: u64,
        /// Until it was applied.
        done_after_us: u64,
    },
    /// A read that was answered.
    Read {
        /// The range.
        range: RangeId,
        /// Until it was answered.
        done_after_us: u64,
    },
    /// A request that was rejected.
    Rejected {
        /// The reason.
        rejection: Rejection,
        /// Until it was rejected.
        done_after_us: u64,
    },
}

impl SlowRequest {
    fn done_after_us(&self) -> u64 {
        match self {
            Self::Commit { done_after_us, .. }
            | Self::Read { done_after_us, .. }
            | Self::Rejected { done_after_us, .. } => *done_after_us,
        }
    }
}

/// Many rejections in a short time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RejectionStorm {
    /// How many there were.
    pub rejections: u64,
    /// In which time, in microseconds.
    pub during_us: u64,
    /// The reason that was the most frequent one since the shard's start.
    pub reason: &'static str,
}

/// The counters of a shard since its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) queue: Durations,
    pub(crate) lock_wait: Durations,
    pub(crate) log_sync: Durations,
    pub(crate) replicate: Durations,
    pub(crate) read: Durations,
    pub(crate) commit_wait: Durations,
    /// Entries applied.
    pub(crate) applied: u64,
    /// Rejected requests, by the name of the reason.
    rejections: BTreeMap<&'static str, u64>,
    /// Rejections since the time, on the monotonic clock.
    recent: (u64, u64),
    /// Slow requests that no driver has taken yet.
    slow: Vec<SlowRequest>,
}

impl Metrics {
    /// Counts the rejections among replies. Returns a storm at its end, or every ten seconds of it.
    pub(crate) fn count_rejections<'a>(
        &mut self,
        replies: impl Iterator<Item = &'a Response>,
        now_us: u64,
    ) -> Option<RejectionStorm> {
        replies.for_each(|response| self.count_rejection(response));
        let (rejections, since_us) = self.recent;
        let during_us = now_us.saturating_sub(since_us);
        if during_us < STORM_US {
            return None;
        }
        self.recent = (0, now_us);
        let (reason, _) = self.rejections.iter().max_by_key(|(_, count)| **count)?;
        (rejections >= STORM_REJECTIONS).then_some(RejectionStorm { rejections, during_us, reason })
    }

    /// Counts a response if it is a rejection.
    pub(crate) fn count_rejection(&mut self, response: &Response) {
        if let Outcome::Rejected(rejection) = response.outcome {
            *self.rejections.entry(rejection.name()).or_default() += 1;
            self.recent.0 += 1;
        }
    }

    /// Returns how long each stage took.
    pub(crate) fn stages(&self) -> BTreeMap<Stage, Durations> {
        let stages = [
            (Stage::Queue, &self.queue),
            (Stage::LockWait, &self.lock_wait),
            (Stage::LogSync, &self.log_sync),
            (Stage::Replicate, &self.replicate),
            (Stage::Read, &self.read),
            (Stage::CommitWait, &self.commit_wait),
        ];
        stages.into_iter().map(|(stage, durations)| (stage, durations.clone())).collect()
    }

    /// Returns the number of rejected requests, by the name of the reason.
    pub(crate) fn rejections(&self) -> BTreeMap<String, u64> {
        self.rejections.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }

    /// Records a request that is done, if it was slow.
    pub(crate) fn done(&mut self, request: SlowRequest) {
        if request.done_after_us() >= SLOW_US && self.slow.len() < MAX_SLOW {
            self.slow.push(request);
        }
    }

    /// Takes the slow requests that are not reported yet.
    pub(crate) fn take_slow(&mut self) -> Vec<SlowRequest> {
        std::mem::take(&mut self.slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_rejections_are_a_storm() {
        let mut metrics = Metrics::default();
        let rejected =
            Response { request_id: 1, outcome: Outcome::Rejected(Rejection::Overloaded) };
        let mut storms = Vec::new();
        // 1,000 rejections each second for 20 seconds, then one each second.
        for second in 1..=40 {
            let count = if second <= 20 { 1_000 } else { 1 };
            let replies = std::iter::repeat_n(&rejected, count);
            storms.extend(metrics.count_rejections(replies, second * 1_000_000));
        }
        let storm =
            RejectionStorm { rejections: 10_000, during_us: STORM_US, reason: "overloaded" };
        assert_eq!(storms, [storm, storm]);
        assert_eq!(metrics.rejections()["overloaded"], 20_020);
    }
}
