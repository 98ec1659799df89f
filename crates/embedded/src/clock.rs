//! The clock of an embedded database.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use palisade_clock::{Interval, Now, Timestamp};

/// The wall time at the start, advanced by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_wall_us: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start_wall_us = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
        Self { start: Instant::now(), start_wall_us }
    }

    /// Moves the clock forward, if it is behind, so that it reads at least one microsecond above
    /// `ts`.
    pub(crate) fn move_beyond(&mut self, ts: Timestamp) {
        let behind_us = (ts.physical_us() + 1).saturating_sub(self.now().wall.latest_us);
        self.start_wall_us += behind_us;
    }

    pub(crate) fn now(&self) -> Now {
        let elapsed_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Starts at 1, because other code takes a monotonic time of 0 as one that has passed.
        Now {
            monotonic_us: elapsed_us + 1,
            wall: Interval::around(self.start_wall_us + elapsed_us, 0),
        }
    }
}
