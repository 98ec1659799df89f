//! Timestamps, and clock readings with their error bounds.

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
    /// Below every timestamp that a clock issues.
    pub const ZERO: Self = Self(0);
    /// Above every timestamp that a clock issues.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the first timestamp of a microsecond since the Unix epoch.
    ///
    /// # Panics
    ///
    /// If `physical_us` is 2^52 or more, in the year 2112.
    pub fn from_physical_us(physical_us: u64) -> Self {
        assert!(physical_us < 1 << (64 - LOGICAL_BITS), "physical time {physical_us} us overflows");
        Self(physical_us << LOGICAL_BITS)
    }

    /// Returns the timestamp with this bit pattern, as returned by [`Timestamp::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the bit pattern, which is ordered like the timestamps.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the physical part, in microseconds since the Unix epoch.
    pub fn physical_us(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// Returns the logical counter within the microsecond, below 4,096.
    pub fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// Returns the lowest timestamp above this one.
    ///
    /// # Panics
    ///
    /// If this is [`Timestamp::MAX`].
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("timestamps do not run out before the year 2112"))
    }

    /// Adds a duration in microseconds. Returns [`Timestamp::MAX`] on overflow.
    #[must_use]
    pub fn saturating_add_us(self, duration_us: u64) -> Self {
        Self(self.0.saturating_add(duration_bits(duration_us)))
    }

    /// Subtracts a duration in microseconds. Returns [`Timestamp::ZERO`] on underflow.
    #[must_use]
    pub fn saturating_sub_us(self, duration_us: u64) -> Self {
        Self(self.0.saturating_sub(duration_bits(duration_us)))
    }
}

/// Returns a duration as the difference of two bit patterns, at most the largest one.
fn duration_bits(duration_us: u64) -> u64 {
    duration_us.min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS
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

/// A reading of a wall clock: the interval in which true time lies, both ends included, in
/// microseconds since the Unix epoch (Spanner, OSDI'12 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The earliest that true time may be. Not above `latest_us`.
    pub earliest_us: u64,
    /// The latest that true time may be.
    pub latest_us: u64,
}

impl Interval {
    /// Returns the interval around a reading, with the same error bound on both sides.
    pub fn around(reading_us: u64, bound_us: u64) -> Self {
        Self {
            earliest_us: reading_us.saturating_sub(bound_us),
            latest_us: reading_us.saturating_add(bound_us),
        }
    }

    /// Returns how far a timestamp lies above the latest that true time may be, in microseconds, or
    /// 0 if it does not.
    pub fn beyond_us(self, ts: Timestamp) -> u64 {
        ts.physical_us().saturating_sub(self.latest_us)
    }

    /// Returns true if a timestamp is below true time for certain (Spanner's `TT.after`).
    pub fn has_passed(self, ts: Timestamp) -> bool {
        ts < Timestamp::from_physical_us(self.earliest_us)
    }

    /// Returns the least time until a timestamp has passed, in microseconds.
    pub fn until_passed_us(self, ts: Timestamp) -> u64 {
        (ts.physical_us() + 1).saturating_sub(self.earliest_us)
    }

    /// Returns the error bound of the reading, in microseconds: half the width, rounded up.
    pub fn bound_us(self) -> u64 {
        (self.latest_us - self.earliest_us).div_ceil(2)
    }

    /// Returns the middle of the interval, which is what the clock itself showed.
    pub fn reading_us(self) -> u64 {
        self.earliest_us + (self.latest_us - self.earliest_us) / 2
    }
}

/// The present time, as passed to all deterministic code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Microseconds on a clock that never goes back and includes time spent suspended. Its zero is
    /// arbitrary and differs between nodes.
    pub monotonic_us: u64,
    /// The reading of the wall clock.
    pub wall: Interval,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_arithmetic_saturates() {
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
