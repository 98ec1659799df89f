//! State that the driver of a client and all clones of the client share.

use std::sync::{Arc, atomic::AtomicU64};

use crate::open_snapshots::OpenSnapshots;

/// Counters of a client and its clones, and its open snapshots.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Number of requests that were sent again. The driver sets it.
    pub(crate) retries: AtomicU64,
    /// Number of transactions that were run again.
    pub(crate) reruns: AtomicU64,
    /// Number of transaction tries so far; names the next one.
    pub(crate) owners: AtomicU64,
    /// The highest timestamp that this client has read or written.
    pub(crate) seen_ts: AtomicU64,
    pub(crate) snapshots: Arc<OpenSnapshots>,
}
