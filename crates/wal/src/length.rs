//! When a log is long: what pins its oldest segment is then written again, so that the segment can
//! be used again.

/// The sizes of a log by which its length is judged.
///
/// # Examples
///
/// ```
/// use palisade_wal::LengthRule;
///
/// let rule = LengthRule { segment_bytes: 64 << 20, max_segments: 64 };
/// assert!(!rule.is_long(4, 0));
/// assert!(rule.is_long(5, 0));
/// // A large state makes a longer log worth keeping, up to a quarter of the limit.
/// assert!(!rule.is_long(16, 1 << 40));
/// assert!(rule.is_long(17, 1 << 40));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthRule {
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments that the log may have.
    pub max_segments: u64,
}

impl LengthRule {
    /// Whether a log of so many live segments is long, if writing the state of all groups again
    /// takes `state_bytes`.
    pub fn is_long(self, live_segments: usize, state_bytes: u64) -> bool {
        live_segments as u64 > self.long_segments(state_bytes)
    }

    /// A log with more segments is long: a quarter of the limit, or less if writing everything
    /// again takes less than a third of that. So most of what is written is new, and a group that
    /// was idle for long does not keep what the others have written since.
    fn long_segments(self, state_bytes: u64) -> u64 {
        let most = (self.max_segments / 4).max(2);
        let state_segments = state_bytes.div_ceil(self.segment_bytes);
        (3 * state_segments).clamp(SHORT_SEGMENTS.min(most), most)
    }
}

/// A log with this many segments is not yet long.
const SHORT_SEGMENTS: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_long_by_what_writing_it_again_takes_and_by_its_limit() {
        let long = |max_segments, state_bytes| {
            LengthRule { segment_bytes: 100, max_segments }.long_segments(state_bytes)
        };
        assert_eq!(long(256, 0), 4);
        assert_eq!(long(256, 130), 6);
        assert_eq!(long(256, 1_000_000), 64);
        assert_eq!((long(8, 0), long(8, 1_000_000)), (2, 2));
    }
}
