//! Where readings come from, and how far they are trusted.
//!
//! HAZARD: every order that timestamps promise rests on the bound. A bound that is too small loses
//! the order between keys; one that is too large only makes commits wait.
//!
//! HAZARD: the kernel's estimate is that of whatever disciplines the clock. It covers the distance
//! to a server, not a server that is itself wrong, and not a virtual machine that was stopped and
//! whose clock nobody has corrected yet.
//!
//! HAZARD: a stopped machine's clock is right again only once its daemon has noticed. ClockBound says
//! so meanwhile; the kernel does not.

use std::cell::Cell;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{Interval, Now};

/// The kernel's estimate is asked for anew after this long.
const ESTIMATE_US: u64 = 1_000_000;

/// By this much a clock may run wrong between two corrections: the kernel's own figure (500 parts
/// in a million), for the time that an estimate is used.
const DRIFT_PER_ESTIMATE_US: u64 = ESTIMATE_US * 500 / 1_000_000;

/// Who is asked how far the wall clock is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// Whoever configured the bound. Right where all nodes read the same clock.
    Fixed,
    /// The kernel (`adjtimex`), while it calls its clock synchronised; else the configured bound.
    Kernel,
    /// The ClockBound daemon; while it does not vouch for the clock, the clock is not trusted at all.
    #[cfg(feature = "clockbound")]
    ClockBound,
}

/// Who vouches for the bound at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Voucher {
    /// Whoever configured it.
    #[default]
    Config,
    /// The kernel.
    Kernel,
    /// The ClockBound daemon.
    ClockBound,
    /// Nobody: whoever was to be asked does not know.
    Nobody,
}

/// How far the wall clock is trusted at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The clock is right to within so many microseconds.
    pub bound_us: u64,
    /// Who says so.
    pub by: Voucher,
}

/// The kernel's clocks, with a bound on the error of the wall clock.
#[derive(Debug)]
pub struct KernelClock {
    source: ClockSource,
    bound_us: u64,
    /// The kernel's last estimate, and when it was made.
    estimate: Cell<Option<(Estimate, u64)>>,
    #[cfg(feature = "clockbound")]
    daemon: crate::clockbound::Daemon,
}

impl KernelClock {
    /// The kernel's clocks. `bound_us` is how far the wall clock is trusted when the source does not
    /// say.
    pub fn new(source: ClockSource, bound_us: u64) -> Self {
        Self {
            source,
            bound_us,
            estimate: Cell::new(None),
            #[cfg(feature = "clockbound")]
            daemon: crate::clockbound::Daemon::default(),
        }
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let (now, _) = self.read();
        now
    }

    /// How far the wall clock is trusted now.
    pub fn estimate(&self) -> Estimate {
        let (now, by) = self.read();
        Estimate { bound_us: now.wall.bound_us(), by }
    }

    fn read(&self) -> (Now, Voucher) {
        let monotonic_us = read_us(ClockId::Boottime);
        let Estimate { bound_us, by } = match self.source {
            ClockSource::Fixed => Estimate { bound_us: self.bound_us, by: Voucher::Config },
            ClockSource::Kernel => self.kernel_estimate(monotonic_us),
            #[cfg(feature = "clockbound")]
            ClockSource::ClockBound => {
                let (wall, by) = self.daemon.read(monotonic_us);
                return (Now { monotonic_us, wall }, by);
            }
        };
        (Now { monotonic_us, wall: Interval::around(read_wall_us(), bound_us) }, by)
    }

    /// What the kernel says, not longer than a moment ago.
    fn kernel_estimate(&self, monotonic_us: u64) -> Estimate {
        match self.estimate.get() {
            Some((estimate, at_us)) if monotonic_us.saturating_sub(at_us) < ESTIMATE_US => estimate,
            _ => {
                let estimate = match kernel_max_error_us() {
                    Some(error_us) => {
                        Estimate { bound_us: error_us + DRIFT_PER_ESTIMATE_US, by: Voucher::Kernel }
                    }
                    None => Estimate { bound_us: self.bound_us, by: Voucher::Nobody },
                };
                self.estimate.set(Some((estimate, monotonic_us)));
                estimate
            }
        }
    }
}

/// What the wall clock shows, whether or not it is right, in microseconds since 1970.
pub(crate) fn read_wall_us() -> u64 {
    read_us(ClockId::Realtime)
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
        let estimate = clock.estimate();
        match kernel_max_error_us() {
            None => assert_eq!(estimate, Estimate { bound_us: 123_456, by: Voucher::Nobody }),
            Some(_) => {
                assert_eq!(estimate.by, Voucher::Kernel);
                assert!(estimate.bound_us >= DRIFT_PER_ESTIMATE_US);
            }
        }
        assert_eq!(now.wall.bound_us(), estimate.bound_us);
        // The same estimate serves for a while.
        let known = Estimate { bound_us: 7, by: Voucher::Kernel };
        clock.estimate.set(Some((known, now.monotonic_us)));
        assert_eq!(clock.kernel_estimate(now.monotonic_us + ESTIMATE_US - 1), known);
        assert_ne!(clock.kernel_estimate(now.monotonic_us + ESTIMATE_US), known);
    }
}
