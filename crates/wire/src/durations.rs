//! Counts durations by powers of two.

use serde::{Deserialize, Serialize};

/// Number of buckets of [`Durations`]. The last but one holds durations below 34 s.
pub const DURATION_BUCKETS: usize = 27;

/// Counts durations by powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durations {
    /// Bucket `b` counts durations of less than 2^`b` microseconds that no earlier bucket counts.
    /// The last bucket counts all others.
    pub counts: [u64; DURATION_BUCKETS],
    /// The sum of all durations, in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// Counts a duration in microseconds.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut durations = palisade_wire::Durations::default();
    /// durations.record(700);
    /// assert_eq!((durations.counts[10], durations.sum_us), (1, 700));
    /// ```
    pub fn record(&mut self, us: u64) {
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.counts[bucket.min(DURATION_BUCKETS - 1)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Adds the durations that another count holds.
    pub fn add(&mut self, other: &Self) {
        for (count, others) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(others);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    /// Returns how many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Returns a bound in microseconds below which `per_mille` of 1,000 durations lie. It is at
    /// most twice the quantile. `None` if nothing was counted, or the quantile is in the last
    /// bucket.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut durations = palisade_wire::Durations::default();
    /// (0..100).for_each(|us| durations.record(us));
    /// assert_eq!(durations.quantile_us(500), Some(64));
    /// ```
    pub fn quantile_us(&self, per_mille: u64) -> Option<u64> {
        let needed = self.count().saturating_mul(per_mille).div_ceil(1_000).max(1);
        let mut below = 0_u64;
        let bucket = self.counts.iter().position(|count| {
            below = below.saturating_add(*count);
            below >= needed
        })?;
        (bucket + 1 < DURATION_BUCKETS).then_some(1 << bucket)
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

    #[test]
    fn quantile_bounds_the_durations() {
        let mut durations = Durations::default();
        assert_eq!(durations.quantile_us(500), None);
        [3, 3, 3, 1_000].iter().for_each(|us| durations.record(*us));
        assert_eq!(durations.quantile_us(500), Some(4));
        assert_eq!(durations.quantile_us(750), Some(4));
        assert_eq!(durations.quantile_us(990), Some(1_024));
        durations.record(u64::MAX);
        assert_eq!(durations.quantile_us(1_000), None);
    }
}
