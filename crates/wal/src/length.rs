//! Decides when a log is long. The groups that pin its oldest segment then rewrite their state, so
//! that the segment can be reused.

/// The sizes that decide when a log is long.
///
/// # Examples
///
/// ```
/// use palisade_wal::LengthRule;
///
/// let rule = LengthRule { segment_bytes: 64 << 20, max_segments: 64 };
/// assert!(!rule.is_long(4, 0));
/// assert!(rule.is_long(5, 0));
/// // A large state allows a longer log, up to a quarter of the limit.
/// assert!(!rule.is_long(16, 1 << 40));
/// assert!(rule.is_long(17, 1 << 40));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthRule {
    /// Size of a segment, in bytes.
    pub segment_bytes: u64,
    /// Limit on the number of segments.
    pub max_segments: u64,
}

impl LengthRule {
    /// Returns true if a log of `live_segments` segments is long. `state_bytes` is what rewriting
    /// the state of all groups takes.
    pub fn is_long(self, live_segments: usize, state_bytes: u64) -> bool {
        live_segments as u64 > self.long_segments(state_bytes)
    }

    /// Returns the number of segments above which a log is long: three times the state, but at
    /// least [`SHORT_SEGMENTS`] and at most a quarter of the limit. The factor ensures that most of
    /// what is written is new data. The bound ensures that an idle group does not retain everything
    /// that other groups write.
    fn long_segments(self, state_bytes: u64) -> u64 {
        let most = (self.max_segments / 4).max(2);
        let state_segments = state_bytes.div_ceil(self.segment_bytes);
        (3 * state_segments).clamp(SHORT_SEGMENTS.min(most), most)
    }
}

/// A log with this many segments is not long yet, unless its limit is very low.
const SHORT_SEGMENTS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_log_threshold_follows_state_size_and_limit() {
        let long = |max_segments, state_bytes| {
            LengthRule { segment_bytes: 100, max_segments }.long_segments(state_bytes)
        };
        assert_eq!(long(256, 0), 4);
        assert_eq!(long(256, 130), 6);
        assert_eq!(long(256, 1_000_000), 64);
        assert_eq!((long(8, 0), long(8, 1_000_000)), (2, 2));
    }
}
