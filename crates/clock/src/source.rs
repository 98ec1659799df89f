//! Clock sources: readings of the wall clock, with a bound on their error.
//!
//! HAZARD: every ordering guarantee of timestamps depends on the error bound. A bound that is too
//! small breaks the order between keys. A bound that is too large only makes commits wait.
//!
//! HAZARD: the kernel's estimate comes from the daemon that disciplines the clock. It covers the
//! distance to a time server. It does not cover a server that is wrong, nor a virtual machine that
//! was paused and whose clock is not corrected yet.
//!
//! HAZARD: after a pause, a machine's clock is wrong until its time daemon notices. ClockBound
//! reports this state; the kernel does not.
//!
//! HAZARD: a daemon that slews the clock by changing its frequency (chrony) does not show the
//! kernel how much correction remains. Only what the kernel itself slews is added to the bound.
//!
//! At a leap second the wall clock steps by a second at midnight UTC. If the kernel announces one,
//! a second is added to the bound from two seconds before midnight until two seconds after. Most
//! clusters allow less, so the node serves nothing meanwhile.

use std::cell::Cell;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{Interval, Now};

/// Lifetime of a cached kernel estimate.
const ESTIMATE_US: u64 = 100_000;

/// The period in which the kernel raises its maximum error.
const KERNEL_PERIOD_US: u64 = 1_000_000;

/// Drift of the clock while an estimate is used. The estimate may already be one kernel period old
/// when it is read.
const DRIFT_PER_ESTIMATE_US: u64 = drift_us(KERNEL_PERIOD_US + ESTIMATE_US);

/// The step of a leap second, in microseconds.
const LEAP_US: u64 = 1_000_000;

/// Time before and after midnight UTC in which the wall clock may be off by a leap second.
const LEAP_WINDOW_US: u64 = 2_000_000;

const DAY_US: u64 = 86_400 * 1_000_000;

/// The source of the wall clock's error bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// The configured bound. Correct if all nodes read the same clock.
    Fixed,
    /// The kernel (`adjtimex`) while it calls its clock synchronised, else the configured bound.
    Kernel,
    /// The ClockBound daemon. While it gives no valid estimate, the clock is not trusted at all.
    #[cfg(feature = "clockbound")]
    ClockBound,
}

/// Where the present error bound comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BoundSource {
    /// The configuration.
    #[default]
    Config,
    /// The kernel.
    Kernel,
    /// The ClockBound daemon.
    ClockBound,
    /// No source: the kernel or the daemon has no valid estimate.
    Unknown,
}

/// The present error bound of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The error bound, in microseconds.
    pub bound_us: u64,
    /// Where the bound comes from.
    pub by: BoundSource,
}

/// The kernel's clocks, with a bound on the error of the wall clock.
#[derive(Debug)]
pub struct KernelClock {
    source: ClockSource,
    bound_us: u64,
    /// The last estimate with [`ClockSource::Kernel`], and a monotonic time before it was read.
    estimate: Cell<Option<(Estimate, u64)>>,
    /// True if the kernel then announced a leap second, or had just made one.
    leap_is_near: Cell<bool>,
    /// The bound of the last estimate of a synchronised kernel, in microseconds, and a monotonic
    /// time just before it was read.
    last_known: Cell<Option<(u64, u64)>>,
    #[cfg(feature = "clockbound")]
    daemon: crate::clockbound::Daemon,
}

impl KernelClock {
    /// Opens the kernel's clocks. `bound_us` is the configured error bound in microseconds.
    /// [`ClockSource::Fixed`] uses it always, [`ClockSource::Kernel`] if the kernel has no
    /// estimate.
    pub fn new(source: ClockSource, bound_us: u64) -> Self {
        Self {
            source,
            bound_us,
            estimate: Cell::new(None),
            leap_is_near: Cell::new(false),
            last_known: Cell::new(None),
            #[cfg(feature = "clockbound")]
            daemon: crate::clockbound::Daemon::default(),
        }
    }

    /// Reads the monotonic clock and the wall clock.
    ///
    /// # Panics
    ///
    /// If the wall clock shows a time before 1970.
    pub fn now(&self) -> Now {
        let (now, _) = self.read();
        now
    }

