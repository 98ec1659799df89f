//! A node's clocks: a monotonic one that drifts, and a wall clock that is wrong within its bound.

use palisade_clock::{Interval, Now, Timestamp};

use crate::Parameters;

/// True time 0 is this wall time, in microseconds since the Unix epoch.
const EPOCH_US: u64 = 1_700_000_000_000_000;

/// So long after a machine went on, its time daemon has set its wall clock.
const CORRECTED_US: u64 = 2_000_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    bound_us: u64,
    /// What the clock says of itself at present: the same or more.
    shown_bound_us: u64,
    /// By how much more than that it may be wrong.
    lie_us: u64,
    /// Parts of a million by which the monotonic clock runs fast (or slow, if negative).
    drift_ppm: i64,
    /// What the monotonic clock showed at true time 0.
    start_us: u64,
    /// While the machine is stopped with its clocks: since when, and for how long.
    suspended_us: Option<(u64, u64)>,
    /// What the wall clock is ahead by.
    offset_us: i64,
}

/// A point of true time, as a timestamp.
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

    /// The machine was switched off and on: its monotonic clock begins elsewhere.
    pub(crate) fn reboot(&mut self, random: &mut fastrand::Rng) {
        self.start_us = random.u64(1..1_000_000_000_000);
    }

    /// The wall clock is set, within its bound, if that is no lie.
    pub(crate) fn jump(&mut self, random: &mut fastrand::Rng) {
        let bound = i64::try_from(self.shown_bound_us + self.lie_us).expect("it is a small number");
        self.offset_us = random.i64(-bound..=bound);
    }

    /// The clock becomes unsure: it calls itself right to within more than before, and is wrong by
    /// up to that. Back to what it was with `times` 1.
    pub(crate) fn become_unsure(&mut self, times: u64, random: &mut fastrand::Rng) {
        self.shown_bound_us = self.bound_us * times;
        let bound = i64::try_from(self.shown_bound_us).expect("it is a small number");
        self.offset_us = random.i64(-bound..=bound);
    }

    /// The machine is stopped with its clocks: both show the less afterwards, and neither says so.
    pub(crate) fn suspend(&mut self, now_us: u64, length_us: u64) {
        self.resume();
        self.suspended_us = Some((now_us, length_us));
    }

    /// Time lost so far counts for good.
    fn resume(&mut self) {
        if let Some((_, length_us)) = self.suspended_us.take() {
            self.start_us = self.start_us.saturating_sub(length_us);
        }
    }

    /// The wall clock is set to be ahead by as much as its bound allows, or behind.
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
