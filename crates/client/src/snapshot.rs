//! Reads of one moment, without locks.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{Basis, Outcome, ReadKind, check_key};

use crate::{
    Client, ClientError, Scan, Versioned,
    client::unexpected,
    driver::{Call, How, Span},
    scan::after_prefix,
};

/// Everything as it is, or was, at one moment: see [`Client::snapshot`], [`Client::snapshot_at`] and
/// [`Client::stale_snapshot`]. The first read decides which moment that is. Clones share it.
///
/// What is replaced meanwhile is kept for a snapshot as long as it is read from at least every few
/// seconds, and for a minute at most; after that its reads fail with
/// [`Rejection::Collected`](crate::Rejection::Collected).
#[derive(Clone, Debug)]
pub struct Snapshot {
    client: Client,
    first: ReadKind,
    at_ts: Arc<OnceLock<Timestamp>>,
}

impl Snapshot {
    pub(crate) fn new(client: Client, first: ReadKind) -> Self {
        let at_ts = Arc::default();
        Self { client, first, at_ts }
    }

    /// The moment, once something was read.
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.at_ts.get().copied()
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
            let kind = self.at_ts().map_or(self.first, ReadKind::AsOf);
            // A fresh moment is known to leaders only, for a while.
            let how = How::Past { kind, anywhere: !matches!(self.first, ReadKind::Snapshot) };
            let outcome = self.client.call(call(how)).await?;
            let (Outcome::Value { basis, .. } | Outcome::Page { basis, .. }) = &outcome else {
                return Err(unexpected(&outcome));
            };
            let Basis::AsOf(at_ts) = *basis else { return Err(unexpected(&outcome)) };
            // Of several first reads at once, one decides; the others read again.
            if *self.at_ts.get_or_init(|| at_ts) == at_ts {
                return Ok(outcome);
            }
        }
    }
}
