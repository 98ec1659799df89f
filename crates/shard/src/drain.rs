//! A planned stop: the shard hands over its leaderships, then answers what is pending.
//!
//! ```text
//! serves ── start ──> hands over ── nothing left to hand over, or 2 s ──> rejects
//!                     serves as before                                    `Draining`
//! ```
//!
//! Without this, the groups led here would wait until their followers suspect the node. Chains have
//! no part in it: a member of a chain is removed by an operator.

use palisade_clock::Now;

/// How long leaderships are handed over at most, in microseconds. A follower may not catch up, or
/// the votes of a majority may not arrive.
const HAND_OVER_US: u64 = 2_000_000;

/// How far a planned stop has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Drain {
    /// No stop is planned.
    #[default]
    Serving,
    /// Leaderships are handed over, until `until_us` at the latest. Requests are served.
    HandingOver { until_us: u64 },
    /// All requests but `Status` are rejected with `Draining`. Pending ones are still answered; a
    /// read that waits for its timestamp is rejected when that has passed.
    Rejecting,
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

    /// Rejects requests from now on if `has_successors` is false, which states that no leadership
    /// can be handed over any more, or once the time is up.
    pub(crate) fn advance(&mut self, has_successors: impl FnOnce() -> bool, now: Now) {
        if let Self::HandingOver { until_us } = *self
            && (now.monotonic_us >= until_us || !has_successors())
        {
            *self = Self::Rejecting;
        }
    }

    /// Returns true while leaderships are handed over.
    pub(crate) fn hands_over(self) -> bool {
        matches!(self, Self::HandingOver { .. })
    }

    /// Returns true if requests are rejected.
    pub(crate) fn rejects(self) -> bool {
        self == Self::Rejecting
    }
}
