//! The options of a log, and the progress of its opening.

use crate::{length::LengthRule, record::MAX_PAYLOAD_BYTES};

/// The unit of disk writes, and the step in which a segment is pre-written. The page cache keeps a
/// file in folios as large as the writes that filled it, and a store through the mapping dirties
/// the whole folio. With larger steps, a small append would sync up to a megabyte.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// The owner, the sizes and the backend of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Id of the cluster. Segments of another cluster are refused.
    pub cluster_id: u64,
    /// Id of the node. Segments of another node are refused.
    pub node: u16,
    /// Number of the shard. Segments of another shard are refused.
    pub shard: u16,
    /// Size of a segment in bytes: a multiple of 4 KiB, at least [`LogOptions::MIN_SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// Limit on the bytes of all segments together: at least three segments plus those kept ready.
    pub limit_bytes: u64,
    /// Bytes kept ready beyond the active segment, rounded up to whole segments, at least one. A
    /// full disk is noticed while this much can still be appended.
    pub ahead_bytes: u64,
    /// How appended bytes get to the files.
    pub backend: Backend,
}

/// How appended bytes get from memory to a segment's file. The file format is the same, so each
/// backend opens logs written by the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Appends go to the file's page cache. To carry out a [`SyncPlan`](crate::SyncPlan), the
    /// driver syncs the file's data; the kernel knows which pages to write.
    #[default]
    Mapped,
    /// Appends go to the log's own memory. To carry out a [`SyncPlan`](crate::SyncPlan), the driver
    /// writes the plan's pages past the page cache (`O_DIRECT`), then syncs the file's data.
    Direct,
}

impl LogOptions {
    /// The smallest segment that can be configured, in bytes: holds three records of the largest
    /// size.
    pub const MIN_SEGMENT_BYTES: u64 = 4 * MAX_PAYLOAD_BYTES as u64;

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// A message that names the size that does not fit and its bound.
    pub fn check(&self) -> Result<(), String> {
        if self.segment_bytes < Self::MIN_SEGMENT_BYTES
            || !self.segment_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(format!(
                "a log segment of {} bytes is not possible: use a multiple of 4 KiB, at least {}",
                self.segment_bytes,
                Self::MIN_SEGMENT_BYTES
            ));
        }
        let least = (3 + self.segments_ahead() as u64) * self.segment_bytes;
        if self.limit_bytes < least {
            return Err(format!(
                "a log limit of {} bytes is too low for segments of {} bytes: it must be at least \
                 {least}",
                self.limit_bytes, self.segment_bytes
            ));
        }
        Ok(())
    }

    /// Returns the number of segments to keep ready.
    pub(crate) fn segments_ahead(&self) -> usize {
        let segments = self.ahead_bytes.div_ceil(self.segment_bytes).max(1);
        usize::try_from(segments).expect("so many would not fit memory")
    }

    pub(crate) fn max_segments(&self) -> u64 {
        self.limit_bytes / self.segment_bytes
    }

    pub(crate) fn length_rule(&self, capacity_segments: u64) -> LengthRule {
        LengthRule { segment_bytes: self.segment_bytes, capacity_segments }
    }
}

/// Progress of [`Log::open`](crate::Log::open).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenProgress {
    /// Bytes of segments that were verified so far.
    pub verified_bytes: u64,
    /// Bytes of all segments.
    pub total_bytes: u64,
}