    /// Returns the present error bound of the wall clock and its source.
    pub fn estimate(&self) -> Estimate {
        let (now, by) = self.read();
        Estimate { bound_us: now.wall.bound_us(), by }
    }

    fn read(&self) -> (Now, BoundSource) {
        #[cfg(feature = "clockbound")]
        if self.source == ClockSource::ClockBound {
            let (wall, by) = self.daemon.read(read_us(ClockId::Boottime));
            return (Now { monotonic_us: read_us(ClockId::Boottime), wall }, by);
        }
        self.read_in_order(read_wall_us, || read_us(ClockId::Boottime), KernelTime::read)
    }

    /// Reads the error bound, the wall clock and the monotonic clock, in this order, because the
    /// thread may be paused between two reads. A lease that is valid by the monotonic reading was
    /// then valid when the wall clock was read. An outdated bound is detected and read again.
    fn read_in_order(
        &self,
        mut wall_us: impl FnMut() -> u64,
        mut monotonic_us: impl FnMut() -> u64,
        mut kernel: impl FnMut() -> KernelTime,
    ) -> (Now, BoundSource) {
        loop {
            let known = match self.source {
                ClockSource::Kernel => self.estimate.get(),
                _ => {
                    let by = BoundSource::Config;
                    Some((Estimate { bound_us: self.bound_us, by }, u64::MAX))
                }
            };
            let (wall_us, monotonic_us) = (wall_us(), monotonic_us());
            if let Some((Estimate { bound_us, by }, at_us)) = known
                && monotonic_us.saturating_sub(at_us) < ESTIMATE_US
            {
                let leap_us = if self.leap_is_near.get() { leap_error_us(wall_us) } else { 0 };
                let wall = Interval::around(wall_us, bound_us + leap_us);
                return (Now { monotonic_us, wall }, by);
            }
            self.set_estimate(&kernel(), monotonic_us);
        }
    }

    /// Stores the kernel's estimate. `at_us` is a monotonic time before the kernel was read.
    fn set_estimate(&self, kernel: &KernelTime, at_us: u64) {
        let estimate = match kernel.max_error_us() {
            Some(error_us) => {
                let bound_us = error_us + DRIFT_PER_ESTIMATE_US;
                self.last_known.set(Some((bound_us, at_us)));
                Estimate { bound_us, by: BoundSource::Kernel }
            }
            None => {
                // A clock that is no longer synchronised is no better than before: its last bound
                // plus drift is a lower limit.
                let drifted_us = self.last_known.get().map_or(0, |(bound_us, known_us)| {
                    bound_us + drift_us(at_us.saturating_sub(known_us))
                });
                Estimate { bound_us: self.bound_us.max(drifted_us), by: BoundSource::Unknown }
            }
        };
        self.leap_is_near.set(kernel.announces_leap_second());
        self.estimate.set(Some((estimate, at_us)));
    }
}

/// Returns the wall clock's reading without an error bound, in microseconds since 1970.
pub(crate) fn read_wall_us() -> u64 {
    read_us(ClockId::Realtime)
}

/// The kernel's state of its wall clock (`adjtimex(2)`).
#[derive(Clone, Copy, Debug, Default)]
struct KernelTime {
    /// The result of the call: `TIME_OK` or another clock state, negative if the call failed.
    state: i32,
    status: i32,
    max_error_us: i64,
    /// Correction that the kernel's loop still has to slew. `STA_NANO` in `status` means
    /// nanoseconds, else microseconds.
    offset: i64,
    /// Correction that `adjtime(3)` still has to slew.
    adjust_us: i64,
}

