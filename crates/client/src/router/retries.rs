//! Pauses between the tries of a request, and the reasons why a try failed.

use palisade_wire::Rejection;

/// The pause before a retry doubles from the first value to the last, in microseconds.
const FIRST_PAUSE_US: u64 = 1_000;
const LAST_PAUSE_US: u64 = 50_000;

/// Retries that may be sent at once, and within a second, beside one for each answer. Far below
/// what a shard rejects in a second.
const RETRIES: u64 = 1024;
const RETRIES_PER_S: u64 = 5_000;

/// Shortest time between two requests for the range map, in microseconds.
pub(super) const REFRESH_PAUSE_US: u64 = 200_000;

/// Limits the rate of retries: while nothing is served, many calls would otherwise send each of
/// their requests 20 times a second. Each answer allows a retry, so that calls that have waited for
/// a new leader do not wait any longer.
#[derive(Debug)]
pub(super) struct RetryBudget {
    /// Retries left at `at_us`, in millionths.
    left: u64,
    at_us: u64,
}

/// A retry in the unit of [`RetryBudget`].
const RETRY: u64 = 1_000_000;

impl RetryBudget {
    pub(super) fn new(now_us: u64) -> Self {
        Self { left: RETRIES * RETRY, at_us: now_us }
    }

    /// Records that a request was served.
    pub(super) fn served(&mut self) {
        self.left = (self.left + RETRY).min(RETRIES * RETRY);
    }

    /// Returns the time from which on a retry may be sent.
    pub(super) fn ready_us(&self) -> u64 {
        self.at_us + RETRY.saturating_sub(self.left).div_ceil(RETRIES_PER_S)
    }

    /// Takes a retry from the budget. Returns false if there is none.
    pub(super) fn take(&mut self, now_us: u64) -> bool {
        let earned = now_us.saturating_sub(self.at_us).saturating_mul(RETRIES_PER_S);
        self.left = self.left.saturating_add(earned).min(RETRIES * RETRY);
        self.at_us = self.at_us.max(now_us);
        let has_one = self.left >= RETRY;
        if has_one {
            self.left -= RETRY;
        }
        has_one
    }
}

/// Returns the pause before the next try, after so many tries that failed. All but the first are
/// shortened by up to a half at random, so that clients that failed together retry apart.
pub(super) fn pause_us(tries: u32, random: &mut fastrand::Rng) -> u64 {
    let doublings = tries.saturating_sub(1).min(10);
    let pause_us = (FIRST_PAUSE_US << doublings).min(LAST_PAUSE_US);
    if doublings == 0 { pause_us } else { pause_us - random.u64(0..=pause_us / 2) }
}

/// Returns the cause of a retryable rejection, for the error of a call that ends by its deadline.
pub(super) fn reason(rejection: Rejection) -> &'static str {
    match rejection {
        Rejection::Overloaded | Rejection::TooManyOutcomes => "the shard is overloaded",
        Rejection::Locked => "others hold the locks",
        Rejection::LogFull => "the shard's log is full",
        Rejection::ClockUncertain => "the node's clock is not trusted",
        Rejection::Draining => "the node is shutting down",
        Rejection::NotNow => "the replicas cannot be changed now",
        Rejection::NotYet => "the timestamp to read at lies in the future",
        Rejection::Unknown => "leadership changed during the request",
        _ => "no replica serves the range",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_limited_to_a_rate_and_to_the_answers() {
        let mut budget = RetryBudget::new(1_000);
        let taken = |budget: &mut RetryBudget, now_us| {
            (0..9_999).take_while(|_| budget.take(now_us)).count() as u64
        };
        assert_eq!(budget.ready_us(), 1_000);
        assert_eq!(taken(&mut budget, 1_000), RETRIES);
        assert_eq!(budget.ready_us(), 1_200);
        assert_eq!((taken(&mut budget, 1_199), taken(&mut budget, 1_200)), (0, 1));
        assert_eq!(taken(&mut budget, 101_200), RETRIES_PER_S / 10);
        (0..3).for_each(|_| budget.served());
        assert_eq!(taken(&mut budget, 101_200), 3);
        assert_eq!(taken(&mut budget, u64::MAX), RETRIES);
    }

    #[test]
    fn backoff_doubles_up_to_limit() {
        let random = &mut fastrand::Rng::with_seed(7);
        let longest = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 50_000, 50_000];
        for (tries, longest_us) in (1..).zip(longest) {
            let pauses: Vec<_> = (0..99).map(|_| pause_us(tries, random)).collect();
            let bounds = longest_us / 2..=longest_us;
            assert!(pauses.iter().all(|us| bounds.contains(us)), "{tries} tries: {pauses:?}");
            assert_eq!(pauses.iter().any(|us| *us < longest_us), tries > 1);
        }
        assert!(pause_us(u32::MAX, random) <= LAST_PAUSE_US);
    }
}
