//! Pauses between the tries of a request, and the reasons why a try failed.

use palisade_wire::Rejection;

/// The pause before a retry doubles from the first value to the last, in microseconds.
const FIRST_PAUSE_US: u64 = 1_000;
const LAST_PAUSE_US: u64 = 50_000;

/// Shortest time between two requests for the range map, in microseconds.
pub(super) const REFRESH_PAUSE_US: u64 = 200_000;

/// Returns the pause before the next try, after so many tries that failed.
pub(super) fn pause_us(tries: u32) -> u64 {
    let doublings = tries.saturating_sub(1).min(10);
    (FIRST_PAUSE_US << doublings).min(LAST_PAUSE_US)
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
        let pauses: Vec<_> = (1..=8).map(pause_us).collect();
        assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 50_000, 50_000]);
        assert_eq!(pause_us(u32::MAX), LAST_PAUSE_US);
    }
}
