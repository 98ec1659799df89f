//! What a shard counts for its operators: how long each stage of a request takes, and what it
//! rejects.
//!
//! ```text
//! request ── queue ── lock wait ── replicate ── commit wait ── reply     a commit
//!         ── queue ── read ────────────────────────────────── reply     a read
//! ```

use std::collections::BTreeMap;

use palisade_wire::{Outcome, RangeId, Response};

/// Number of buckets of [`Durations`]. The last but one holds durations below 34 s.
pub const DURATION_BUCKETS: usize = 27;

/// A request that takes this long is reported, in microseconds.
pub const SLOW_US: u64 = 1_000_000;

/// Slow requests that are reported for one turn, at most.
const MAX_SLOW: usize = 8;

/// Counts durations by powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// Bucket `b` counts durations of less than 2^`b` microseconds that no earlier bucket counts.
    /// The last bucket counts all others.
    pub counts: [u64; DURATION_BUCKETS],
    /// The sum of all durations, in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// Counts a duration.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut durations = palisade_shard::Durations::default();
    /// durations.record(700);
    /// assert_eq!((durations.counts[10], durations.sum_us), (1, 700));
    /// ```
    pub fn record(&mut self, us: u64) {
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.counts[bucket.min(DURATION_BUCKETS - 1)] += 1;
        self.sum_us += us;
    }
}

/// A request that took long, and where its time went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRequest {
    /// The range.
    pub range: RangeId,
    /// True for a commit, false for a read.
    pub is_commit: bool,
    /// From its arrival until it was ordered, in microseconds: the queue, locks, and room in the
    /// log. 0 for a read.
    pub ordered_after_us: u64,
    /// From its arrival until it was applied or read, in microseconds.
    pub done_after_us: u64,
}

/// The counters of a shard since its start.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// How long requests waited for their turn.
    pub queue: Durations,
    /// How long requests waited for locks that others held.
    pub lock_wait: Durations,
    /// How long commits took from being ordered until they were applied here.
    pub replicate: Durations,
    /// How long reads took from their arrival until they were answered.
    pub read: Durations,
    /// How long replies waited until their timestamps had passed.
    pub commit_wait: Durations,
    /// Rejected requests, by the name of the reason.
    pub rejections: BTreeMap<&'static str, u64>,
    /// Entries applied.
    pub applied: u64,
    /// Slow requests that no driver has taken yet.
    slow: Vec<SlowRequest>,
}

impl Metrics {
    /// Counts the rejections among replies.
    pub(crate) fn count_rejections<'a>(&mut self, replies: impl Iterator<Item = &'a Response>) {
        for response in replies {
            if let Outcome::Rejected(rejection) = response.outcome {
                *self.rejections.entry(rejection.name()).or_default() += 1;
            }
        }
    }

    /// Records a request that is done, if it was slow.
    pub(crate) fn done(&mut self, request: SlowRequest) {
        if request.done_after_us >= SLOW_US && self.slow.len() < MAX_SLOW {
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
    fn durations_fall_into_powers_of_two() {
        let mut durations = Durations::default();
        for us in [0, 1, 2, 3, 4, 1 << 25, u64::MAX >> 8] {
            durations.record(us);
        }
        let counted: Vec<_> = (0..).zip(durations.counts).filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(0, 1), (1, 1), (2, 2), (3, 1), (26, 2)]);
    }
}