impl KernelTime {
    #[expect(unsafe_code, reason = "no safe binding of adjtimex is at hand")]
    fn read() -> Self {
        // SAFETY: `timex` consists of plain integers, so all-zero bits are a valid value. With
        // `modes` 0 or `ADJ_OFFSET_SS_READ`, the call changes no kernel state and fills it in.
        let (state, timex, adjust) = unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            let state = libc::adjtimex(&raw mut timex);
            let mut adjust: libc::timex = std::mem::zeroed();
            adjust.modes = libc::ADJ_OFFSET_SS_READ;
            let read = libc::adjtimex(&raw mut adjust) >= 0;
            (state, timex, read.then_some(adjust.offset))
        };
        Self {
            state,
            status: timex.status,
            max_error_us: timex.maxerror,
            offset: timex.offset,
            adjust_us: adjust.unwrap_or(0),
        }
    }

    /// Returns the largest error of the wall clock in microseconds, or `None` if the kernel calls
    /// it unsynchronised. Includes the correction still to be slewed, unlike the kernel's figure.
    fn max_error_us(&self) -> Option<u64> {
        let synchronized = self.state >= 0
            && self.state != libc::TIME_ERROR
            && self.status & libc::STA_UNSYNC == 0;
        let per_us = if self.status & libc::STA_NANO != 0 { 1_000 } else { 1 };
        let slewing_us =
            self.offset.unsigned_abs().div_ceil(per_us) + self.adjust_us.unsigned_abs();
        let max_error_us = u64::try_from(self.max_error_us).ok().filter(|_| synchronized)?;
        Some(max_error_us + slewing_us)
    }

    /// Returns true if a leap second is announced for the day's end, in progress, or just over.
    fn announces_leap_second(&self) -> bool {
        let announced = self.status & (libc::STA_INS | libc::STA_DEL) != 0;
        let states = [libc::TIME_INS, libc::TIME_DEL, libc::TIME_OOP, libc::TIME_WAIT];
        announced || states.contains(&self.state)
    }
}

/// Returns the largest drift in a time: 500 parts per million, the figure that the kernel uses.
const fn drift_us(elapsed_us: u64) -> u64 {
    elapsed_us.div_ceil(2_000)
}

