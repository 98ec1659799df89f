//! A planned stop: the shard hands over its leaderships, then answers what is pending.
//!
//! ```text
//! serves ── start ──> hands over ─────────────────────> answers ──────────────────> done
//!                     until all its ranges have         until no request is left,
//!                     another leader, 2 s at most       3 s at most
//!                     serves as before                  rejects with `Draining`
//! ```
//!
//! Without this, the groups led here would wait until their followers suspect the node. Chains have
//! no part in it: a member of a chain is removed by an operator.

use palisade_clock::Now;

/// How long leaderships are handed over at most, in microseconds. A follower may not catch up, or
/// the votes of a majority may not arrive.
const HAND_OVER_US: u64 = 2_000_000;

/// How long pending requests are answered at most, in microseconds. Some never end: those of a
/// chain whose other members have stopped.
const ANSWER_US: u64 = 3_000_000;

/// How far a planned stop has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Drain {
    /// No stop is planned.
    #[default]
    Serving,
    /// Leaderships are handed over, until `until_us` at the latest. Requests are served.
    HandingOver { until_us: u64 },
    /// All requests but `Status` are rejected with `Draining`. Pending ones are still answered,
    /// until `until_us` at the latest; a read that waits for its timestamp is rejected when that
    /// has passed.
    Answering { until_us: u64 },
    /// Nothing is pending. The shard's first `appends` writes must be durable before it ends: what
    /// was answered may depend on them. Later ones are those of a follower.
    Done { appends: u64 },
}

impl Drain {
    /// Starts to hand over. Returns false if that has started already.
    pub(crate) fn start(&mut self, now: Now) -> bool {
        let starts = *self == Self::Serving;
        if starts {
            *self = Self::HandingOver { until_us: now.monotonic_us + HAND_OVER_US };
        }
        starts
    }

    /// Rejects requests from now on if `hands_over` returns false, which states that no leadership
    /// is being handed over any more, or once the time is up.
    pub(crate) fn handed_over(&mut self, hands_over: impl FnOnce() -> bool, now: Now) {
        if let Self::HandingOver { until_us } = *self
            && (now.monotonic_us >= until_us || !hands_over())
        {
            *self = Self::Answering { until_us: now.monotonic_us + ANSWER_US };
        }
    }

    /// Ends if `is_idle` returns true, which states that no request is pending, or once the time is
    /// up. `appends` is the number of the shard's writes so far.
    pub(crate) fn answered(&mut self, is_idle: impl FnOnce() -> bool, appends: u64, now: Now) {
        if let Self::Answering { until_us } = *self
            && (now.monotonic_us >= until_us || is_idle())
        {
            *self = Self::Done { appends };
        }
    }

    /// Returns true while leaderships are handed over.
    pub(crate) fn hands_over(self) -> bool {
        matches!(self, Self::HandingOver { .. })
    }

    /// Returns true if requests are rejected.
    pub(crate) fn rejects(self) -> bool {
        matches!(self, Self::Answering { .. } | Self::Done { .. })
    }

    /// Returns true if the shard may end. Its first `durable` writes are durable.
    pub(crate) fn is_done(self, durable: u64) -> bool {
        matches!(self, Self::Done { appends } if appends <= durable)
    }
}

#[cfg(test)]
mod tests {
    use palisade_clock::Interval;

    use super::*;

    fn at(monotonic_us: u64) -> Now {
        Now { monotonic_us, wall: Interval::around(monotonic_us, 10) }
    }

    #[test]
    fn drain_rejects_after_hand_over_and_ends_once_idle_and_durable() {
        let mut drain = Drain::default();
        drain.handed_over(|| false, at(0));
        assert!(drain.start(at(0)) && !drain.start(at(1)));
        drain.answered(|| true, 0, at(1));
        drain.handed_over(|| true, at(1));
        assert!(drain.hands_over() && !drain.rejects());
        drain.handed_over(|| false, at(2));
        assert!(drain.rejects() && !drain.is_done(u64::MAX));
        drain.answered(|| false, 7, at(3));
        drain.answered(|| true, 9, at(4));
        // Writes that come afterwards do not count.
        drain.answered(|| true, 99, at(5));
        assert!(!drain.is_done(8) && drain.is_done(9));
    }

    #[test]
    fn drain_ends_although_transfers_and_requests_do_not() {
        let mut drain = Drain::default();
        drain.start(at(0));
        drain.handed_over(|| true, at(HAND_OVER_US));
        assert!(drain.rejects());
        drain.answered(|| false, 0, at(HAND_OVER_US + ANSWER_US));
        assert!(drain.is_done(0));
    }
}
