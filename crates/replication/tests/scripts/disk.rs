//! A node's disk. A crash loses the writes that were not synced.

use palisade_replication::{Append, RecoveredGroup};

use crate::recover::recover;

/// The writes of a node, of which the first `durable` are durable.
#[derive(Default)]
pub(crate) struct Disk {
    writes: Vec<Append>,
    durable: usize,
}

impl Disk {
    pub(crate) fn write(&mut self, writes: Vec<Append>) {
        self.writes.extend(writes);
    }

    pub(crate) fn unsynced(&self) -> &[Append] {
        &self.writes[self.durable..]
    }

    /// Returns the number of the last write.
    pub(crate) fn written(&self) -> u64 {
        self.writes.len() as u64
    }

    /// Makes all writes durable. Returns the number of the last one.
    pub(crate) fn sync(&mut self) -> u64 {
        self.durable = self.writes.len();
        self.written()
    }

    pub(crate) fn crash(&mut self) {
        self.writes.truncate(self.durable);
    }

    /// Returns what a new start finds.
    pub(crate) fn recover(&self) -> RecoveredGroup {
        recover(&self.writes)
    }
}
