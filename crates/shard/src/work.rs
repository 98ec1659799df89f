//! Counts the work of a turn, so that no turn takes long.
//!
//! The problem: a turn's inputs are bounded in bytes, but not in what they cause. A scan of 40
//! bytes reads a thousand rows, and one message may commit ten thousand entries. While a turn runs,
//! no heartbeat leaves and no tick runs. After a turn of a second, other nodes lead all groups.
//!
//! A clock would bound turns as well, but then a run could not be repeated. So work is counted in
//! units, and when they are used up, the rest waits for the next turn:
//!
//! ```text
//! units left    |■■■■■■■■|■■■■|■■■■|
//! messages      |■■■■■■■■|              until half is used
//! requests               |■■■■|        until three quarters are used
//! early reads, paced          |■■|     until seven eighths are used
//! entries, reads                 |■■|  until all are used
//! ```
//!
//! Left out: the cost of an input is estimated, and a step that has begun is completed. The longest
//! steps are a page of a scan and a commit of the largest size.

/// Units of work that a turn may do in production. A unit is about 0.1 us on the machine of the
/// benchmarks, so a turn takes about 2 ms.
pub const TURN_WORK: u32 = 20_000;

/// Processing a request or a message.
const INPUT: u64 = 10;

/// Bytes that are copied or checked with one unit.
const BYTES_PER_UNIT: u64 = 128;

/// Reading a key in a scan, or writing a key.
const KEY: u64 = 2;

/// Applying an entry.
const ENTRY: u64 = 10;

/// Keys of a store that is no longer needed, dropped in one step.
pub(crate) const DROPPED_KEYS: usize = 64;

/// The work that a turn may still do.
#[derive(Debug)]
pub(crate) struct Work {
    limit: i64,
    left: i64,
}

impl Work {
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit: i64::from(limit), left: i64::from(limit) }
    }

    /// Begins the work of the next turn.
    pub(crate) fn renew(&mut self) {
        self.left = self.limit;
    }

    /// Returns true until the turn's work is used up.
    pub(crate) fn is_left(&self) -> bool {
        self.left > 0
    }

    /// Returns true until half of the turn's work is used.
    pub(crate) fn is_left_for_messages(&self) -> bool {
        self.left * 2 > self.limit
    }

    /// Returns true until three quarters of the turn's work are used.
    pub(crate) fn is_left_for_requests(&self) -> bool {
        self.left * 4 > self.limit
    }

    /// Returns true until seven eighths of the turn's work are used.
    pub(crate) fn is_left_for_waiting(&self) -> bool {
        self.left * 8 > self.limit
    }

    /// Returns the work that is left, if any.
    pub(crate) fn left(&self) -> i64 {
        self.left.max(0)
    }

    /// Counts a request or a message that adds `bytes` to the log.
    pub(crate) fn input(&mut self, bytes: u64) {
        self.spend(INPUT + bytes / BYTES_PER_UNIT);
    }

    /// Counts an entry that is applied.
    pub(crate) fn apply(&mut self, bytes: usize) {
        self.spend(ENTRY + bytes as u64 / BYTES_PER_UNIT);
    }

    /// Counts keys that are read or written, and bytes that are copied with them.
    pub(crate) fn keys(&mut self, keys: usize, bytes: usize) {
        self.spend(keys as u64 * KEY + bytes as u64 / BYTES_PER_UNIT);
    }

    fn spend(&mut self, units: u64) {
        self.left = self.left.saturating_sub(i64::try_from(units).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_work_for_what_they_cause() {
        let mut work = Work::new(400);
        assert!(work.is_left_for_messages());
        work.input(190 * 128);
        assert!(!work.is_left_for_messages() && work.is_left_for_requests());
        work.keys(50, 0);
        assert!(!work.is_left_for_requests() && work.is_left());
        work.apply(usize::MAX);
        assert!(!work.is_left());
        work.renew();
        assert!(work.is_left_for_messages());
    }
}
