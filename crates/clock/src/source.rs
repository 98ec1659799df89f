//! Where readings come from, and how far they are trusted.
//!
//! HAZARD: every order that timestamps promise rests on the bound. A bound that is too small loses
//! the order between keys; one that is too large only makes commits wait.
//!
//! HAZARD: the kernel's estimate is that of whatever disciplines the clock. It covers the distance
//! to a server, not a server that is itself wrong, and not a virtual machine that was stopped and
//! whose clock nobody has corrected yet.

use std::cell::Cell;

use rustix::time::{ClockId, clock_gettime};

use crate::{Interval, Now};

/// The kernel's estimate is asked for anew after this long.
const ESTIMATE_US: u64 = 1_000_000;

/// By this much a clock may run wrong between two corrections: the kernel's own figure (500 parts
/// in a million), for the time that an estimate is used.
const DRIFT_PER_ESTIMATE_US: u64 = ESTIMATE_US * 500 / 1_000_000;

/// Who says how far the wall clock is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// Whoever configured the bound. Right where all nodes read the same clock.
    Fixed,
    /// The kernel (`adjtimex`), while it calls its clock synchronised; else the configured bound.
    Kernel,
}

/// How far the wall clock is trusted at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The clock is right to within so many microseconds.
    pub bound_us: u64,
    /// Whether the kernel says so; otherwise it is as configured.
    pub by_kernel: bool,
}

/// The kernel's clocks, with a bound on the error of the wall clock.
#[derive(Clone, Debug)]
pub struct KernelClock {
    source: ClockSource,
    bound_us: u64,
    /// The last estimate, and when it was made.
    estimate: Cell<Option<(Estimate, u64)>>,
}

impl KernelClock {
    /// The kernel's clocks. `bound_us` is how far the wall clock is trusted when the source does not
    /// say.
    pub fn new(source: ClockSource, bound_us: u64) -> Self {
        Self { source, bound_us, estimate: Cell::new(None) }
    }

    /// Who says how far the wall clock is trusted.
    pub fn source(&self) -> ClockSource {
        self.source
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let monotonic_us = read_us(ClockId::Boottime);
        let Estimate { bound_us, .. } = self.estimate(monotonic_us);
        Now { monotonic_us, wall: Interval::around(read_us(ClockId::Realtime), bound_us) }
    }

    /// How far the wall clock is trusted at a time of the monotonic clock.
    pub fn estimate(&self, monotonic_us: u64) -> Estimate {
        match self.estimate.get() {
            Some((estimate, at_us)) if monotonic_us.saturating_sub(at_us) < ESTIMATE_US => estimate,
            _ => {
                let estimate = self.estimate_anew();
                self.estimate.set(Some((estimate, monotonic_us)));
                estimate
            }
        }
    }

    fn estimate_anew(&self) -> Estimate {
        let of_kernel = match self.source {
            ClockSource::Fixed => None,
            ClockSource::Kernel => kernel_max_error_us(),
        };
        of_kernel.map_or(Estimate { bound_us: self.bound_us, by_kernel: false }, |error_us| {
            Estimate { bound_us: error_us + DRIFT_PER_ESTIMATE_US, by_kernel: true }
        })
    }
}

/// The largest error that the kernel takes its wall clock to have, or `None` if it calls it
/// unsynchronised.
#[expect(unsafe_code, reason = "no safe binding of adjtimex is at hand")]
fn kernel_max_error_us() -> Option<u64> {
    // SAFETY: a timex is plain numbers, for which all bits zero are a value; with `modes` zero the
    // call changes nothing and fills in the rest.
    let (state, timex) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex)
    };
    let synchronized =
        state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    u64::try_from(timex.maxerror).ok().filter(|_| synchronized)
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
        let clock = KernelClock::new(ClockSource::Fixed, 250);
        let mut last_us = 0;
        for _ in 0..1_000 {
            let now = clock.now();
            assert!(now.monotonic_us >= last_us);
            assert_eq!(now.wall.latest_us - now.wall.earliest_us, 500);
            last_us = now.monotonic_us;
        }
    }

    #[test]
    fn the_kernel_is_asked_and_where_it_does_not_know_the_configured_bound_holds() {
        let clock = KernelClock::new(ClockSource::Kernel, 123_456);
        let now = clock.now();
        let estimate = clock.estimate(now.monotonic_us);
        match kernel_max_error_us() {
            None => assert_eq!(estimate, Estimate { bound_us: 123_456, by_kernel: false }),
            Some(_) => assert!(estimate.by_kernel && estimate.bound_us >= DRIFT_PER_ESTIMATE_US),
        }
        assert_eq!(now.wall.latest_us - now.wall.earliest_us, 2 * estimate.bound_us);
        // The same estimate serves for a while.
        clock.estimate.set(Some((Estimate { bound_us: 7, by_kernel: true }, now.monotonic_us)));
        assert_eq!(clock.estimate(now.monotonic_us + ESTIMATE_US - 1).bound_us, 7);
        assert_ne!(clock.estimate(now.monotonic_us + ESTIMATE_US).bound_us, 7);
    }
}
