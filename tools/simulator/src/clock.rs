//! A node's clocks: a monotonic clock that drifts, and a wall clock with an error within its bound.

use palisade_clock::{Interval, Now, Timestamp};

use crate::Parameters;

/// The wall time at true time 0, in microseconds since the Unix epoch.
const EPOCH_US: u64 = 1_700_000_000_000_000;

/// Time from a machine's resumption until its time daemon has corrected the wall clock.
const CORRECTED_US: u64 = 2_000_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    bound_us: u64,
    /// The error bound that the clock reports at present: `bound_us` or more.
    shown_bound_us: u64,
    /// By how much the error may exceed the reported bound: a fault.
    lie_us: u64,
    /// Parts per million by which the monotonic clock runs fast, or slow if negative.
    drift_ppm: i64,
    /// The monotonic clock's reading at true time 0.
    start_us: u64,
    /// When the machine was last stopped with its clocks, in true time, and for how long.
    suspended_us: Option<(u64, u64)>,
    /// By how much the wall clock is ahead of true time.
    offset_us: i64,
}

/// Converts true time to a timestamp.
pub(crate) fn timestamp(now_us: u64) -> Timestamp {
    Timestamp::from_physical_us(EPOCH_US + now_us)
}

impl Clock {
    pub(crate) fn new(parameters: &Parameters, random: &mut fastrand::Rng) -> Self {
        let most = i64::try_from(parameters.drift_ppm).expect("it is a small number");
        let mut clock = Self {
            bound_us: parameters.clock_bound_us,
            shown_bound_us: parameters.clock_bound_us,
            lie_us: parameters.clock_lie_us,
            drift_ppm: random.i64(-most..=most),
            start_us: 0,
            suspended_us: None,
            offset_us: 0,
        };
        clock.reboot(random);
        clock.jump(random);
        clock
    }

    /// Reboots the machine: its monotonic clock restarts at another reading.
    pub(crate) fn reboot(&mut self, random: &mut fastrand::Rng) {
        self.start_us = random.u64(1..1_000_000_000_000);
    }

    /// Sets the wall clock to a random offset within its reported bound plus `lie_us`.
    pub(crate) fn jump(&mut self, random: &mut fastrand::Rng) {
        let bound = i64::try_from(self.shown_bound_us + self.lie_us).expect("it is a small number");
        self.offset_us = random.i64(-bound..=bound);
    }

    /// Sets the reported error bound to `times` its normal value, and the wall clock to a random
    /// offset within that. A value of 1 restores the normal bound.
    pub(crate) fn become_unsure(&mut self, times: u64, random: &mut fastrand::Rng) {
        self.shown_bound_us = self.bound_us * times;
        let bound = i64::try_from(self.shown_bound_us).expect("it is a small number");
        self.offset_us = random.i64(-bound..=bound);
    }

    /// Stops the machine together with its clocks. Afterwards both clocks are behind by
    /// `length_us`, and the reported error bound does not include that.
    pub(crate) fn suspend(&mut self, now_us: u64, length_us: u64) {
        self.resume();
        self.suspended_us = Some((now_us, length_us));
    }

    /// Makes the monotonic clock's loss from the last suspension permanent.
    fn resume(&mut self) {
        if let Some((_, length_us)) = self.suspended_us.take() {
            self.start_us = self.start_us.saturating_sub(length_us);
        }
    }

    /// Sets the wall clock to the edge of its normal bound, ahead of true time or behind it.
    pub(crate) fn set_to_edge(&mut self, ahead: bool) {
        let bound = i64::try_from(self.bound_us).expect("it is a small number");
        self.offset_us = if ahead { bound } else { -bound };
    }

    pub(crate) fn now(&self, now_us: u64) -> Now {
        let now = i64::try_from(now_us).expect("runs are short");
        let drifted = now + now * self.drift_ppm / 1_000_000;
        let monotonic_us = self.start_us.saturating_add_signed(drifted);
        let (lost_us, is_corrected) =
            self.suspended_us.map_or((0, true), |(from_us, length_us)| {
                let lost_us = now_us.saturating_sub(from_us).min(length_us);
                (lost_us, now_us >= from_us + length_us + CORRECTED_US)
            });
        let monotonic_us = monotonic_us.saturating_sub(lost_us);
        let wall_lost_us = if is_corrected { 0 } else { lost_us };
        let reading_us = (EPOCH_US + now_us - wall_lost_us).saturating_add_signed(self.offset_us);
        Now { monotonic_us, wall: Interval::around(reading_us, self.shown_bound_us) }
    }
}
