//! Points in time, and what a clock can say of the present.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bits of a timestamp that count events within one microsecond.
const LOGICAL_BITS: u32 = 12;

/// A hybrid logical timestamp: microseconds since the Unix epoch (52 bits, enough until the year
/// 2112) and a logical counter (12 bits) that orders events within one microsecond.
///
/// The counter overflows into the microseconds, which keeps the order and costs at most a
/// microsecond of drift per 4,096 events (Kulkarni et al. 2014, §3 bounds the same drift).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Below every timestamp that a clock hands out.
    pub const ZERO: Self = Self(0);
    /// Above every timestamp that a clock hands out.
    pub const MAX: Self = Self(u64::MAX);

    /// The first timestamp of a microsecond.
    pub fn from_physical_us(physical_us: u64) -> Self {
        assert!(physical_us < 1 << (64 - LOGICAL_BITS), "physical time {physical_us} us overflows");
        Self(physical_us << LOGICAL_BITS)
    }

    /// The timestamp with this bit pattern, as written by [`Timestamp::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bit pattern, ordered like the timestamps themselves.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Microseconds since the Unix epoch.
    pub fn physical_us(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The place among the events of the same microsecond.
    pub fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// The next timestamp.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("timestamps do not run out before the year 2112"))
    }

    /// This timestamp and a duration later, or [`Timestamp::MAX`].
    #[must_use]
    pub fn saturating_add_us(self, duration_us: u64) -> Self {
        let bits = duration_us.min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS;
        Self(self.0.saturating_add(bits))
    }

    /// This timestamp less a duration, or [`Timestamp::ZERO`].
    #[must_use]
    pub fn saturating_sub_us(self, duration_us: u64) -> Self {
        let bits = duration_us.min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS;
        Self(self.0.saturating_sub(bits))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04}", self.physical_us(), self.logical())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a wall clock knows of the present: true time lies within, ends included, in microseconds
/// since the Unix epoch (Spanner, OSDI'12 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// True time is not before this.
    pub earliest_us: u64,
    /// True time is not after this.
    pub latest_us: u64,
}

impl Interval {
    /// A reading with the same error bound on both sides.
    pub fn around(reading_us: u64, bound_us: u64) -> Self {
        Self {
            earliest_us: reading_us.saturating_sub(bound_us),
            latest_us: reading_us.saturating_add(bound_us),
        }
    }

    /// How far a timestamp lies beyond the latest that true time may be, in microseconds.
    pub fn beyond_us(self, ts: Timestamp) -> u64 {
        ts.physical_us().saturating_sub(self.latest_us)
    }

    /// Whether a timestamp lies before true time, whatever that is (Spanner's `TT.after`).
    pub fn has_passed(self, ts: Timestamp) -> bool {
        ts < Timestamp::from_physical_us(self.earliest_us)
    }

    /// How long it takes at least until a timestamp has passed, in microseconds.
    pub fn until_passed_us(self, ts: Timestamp) -> u64 {
        (ts.physical_us() + 1).saturating_sub(self.earliest_us)
    }

    /// How far the clock that showed this is trusted, in microseconds.
    pub fn bound_us(self) -> u64 {
        (self.latest_us - self.earliest_us).div_ceil(2)
    }

    /// The middle: what the clock itself showed.
    pub fn reading_us(self) -> u64 {
        self.earliest_us + (self.latest_us - self.earliest_us) / 2
    }
}

/// The present, as handed to everything deterministic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds on a clock that never goes back and counts time spent suspended; its zero is
    /// arbitrary, and differs between nodes.
    pub monotonic_us: u64,
    /// The wall clock.
    pub wall: Interval,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_durations_saturate() {
        let ts = Timestamp::from_physical_us(5_000);
        for duration_us in [5_001, 1 << 52, (1 << 52) + 7, u64::MAX] {
            assert_eq!(ts.saturating_sub_us(duration_us), Timestamp::ZERO, "{duration_us}");
        }
        assert_eq!(ts.saturating_sub_us(4_999), Timestamp::from_physical_us(1));
        assert_eq!(ts.saturating_add_us(1), Timestamp::from_physical_us(5_001));
        assert_eq!(ts.saturating_add_us(1 << 52), Timestamp::MAX);
        assert_eq!(ts.saturating_add_us(u64::MAX), Timestamp::MAX);
    }
}
