//! The hybrid logical clock.
//!
//! The problem: versions need timestamps that respect causality between nodes whose clocks differ.
//! Reading the wall clock alone fails as soon as a message arrives from a node whose clock is
//! ahead. The hybrid clock (Kulkarni et al. 2014, §3) keeps the largest timestamp seen, follows
//! physical time whenever that is larger, and counts otherwise.

use thiserror::Error;

use crate::{Interval, Timestamp};

/// A hybrid logical clock of one shard.
#[derive(Clone, Debug)]
pub struct Hlc {
    last: Timestamp,
    /// How far above `latest` a remote timestamp may lie, and how far the clock may be wrong, in
    /// microseconds.
    max_offset_us: u64,
}

/// Why a timestamp was not adopted, or not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HlcError {
    /// The remote clock is further ahead than the configured bound. Not retryable until one of the
    /// two clocks is repaired.
    #[error(
        "a remote timestamp {remote} is {ahead_us} us ahead of this node's clock, more than the \
         allowed {max_offset_us} us: check clock synchronisation on both nodes"
    )]
    TooFarAhead {
        /// What arrived.
        remote: Timestamp,
        /// How far above this clock's latest it lies, in microseconds.
        ahead_us: u64,
        /// The bound that it broke, in microseconds.
        max_offset_us: u64,
    },
    /// This node's own clock is not right to within the bound. Retryable at another node.
    #[error(
        "this node's clock is right to within {bound_us} us only, more than the allowed \
         {max_offset_us} us: check its clock synchronisation"
    )]
    Unsure {
        /// How far the clock may be wrong, in microseconds.
        bound_us: u64,
        /// How far it may be, in microseconds.
        max_offset_us: u64,
    },
}

impl Hlc {
    /// A clock that has handed out nothing yet.
    pub fn new(max_offset_us: u64) -> Self {
        Self { last: Timestamp::ZERO, max_offset_us }
    }

    /// The next timestamp: above all that were handed out or observed, and not below the reading.
    pub fn tick(&mut self, wall: Interval) -> Timestamp {
        let physical = Timestamp::from_physical_us(wall.reading_us());
        let next = physical.max(self.last.next());
        assert!(next > self.last, "the hybrid clock went back: {next} after {}", self.last);
        self.last = next;
        next
    }

    /// The timestamp of a commit that is ordered now: above `issued_ts`, the last one of its range,
    /// and not below true time (Spanner, OSDI'12 §4.1.2, "start"). An answer that tells of the
    /// commit must wait until the timestamp has passed: see [`Interval::has_passed`].
    ///
    /// It may lie in the future, so this clock does not follow it: what a node sends would raise
    /// the clocks of others, and their commits would wait for this node's uncertainty (CockroachDB,
    /// RFC 20200811, "non-blocking transactions").
    ///
    /// # Errors
    ///
    /// [`HlcError::Unsure`] if the reading is not right to within the offset allowed.
    pub fn commit_ts(&self, wall: Interval, issued_ts: Timestamp) -> Result<Timestamp, HlcError> {
        let (bound_us, max_offset_us) = (wall.bound_us(), self.max_offset_us);
        if bound_us > max_offset_us {
            return Err(HlcError::Unsure { bound_us, max_offset_us });
        }
        Ok(Timestamp::from_physical_us(wall.latest_us).max(issued_ts.next()))
    }

    /// Takes note of a timestamp from another node.
    pub fn observe(&mut self, remote: Timestamp, wall: Interval) -> Result<(), HlcError> {
        let ahead_us = wall.beyond_us(remote);
        if ahead_us > self.max_offset_us {
            let max_offset_us = self.max_offset_us;
            return Err(HlcError::TooFarAhead { remote, ahead_us, max_offset_us });
        }
        self.last = self.last.max(remote);
        Ok(())
    }

    /// The largest timestamp handed out or observed.
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
    fn timestamps_rise_while_the_wall_clock_stands_or_goes_back() {
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
    fn more_events_than_a_microsecond_counts_run_into_the_next_one() {
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
    fn a_commit_is_not_below_true_time_and_rises_and_the_clock_does_not_follow() {
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
    fn a_remote_timestamp_within_the_bound_is_adopted() {
        let mut hlc = Hlc::new(100);
        let remote = Timestamp::from_physical_us(1_110);
        hlc.observe(remote, at(1_000)).unwrap();
        assert!(hlc.tick(at(1_000)) > remote);
    }

    #[test]
    fn a_remote_timestamp_far_ahead_is_rejected_and_leaves_no_trace() {
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
