//! The clock of a database that is alone.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use palisade_clock::{Interval, Now, Timestamp};

/// Wall time as it was at the start, moved on by the monotonic clock.
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

    /// From now on it shows what is after a timestamp.
    pub(crate) fn move_beyond(&mut self, ts: Timestamp) {
        let behind_us = (ts.physical_us() + 1).saturating_sub(self.now().wall.latest_us);
        self.start_wall_us += behind_us;
    }

    pub(crate) fn now(&self) -> Now {
        let elapsed_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Zero is a time that has been, for whatever compares with it.
        Now {
            monotonic_us: elapsed_us + 1,
            wall: Interval::around(self.start_wall_us + elapsed_us, 0),
        }
    }
}
