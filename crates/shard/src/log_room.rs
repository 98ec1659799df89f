//! What a shard accepts as its log fills up.
//!
//! A full log must empty itself: checkpoints free its head, so they may write when nothing else
//! may. Each kind of write stops at its own reserve:
//!
//! ```text
//! free bytes   16 MiB              12 MiB                4 MiB              0
//! ──────────────┼───────────────────┼─────────────────────┼─────────────────┤
//!     commits are rejected    entries of peers     checkpoints wait    a write that does
//!     with `LogFull`          are dropped                              not fit ends the process
//! ```
//!
//! The bytes that the runtime keeps free for one turn are not counted as free.
//!
//! Reads and rollbacks are always served.

use palisade_wire::Operation;

/// Below this much free log, in bytes, commits and changes of ranges are rejected with `LogFull`.
/// The reserve is for writes of replication itself.
pub const LOG_RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// Below this much free log, entries and snapshot parts from peers are dropped, like lost messages.
const PEER_RESERVE_BYTES: u64 = LOG_RESERVE_BYTES / 4 * 3;

/// Below this much free log, checkpoints wait: the lowest limit, because only they free log.
const CHECKPOINT_RESERVE_BYTES: u64 = LOG_RESERVE_BYTES / 4;

/// Bytes that can still be appended, beyond what is kept free for the turn itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogRoom(pub(crate) u64);

impl LogRoom {
    /// Returns true if a client's operation is accepted.
    pub(crate) fn accepts(self, operation: &Operation) -> bool {
        let writes_nothing = matches!(
            operation,
            Operation::Get { .. } | Operation::Scan { .. } | Operation::Rollback { .. }
        );
        writes_nothing || self.0 >= LOG_RESERVE_BYTES
    }

    /// Returns true if writes that peers request are accepted.
    pub(crate) fn accepts_peers(self) -> bool {
        self.0 >= PEER_RESERVE_BYTES
    }

    /// Returns true if parts of checkpoints may be written.
    pub(crate) fn accepts_checkpoints(self) -> bool {
        self.0 >= CHECKPOINT_RESERVE_BYTES
    }
}
