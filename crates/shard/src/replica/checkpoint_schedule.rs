//! Decides when a replica's state is written to its log as a checkpoint.

use palisade_replication::Append;

/// Why a part of a checkpoint is to be written, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// The checkpoint is in progress.
    InProgress,
    /// The beginning of the log is kept for the group.
    Requested,
    /// The group's log has grown enough.
    HasGrown,
}

/// The growth of a replica's log since its last checkpoint.
///
/// A checkpoint is due once the log has grown by a configured size and by the size of the last
/// checkpoint, so at most half of what is written is checkpoints.
#[derive(Debug)]
pub(crate) struct CheckpointSchedule {
    /// Configured growth in bytes.
    every_bytes: u64,
    /// Bytes written since the last checkpoint.
    log_bytes: u64,
    /// Size of the last checkpoint in bytes, or of the part that is written.
    checkpoint_bytes: u64,
    /// Size of the state when the last checkpoint began.
    planned_bytes: u64,
    /// True if the last part was written in this turn.
    is_complete: bool,
    /// The shard's number of the last write of the turn that completed the last checkpoint.
    completed_by: u64,
    /// True if a checkpoint was requested to free the head of the log, even if none is due.
    is_requested: bool,
}

impl CheckpointSchedule {
    /// Creates a schedule for a log of `log_bytes` bytes after a checkpoint of `checkpoint_bytes`.
    pub(crate) fn new(every_bytes: u64, log_bytes: u64, checkpoint_bytes: u64) -> Self {
        Self {
            every_bytes,
            log_bytes,
            checkpoint_bytes,
            planned_bytes: 0,
            is_complete: false,
            completed_by: 0,
            is_requested: false,
        }
    }

    /// Requests a checkpoint.
    pub(super) fn request(&mut self) {
        self.is_requested = true;
    }

    /// Returns true if a checkpoint was requested.
    pub(super) fn is_requested(&self) -> bool {
        self.is_requested
    }

    /// Returns true if the log has grown enough.
    pub(super) fn has_grown(&self) -> bool {
        self.log_bytes >= self.largest_bytes()
    }

    /// Records that a requested checkpoint begins, or is not possible yet.
    pub(super) fn accept_request(&mut self) {
        self.is_requested = false;
    }

    /// Records that a checkpoint of `planned_bytes` begins.
    pub(super) fn begin(&mut self, planned_bytes: u64) {
        (self.log_bytes, self.checkpoint_bytes) = (0, 0);
        self.planned_bytes = planned_bytes;
    }

    /// Records that a part of the checkpoint was written.
    pub(super) fn wrote_part(&mut self, bytes: usize, is_last: bool) {
        self.checkpoint_bytes += bytes as u64;
        self.is_complete |= is_last;
    }

    /// Records the writes of a turn, which are the shard's writes from `written + 1` on. Parts of
    /// snapshots do not count as growth.
    pub(super) fn wrote(&mut self, appends: &[Append], written: u64) {
        self.log_bytes += appends.iter().map(bytes_of).sum::<u64>();
        if std::mem::take(&mut self.is_complete) {
            self.completed_by = written + appends.len() as u64;
        }
    }

    /// Returns true if the last complete checkpoint is among the shard's first `durable` writes.
    pub(super) fn is_durable(&self, durable: u64) -> bool {
        !self.is_complete && self.completed_by <= durable
    }

    /// Returns the size of the state when the last checkpoint began.
    pub(super) fn planned_bytes(&self) -> u64 {
        self.planned_bytes
    }

    /// Records that a received snapshot replaces the state.
    pub(super) fn installed(&mut self, bytes: u64) {
        (self.log_bytes, self.checkpoint_bytes) = (0, bytes);
    }

    /// Returns the bytes of the checkpoint that is being taken, as far as it is written.
    pub(super) fn written_bytes(&self) -> u64 {
        self.checkpoint_bytes
    }

    /// Returns the bytes of entries to keep in memory after a checkpoint. A follower that lacks
    /// only these catches up faster from entries than from a snapshot.
    pub(super) fn keep_bytes(&self) -> usize {
        usize::try_from(self.largest_bytes() / 2).unwrap_or(usize::MAX)
    }

    fn largest_bytes(&self) -> u64 {
        self.every_bytes.max(self.checkpoint_bytes)
    }
}

/// Returns about how many bytes a write takes in the log, or 0 for a snapshot part.
fn bytes_of(append: &Append) -> u64 {
    match append {
        Append::Entry(_) | Append::State { .. } => append.bytes(),
        Append::Snapshot { .. } => 0,
    }
}
