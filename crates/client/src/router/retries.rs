//! Pauses between the tries of a request, and the reasons why a try failed.

use palisade_wire::Rejection;

/// The pause before a retry doubles from the first value to the last, in microseconds.
const FIRST_PAUSE_US: u64 = 1_000;
const LAST_PAUSE_US: u64 = 50_000;

/// Shortest time between two requests for the range map, in microseconds.
pub(super) const REFRESH_PAUSE_US: u64 = 200_000;

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
