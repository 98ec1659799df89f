//! The hybrid logical clock.
//!
//! The problem: versions need timestamps that respect causality between nodes whose clocks differ.
//! The wall clock alone fails as soon as a message arrives from a node whose clock is ahead. The
//! hybrid clock (Kulkarni et al. 2014, §3) keeps the largest timestamp seen. It follows physical
//! time whenever that is larger, and increments a logical counter otherwise.

use thiserror::Error;

use crate::{Interval, Timestamp};

/// The hybrid logical clock of one shard.
#[derive(Clone, Debug)]
pub struct Hlc {
    last: Timestamp,
    /// Limit in microseconds, for two things: how far a remote timestamp may lie above the latest
    /// that true time may be, and the error bound of a reading.
    max_offset_us: u64,
}

/// The reason why a timestamp was not adopted or not issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HlcError {
    /// The remote clock is further ahead than the configured limit. Not retryable until one of the
    /// two clocks is repaired.
    #[error(
        "a remote timestamp {remote} is {ahead_us} us ahead of this node's clock, more than the \
         allowed {max_offset_us} us: check clock synchronisation on both nodes"
    )]
    TooFarAhead {
        /// The remote timestamp.
        remote: Timestamp,
        /// How far it lies above the latest that true time may be here, in microseconds.
        ahead_us: u64,
        /// The limit for `ahead_us`, in microseconds.
        max_offset_us: u64,
    },
    /// The error bound of this node's clock is above the limit. Retryable at another node.
    #[error(
        "this node's clock is right to within {bound_us} us only, more than the allowed \
         {max_offset_us} us: check its clock synchronisation"
    )]
    Unsure {
        /// The clock's error bound, in microseconds.
        bound_us: u64,
        /// The limit for `bound_us`, in microseconds.
        max_offset_us: u64,
    },
}

impl Hlc {
    /// Creates a clock at [`Timestamp::ZERO`]. `max_offset_us` is the limit on remote timestamps
    /// and on the error bound of readings, in microseconds.
    pub fn new(max_offset_us: u64) -> Self {
        Self { last: Timestamp::ZERO, max_offset_us }
    }

    /// Returns the next timestamp: above all that were returned or observed before, and not below
    /// the reading.
    ///
    /// # Panics
    ///
    /// If the reading lies after the year 2112.
    pub fn tick(&mut self, wall: Interval) -> Timestamp {
        let physical = Timestamp::from_physical_us(wall.reading_us());
        let next = physical.max(self.last.next());
        assert!(next > self.last, "the hybrid clock went back: {next} after {}", self.last);
        self.last = next;
        next
    }

    /// Returns the timestamp of a commit that is ordered now. It is above `issued_ts`, the last one
    /// of its range, and not below true time (Spanner, OSDI'12 §4.1.2, "start"). A reply that
    /// reveals the commit must wait until the timestamp has passed: see [`Interval::has_passed`].
    ///
    /// The timestamp may lie in the future, so this clock does not adopt it. Otherwise this node's
    /// messages would raise other clocks, and commits there would wait for this node's uncertainty
    /// (CockroachDB, RFC 20200811, "non-blocking transactions").
    ///
    /// # Errors
    ///
    /// [`HlcError::Unsure`] if the error bound of the reading is above the allowed offset.
    /// Retryable at another node.
    ///
    /// # Panics
    ///
    /// If the interval ends after the year 2112.
    pub fn commit_ts(&self, wall: Interval, issued_ts: Timestamp) -> Result<Timestamp, HlcError> {
        let (bound_us, max_offset_us) = (wall.bound_us(), self.max_offset_us);
        if bound_us > max_offset_us {
            return Err(HlcError::Unsure { bound_us, max_offset_us });
        }
        Ok(Timestamp::from_physical_us(wall.latest_us).max(issued_ts.next()))
    }

    /// Adopts a timestamp from another node: later ticks are above it.
    ///
    /// # Errors
    ///
    /// [`HlcError::TooFarAhead`] if it lies above the allowed offset. The clock is unchanged then.
    pub fn observe(&mut self, remote: Timestamp, wall: Interval) -> Result<(), HlcError> {
        let ahead_us = wall.beyond_us(remote);
        if ahead_us > self.max_offset_us {
            let max_offset_us = self.max_offset_us;
            return Err(HlcError::TooFarAhead { remote, ahead_us, max_offset_us });
        }
        self.last = self.last.max(remote);
        Ok(())
    }

    /// Returns the largest timestamp that was returned by [`Hlc::tick`] or observed.
    pub fn last(&self) -> Timestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(reading_us: u64) -> Interval {
        Interval::around(reading_us, 10)
    }

    #[test]
    fn timestamps_rise_while_wall_clock_stalls_or_steps_back() {
        let mut hlc = Hlc::new(100);
        let mut last = hlc.tick(at(1_000));
        for reading_us in [1_000, 1_000, 400, 1_001, 0, 5_000, 4_999] {
            let next = hlc.tick(at(reading_us));
            assert!(next > last);
            last = next;
        }
        assert_eq!(last.physical_us(), 5_000);
    }

    #[test]
    fn logical_counter_overflow_advances_physical_part() {
        let mut hlc = Hlc::new(100);
        let first = hlc.tick(at(1_007));
        let mut last = first;
        for _ in 0..5_000 {
            let next = hlc.tick(at(1_007));
            assert!(next > last);
            last = next;
        }
        assert_eq!(last.physical_us(), 1_008);
    }

    #[test]
    fn commit_ts_is_monotonic_and_at_least_true_time() {
        let hlc = Hlc::new(100);
        let first = hlc.commit_ts(at(1_000), Timestamp::ZERO).unwrap();
        assert_eq!(first.physical_us(), 1_010);
        assert!(!at(1_020).has_passed(first) && at(1_021).has_passed(first));
        assert!(hlc.commit_ts(at(500), first).unwrap() > first);
        let unsure = HlcError::Unsure { bound_us: 101, max_offset_us: 100 };
        assert_eq!(hlc.commit_ts(Interval::around(1_000, 101), first), Err(unsure));
        assert_eq!(hlc.last(), Timestamp::ZERO);
    }

    #[test]
    fn remote_timestamp_within_max_offset_is_adopted() {
        let mut hlc = Hlc::new(100);
        let remote = Timestamp::from_physical_us(1_110);
        hlc.observe(remote, at(1_000)).unwrap();
        assert!(hlc.tick(at(1_000)) > remote);
    }

    #[test]
    fn remote_timestamp_too_far_ahead_is_rejected() {
        let mut hlc = Hlc::new(100);
        let before = hlc.tick(at(1_000));
        let remote = Timestamp::from_physical_us(1_111);
        assert!(matches!(
            hlc.observe(remote, at(1_000)),
            Err(HlcError::TooFarAhead { ahead_us: 101, .. })
        ));
        assert_eq!(hlc.last(), before);
    }
}