/// Returns the error that a leap second may cause at a wall clock reading, in microseconds.
fn leap_error_us(wall_us: u64) -> u64 {
    let of_day_us = wall_us % DAY_US;
    let far = (LEAP_WINDOW_US..DAY_US - LEAP_WINDOW_US).contains(&of_day_us);
    if far { 0 } else { LEAP_US }
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
    fn fixed_source_is_monotonic_with_constant_bound() {
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
    fn kernel_source_falls_back_to_configured_bound() {
        let clock = KernelClock::new(ClockSource::Kernel, 123_456);
        let now = clock.now();
        let estimate = clock.estimate();
        match KernelTime::read().max_error_us() {
            None => assert_eq!(estimate, Estimate { bound_us: 123_456, by: BoundSource::Unknown }),
            Some(_) => {
                assert_eq!(estimate.by, BoundSource::Kernel);
                assert!(estimate.bound_us >= DRIFT_PER_ESTIMATE_US);
            }
        }
        assert_eq!(now.wall.bound_us(), estimate.bound_us);
    }

    #[test]
    fn kernel_estimate_is_cached_until_it_expires() {
        let clock = KernelClock::new(ClockSource::Kernel, 250);
        let bound_us = |at_us: u64, max_error_us| {
            let kernel = || KernelTime { max_error_us, ..KernelTime::default() };
            clock.read_in_order(|| 1 << 50, || at_us, kernel).0.wall.bound_us()
        };
        let (first, second) = (7 + DRIFT_PER_ESTIMATE_US, 9 + DRIFT_PER_ESTIMATE_US);
        assert_eq!(bound_us(5, 7), first);
        assert_eq!(bound_us(5 + ESTIMATE_US - 1, 9), first);
        assert_eq!(bound_us(5 + ESTIMATE_US, 9), second);
    }

    /// Losing synchronisation must not shrink the bound below the last one plus drift.
    #[test]
    fn kernel_bound_does_not_shrink_on_lost_sync() {
        const HOUR_US: u64 = 3_600_000_000;
        let clock = KernelClock::new(ClockSource::Kernel, 250_000);
        let bound_us = |at_us: u64, kernel: KernelTime| {
            clock.read_in_order(|| 1 << 50, || at_us, || kernel).0.wall.bound_us()
        };
        let unsure = KernelTime { status: libc::STA_UNSYNC, ..KernelTime::default() };
        assert_eq!(bound_us(1, unsure), 250_000);
        let worse = KernelTime { max_error_us: 16_000_000, ..KernelTime::default() };
        let before_us = bound_us(HOUR_US, worse);
        assert!(bound_us(2 * HOUR_US, unsure) >= before_us + HOUR_US / 2_000);
        let again = KernelTime { max_error_us: 90, ..KernelTime::default() };
        assert_eq!(bound_us(3 * HOUR_US, again), 90 + DRIFT_PER_ESTIMATE_US);
        assert_eq!(bound_us(3 * HOUR_US + 2 * ESTIMATE_US, unsure), 250_000);
    }

    /// Pauses the thread for an hour at each reading in turn. The wall clock must not be read after
    /// the monotonic clock, by which leases are judged. The bound must not be from before the
    /// pause.
    #[test]
    fn pause_between_readings_never_ages_monotonic_time() {
        const HOUR_US: u64 = 3_600_000_000;
        for source in [ClockSource::Fixed, ClockSource::Kernel] {
            for stopped_at in 0..6 {
                let clock = KernelClock::new(source, 250);
                let (time_us, readings) = (Cell::new(5_000_000), Cell::new(0));
                let asked_us = Cell::new(None);
                let read = || {
                    let stop_us = if readings.get() == stopped_at { HOUR_US } else { 1 };
                    readings.set(readings.get() + 1);
                    let us = time_us.get();
                    time_us.set(us + stop_us);
                    us
                };
                let kernel = || {
                    asked_us.set(Some(read()));
                    KernelTime { max_error_us: 7, ..KernelTime::default() }
                };
                let (now, _) = clock.read_in_order(read, read, kernel);
                assert!(now.wall.reading_us() < now.monotonic_us, "{source:?} {stopped_at}");
                if let Some(asked_us) = asked_us.get() {
                    assert!(now.monotonic_us - asked_us < ESTIMATE_US, "{source:?} {stopped_at}");
                }
            }
        }
    }

    #[test]
    fn kernel_error_includes_pending_slew() {
        let still = KernelTime { max_error_us: 100, ..KernelTime::default() };
        assert_eq!(still.max_error_us(), Some(100));
        let loop_us = KernelTime { offset: -7_000, ..still };
        assert_eq!(loop_us.max_error_us(), Some(7_100));
        let loop_ns = KernelTime { status: libc::STA_NANO, ..loop_us };
        assert_eq!(loop_ns.max_error_us(), Some(107));
        let adjusted = KernelTime { adjust_us: -40, ..loop_ns };
        assert_eq!(adjusted.max_error_us(), Some(147));
        for unsure in [
            KernelTime { state: libc::TIME_ERROR, ..still },
            KernelTime { state: -1, ..still },
            KernelTime { status: libc::STA_UNSYNC, ..still },
        ] {
            assert_eq!(unsure.max_error_us(), None);
        }
    }

    #[test]
    fn leap_second_widens_bound_only_around_midnight() {
        for status in [libc::STA_INS, libc::STA_DEL] {
            assert!(KernelTime { status, ..KernelTime::default() }.announces_leap_second());
        }
        for state in [libc::TIME_INS, libc::TIME_DEL, libc::TIME_OOP, libc::TIME_WAIT] {
            assert!(KernelTime { state, ..KernelTime::default() }.announces_leap_second());
        }
        assert!(!KernelTime::default().announces_leap_second());
        let midnight_us = 20_000 * DAY_US;
        let table = [
            (midnight_us - LEAP_WINDOW_US - 1, 0),
            (midnight_us - LEAP_WINDOW_US, LEAP_US),
            (midnight_us - 1, LEAP_US),
            (midnight_us, LEAP_US),
            (midnight_us + LEAP_WINDOW_US - 1, LEAP_US),
            (midnight_us + LEAP_WINDOW_US, 0),
        ];
        for (wall_us, expected) in table {
            assert_eq!(leap_error_us(wall_us), expected, "{wall_us}");
        }
    }
}
