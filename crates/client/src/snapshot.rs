//! Reads of one moment, without locks.

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

/// Everything as it is, or was, at one moment: see [`Client::snapshot`], [`Client::snapshot_at`]
/// and [`Client::stale_snapshot`]. The first read decides which moment that is. Clones share it.
///
/// What is replaced meanwhile is kept for 60 seconds from the first read, in all ranges, whether or
/// not they are read from: the client renews its oldest open snapshot at every node. After that,
/// reads fail with [`ClientError::SnapshotTooOld`]. Drop a snapshot that is not needed any more:
/// the cluster keeps every version since the oldest open one.
#[derive(Clone, Debug)]
pub struct Snapshot {
    client: Client,
    first: First,
    open: Arc<OnceLock<OpenSnapshot>>,
}

/// Which timestamp the first read asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First {
    /// One that has not passed when the read is made.
    Fresh,
    /// This one.
    At(Timestamp),
    /// One that is at most so old then, and covers everything that the client has seen by then.
    Stale {
        /// Microseconds.
        max_us: u64,
    },
}

impl Snapshot {
    pub(crate) fn new(client: Client, first: First) -> Self {
        Self { client, first, open: Arc::default() }
    }

    /// The moment, once something was read.
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.open.get().map(|open| open.at_ts)
    }

    /// Reads a key.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        let key = key.into();
        check_key(&key).map_err(ClientError::Rejected)?;
        Versioned::of(self.read(|how| Call::Get { key: key.clone(), how }).await?)
    }

    /// The keys from `begin` on, before `end` if there is one, in order.
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        Scan::new(self.clone(), begin.into(), end)
    }

    /// The keys that begin with a prefix, likewise.
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
            // A fresh moment is known to leaders only, for a while.
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
            // Of several first reads at once, one decides; the others read again.
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

    /// The timestamp that the first read asked for, if it did.
    fn first_ts(&self) -> Timestamp {
        match self.first {
            First::At(at_ts) => at_ts,
            First::Fresh | First::Stale { .. } => Timestamp::ZERO,
        }
    }
}
