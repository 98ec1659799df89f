//! Decides when a log is long. The groups that pin its oldest segment then rewrite their state, so
//! that the segment can be reused.

/// The sizes that decide when a log is long.
///
/// # Examples
///
/// ```
/// use palisade_wal::LengthRule;
///
/// let rule = LengthRule { segment_bytes: 64 << 20, capacity_segments: 64 };
/// assert!(!rule.is_long(4, 0));
/// assert!(rule.is_long(5, 0));
/// // A large state allows a longer log.
/// let quarter_bytes = 16 * rule.segment_bytes;
/// assert!(!rule.is_long(32, quarter_bytes));
/// assert!(rule.is_long(33, quarter_bytes));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthRule {
    /// Size of a segment, in bytes.
    pub segment_bytes: u64,
    /// How many segments the log can have: by its limit, or by the room on a full disk.
    pub capacity_segments: u64,
}

impl LengthRule {
    /// Returns true if a log of `live_segments` segments is long. `state_bytes` is what rewriting
    /// the state of all groups takes.
    ///
    /// A log that is not written to stops being long once its groups have rewritten their state.
    pub fn is_long(self, live_segments: usize, state_bytes: u64) -> bool {
        live_segments as u64 > self.long_segments(state_bytes)
    }

    /// Returns the number of segments above which a log is long: three times the state, but at
    /// least [`SHORT_SEGMENTS`] and at most a quarter of the capacity. The factor ensures that most
    /// of what is written is new data. The bound ensures that an idle group does not retain
    /// everything that other groups write.
    ///
    /// A state of more than an eighth of the capacity gets a longer log: twice the state, at most
    /// half of the capacity. While that is rewritten, the log takes three quarters.
    fn long_segments(self, state_bytes: u64) -> u64 {
        let Self { segment_bytes, capacity_segments } = self;
        let state_segments = state_bytes.div_ceil(segment_bytes);
        let most = (capacity_segments / 4).max(2);
        let small_state = (3 * state_segments).clamp(SHORT_SEGMENTS.min(most), most);
        let large_state = (2 * state_segments).min(capacity_segments / 2);
        // The length of a log that has just been rewritten, with what segments leave unused. If
        // that were long, an idle log would be rewritten for ever.
        let rewritten = state_segments + state_segments / 16 + 3;
        small_state.max(large_state).max(rewritten)
    }
}

/// A log with this many segments is not long yet, unless its limit is very low.
const SHORT_SEGMENTS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn long(capacity_segments: u64, state_bytes: u64) -> u64 {
        LengthRule { segment_bytes: 100, capacity_segments }.long_segments(state_bytes)
    }

    #[test]
    fn long_log_threshold_follows_state_size_and_capacity() {
        assert_eq!(long(256, 0), 4);
        assert_eq!(long(256, 130), 6);
        assert_eq!((long(256, 2_100), long(256, 3_200)), (63, 64));
        assert_eq!((long(256, 4_000), long(256, 6_400)), (80, 128));
        assert_eq!(long(8, 0), 3);
    }

    #[test]
    fn log_that_was_rewritten_is_not_long() {
        for capacity in 4..300 {
            for state in 0..2 * capacity {
                let threshold = long(capacity, 100 * state);
                assert!(threshold > state + state / 16 + 2, "{capacity} {state} {threshold}");
            }
        }
    }
}
