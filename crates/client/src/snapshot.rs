//! Snapshots: reads at one timestamp, without locks.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{Basis, Outcome, ReadKind, Rejection, check_key};

use crate::{
    Client, ClientError, Scan, Versioned,
    client::unexpected,
    driver::{Call, How, Span},
    open_snapshots::OpenSnapshot,
    scan::after_prefix,
};

/// All ranges at one timestamp; see [`Client::snapshot`], [`Client::snapshot_at`] and
/// [`Client::stale_snapshot`]. The first read sets the timestamp. Clones share it.
///
/// The versions at the timestamp are kept for 60 seconds from it, in all ranges, also in ranges
/// that are not read: the client renews its oldest open snapshot at every node. After that, reads
/// fail with [`ClientError::SnapshotTooOld`]. Drop a snapshot that is no longer needed: the cluster
/// keeps every version since the oldest open one.
#[derive(Clone, Debug)]
pub struct Snapshot {
    client: Client,
    first: First,
    open: Arc<OnceLock<OpenSnapshot>>,
}

/// The timestamp that the first read requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First {
    /// One that has not passed yet when the read is requested.
    Fresh,
    /// This timestamp.
    At(Timestamp),
    /// One that is at most `max_us` old at the first read, and not below anything that the client
    /// has read or written before.
    Stale {
        /// The largest age, in microseconds.
        max_us: u64,
    },
}

impl Snapshot {
    pub(crate) fn new(client: Client, first: First) -> Self {
        Self { client, first, open: Arc::default() }
    }

    /// Returns the timestamp of the snapshot, or `None` before the first read.
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.open.get().map(|open| open.at_ts)
    }

    /// Reads a key.
    ///
    /// # Errors
    ///
    /// [`ClientError::SnapshotTooOld`] (not retryable), [`ClientError::Deadline`] (retryable), and
    /// [`ClientError::Rejected`] if the key is empty or too long.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        let key = key.into();
        check_key(&key).map_err(ClientError::Rejected)?;
        Versioned::of(self.read(|how| Call::Get { key: key.clone(), how }).await?)
    }

    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order.
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        Scan::new(self.clone(), begin.into(), end)
    }

    /// Returns a scan of the keys that begin with `prefix`.
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Scan {
        let begin = prefix.into();
        let end = after_prefix(&begin);
        self.scan(begin, end)
    }

    pub(crate) async fn page(&self, span: &Span) -> Result<Outcome, ClientError> {
        self.read(|how| Call::Scan { span: span.clone(), how }).await
    }

    async fn read(&self, call: impl Fn(How) -> Call) -> Result<Outcome, ClientError> {
        loop {
            let kind = self.at_ts().map_or_else(|| self.first_kind(), ReadKind::AsOf);
            // A fresh snapshot reads at the leader first: for a while, other replicas do not know
            // everything up to its timestamp.
            let how = How::Past { kind, anywhere: !matches!(self.first, First::Fresh) };
            let outcome = match self.client.call(call(how)).await {
                Err(ClientError::Rejected(Rejection::Collected)) => {
                    let at_ts = self.at_ts().unwrap_or_else(|| self.first_ts());
                    return Err(ClientError::SnapshotTooOld { at_ts });
                }
                answer => answer?,
            };
            let (Outcome::Value { basis, .. } | Outcome::Page { basis, .. }) = &outcome else {
                return Err(unexpected(&outcome));
            };
            let Basis::AsOf(at_ts) = *basis else { return Err(unexpected(&outcome)) };
            // Of several concurrent first reads, one sets the timestamp. The others read again at
            // it.
            if self.open.get_or_init(|| self.client.open_snapshot(at_ts)).at_ts == at_ts {
                return Ok(outcome);
            }
        }
    }

    fn first_kind(&self) -> ReadKind {
        match self.first {
            First::Fresh => ReadKind::Snapshot,
            First::At(at_ts) => ReadKind::AsOf(at_ts),
            First::Stale { max_us } => {
                ReadKind::Stale { max_us, at_least: self.client.session_token() }
            }
        }
    }

    /// Returns the timestamp that the first read requested, or zero if it requested none.
    fn first_ts(&self) -> Timestamp {
        match self.first {
            First::At(at_ts) => at_ts,
            First::Fresh | First::Stale { .. } => Timestamp::ZERO,
        }
    }
}
