//! Where readings come from, and how far they are trusted.
//!
//! HAZARD: every order that timestamps promise rests on the bound. A bound that is too small loses
//! the order between keys; one that is too large only makes commits wait.
//!
//! HAZARD: the kernel's estimate is that of whatever disciplines the clock. It covers the distance
//! to a server, not a server that is itself wrong, and not a virtual machine that was stopped and
//! whose clock nobody has corrected yet.
//!
//! HAZARD: a stopped machine's clock is right again only once its daemon has noticed. ClockBound
//! says so meanwhile; the kernel does not.
//!
//! HAZARD: a daemon that slews the clock by changing its frequency (chrony) leaves no trace in the
//! kernel of how far it still has to go. What the kernel itself slews is added to the bound.
//!
//! Around a leap second the wall clock steps by a second at midnight UTC. For two seconds before
//! and after, while the kernel announces one, a second is added to the bound: more than most
//! clusters allow, so that the node serves nothing.

use std::cell::Cell;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{Interval, Now};

/// The kernel's estimate is read again after this long.
const ESTIMATE_US: u64 = 100_000;

/// The kernel raises its estimate once in this time.
const KERNEL_PERIOD_US: u64 = 1_000_000;

/// What a clock drifts by while an estimate is used, which may be a period old when it is read.
const DRIFT_PER_ESTIMATE_US: u64 = drift_us(KERNEL_PERIOD_US + ESTIMATE_US);

/// The step of a leap second, in microseconds.
const LEAP_US: u64 = 1_000_000;

/// So long before and after midnight UTC the wall clock may be off by a leap second.
const LEAP_WINDOW_US: u64 = 2_000_000;

const DAY_US: u64 = 86_400 * 1_000_000;

/// Who is asked how far the wall clock is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockSource {
    /// Whoever configured the bound. Right where all nodes read the same clock.
    Fixed,
    /// The kernel (`adjtimex`), while it calls its clock synchronised; else the configured bound.
    Kernel,
    /// The ClockBound daemon; while it does not vouch for the clock, the clock is not trusted at
    /// all.
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
    /// Whether the kernel announced a leap second then, or has just made one.
    leap_is_near: Cell<bool>,
    /// The last estimate that the kernel vouched for, and when it was made.
    vouched: Cell<Option<(u64, u64)>>,
    #[cfg(feature = "clockbound")]
    daemon: crate::clockbound::Daemon,
}

impl KernelClock {
    /// The kernel's clocks. `bound_us` is how far the wall clock is trusted when the source does
    /// not say.
    pub fn new(source: ClockSource, bound_us: u64) -> Self {
        Self {
            source,
            bound_us,
            estimate: Cell::new(None),
            leap_is_near: Cell::new(false),
            vouched: Cell::new(None),
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
        #[cfg(feature = "clockbound")]
        if self.source == ClockSource::ClockBound {
            let (wall, by) = self.daemon.read(read_us(ClockId::Boottime));
            return (Now { monotonic_us: read_us(ClockId::Boottime), wall }, by);
        }
        self.read_in_order(read_wall_us, || read_us(ClockId::Boottime), KernelTime::read)
    }

    /// Reads the error bound, the wall clock and the monotonic clock, in this order, because the
    /// thread may be stopped between two of them. A lease that holds by the monotonic clock then
    /// held when the wall clock was read, and an old bound is noticed and read again.
    fn read_in_order(
        &self,
        mut wall_us: impl FnMut() -> u64,
        mut monotonic_us: impl FnMut() -> u64,
        mut kernel: impl FnMut() -> KernelTime,
    ) -> (Now, Voucher) {
        loop {
            let known = match self.source {
                ClockSource::Kernel => self.estimate.get(),
                _ => {
                    let by = Voucher::Config;
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
            self.ask_kernel(&kernel(), monotonic_us);
        }
    }

    /// Takes over what the kernel says. `at_us` is a moment before it was asked.
    fn ask_kernel(&self, kernel: &KernelTime, at_us: u64) {
        let estimate = match kernel.max_error_us() {
            Some(error_us) => {
                let bound_us = error_us + DRIFT_PER_ESTIMATE_US;
                self.vouched.set(Some((bound_us, at_us)));
                Estimate { bound_us, by: Voucher::Kernel }
            }
            None => {
                // The clock did not get better when the kernel gave it up.
                let drifted_us = self.vouched.get().map_or(0, |(bound_us, vouched_us)| {
                    bound_us + drift_us(at_us.saturating_sub(vouched_us))
                });
                Estimate { bound_us: self.bound_us.max(drifted_us), by: Voucher::Nobody }
            }
        };
        self.leap_is_near.set(kernel.announces_leap_second());
        self.estimate.set(Some((estimate, at_us)));
    }
}

/// What the wall clock shows, whether or not it is right, in microseconds since 1970.
pub(crate) fn read_wall_us() -> u64 {
    read_us(ClockId::Realtime)
}

/// What the kernel says of its wall clock (`adjtimex(2)`).
#[derive(Clone, Copy, Debug, Default)]
struct KernelTime {
    /// `TIME_OK` and the like; negative if the call failed.
    state: i32,
    status: i32,
    max_error_us: i64,
    /// What the kernel's loop still slews, in nanoseconds or microseconds as `status` says.
    offset: i64,
    /// What `adjtime(3)` still slews.
    adjust_us: i64,
}

impl KernelTime {
    #[expect(unsafe_code, reason = "no safe binding of adjtimex is at hand")]
    fn read() -> Self {
        // SAFETY: a timex is plain numbers, for which all bits zero are a value; with `modes` zero,
        // or `ADJ_OFFSET_SS_READ`, the call changes nothing and fills in the rest.
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

    /// The largest error of the wall clock, or `None` if the kernel calls it unsynchronised. Its
    /// own figure leaves out what it is still slewing.
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

    /// Whether a leap second is announced for the end of the day, under way, or just over.
    fn announces_leap_second(&self) -> bool {
        let announced = self.status & (libc::STA_INS | libc::STA_DEL) != 0;
        let states = [libc::TIME_INS, libc::TIME_DEL, libc::TIME_OOP, libc::TIME_WAIT];
        announced || states.contains(&self.state)
    }
}

/// What a clock may drift by in a time: 500 parts in a million, the kernel's own figure.
const fn drift_us(elapsed_us: u64) -> u64 {
    elapsed_us.div_ceil(2_000)
}

/// By how much a leap second may put the wall clock off at a reading.
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
        match KernelTime::read().max_error_us() {
            None => assert_eq!(estimate, Estimate { bound_us: 123_456, by: Voucher::Nobody }),
            Some(_) => {
                assert_eq!(estimate.by, Voucher::Kernel);
                assert!(estimate.bound_us >= DRIFT_PER_ESTIMATE_US);
            }
        }
        assert_eq!(now.wall.bound_us(), estimate.bound_us);
    }

    #[test]
    fn an_estimate_of_the_kernel_is_used_for_a_while() {
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

    #[test]
    fn a_clock_that_the_kernel_gives_up_is_trusted_no_more_than_before() {
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

    /// A thread that is stopped for an hour between any two readings: the wall clock must not be
    /// later than the monotonic clock, by which leases are judged, nor the bound from before.
    #[test]
    fn a_stop_between_readings_makes_the_wall_clock_old_and_never_the_lease() {
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
    fn what_the_kernel_still_slews_is_part_of_the_error() {
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
    fn a_leap_second_widens_the_bound_around_midnight_only() {
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
