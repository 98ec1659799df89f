//! Where readings come from.

use rustix::time::{ClockId, clock_gettime};

use crate::{Interval, Now};

/// The kernel's clocks, with a configured bound on the error of the wall clock.
///
/// HAZARD: the bound is a promise of whoever configured it. The kernel's own estimate is not
/// consulted.
#[derive(Clone, Copy, Debug)]
pub struct KernelClock {
    bound_us: u64,
}

impl KernelClock {
    /// The kernel's clocks, with the wall clock trusted to within `bound_us` microseconds.
    pub fn new(bound_us: u64) -> Self {
        Self { bound_us }
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        Now {
            monotonic_us: read_us(ClockId::Boottime),
            wall: Interval::around(read_us(ClockId::Realtime), self.bound_us),
        }
    }
}

fn read_us(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).expect("the clock shows a time after 1970");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("nanoseconds are never negative");
    seconds * 1_000_000 + nanoseconds / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_does_not_go_back_and_the_interval_holds_the_reading() {
        let clock = KernelClock::new(250);
        let mut last_us = 0;
        for _ in 0..1_000 {
            let now = clock.now();
            assert!(now.monotonic_us >= last_us);
            assert_eq!(now.wall.latest_us - now.wall.earliest_us, 500);
            last_us = now.monotonic_us;
        }
    }
}
