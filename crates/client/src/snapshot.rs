//! Snapshots: reads at one timestamp, without locks.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::{Basis, Outcome, ReadKind, Rejection, check_key};

use crate::{
    Client, ClientError, Versioned,
    calls::{Call, ReadMode, ScanSpan},
    error::unexpected,
    open_snapshots::OpenSnapshot,
};

impl Client {
    /// Returns a snapshot of all ranges at one timestamp, without locks. It contains every write
    /// that was acknowledged before the snapshot's first read. That read sets the timestamp, and
    /// waits until it has passed: about twice the error bound of the clock. Every read waits for
    /// the commits that are ordered before the timestamp in its range.
    ///
    /// The snapshot stays readable for 60 seconds
    /// ([`MAX_SNAPSHOT_AGE_US`](crate::MAX_SNAPSHOT_AGE_US)) from its timestamp.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let snapshot = client.snapshot();
    /// let (one, other) = (snapshot.get("one").await?, snapshot.get("other").await?);
    /// assert!(snapshot.at_ts().is_some());
    /// # Ok(()) }
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.clone(), First::Fresh)
    }

    /// Returns a snapshot at a given timestamp. Any replica that has the state at `at_ts` serves
    /// it, without waiting. If `at_ts` is in the future, reads wait for it within their time limit.
    ///
    /// Replaced versions are kept for one second and twice `clock.max_offset_us`, and for longer
    /// while a snapshot of any client needs them. Past that, reads fail with
    /// [`ClientError::SnapshotTooOld`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let written = client.put("key", "value").await?;
    /// let then = client.snapshot_at(written.commit_ts);
    /// assert_eq!(then.get("key").await?.unwrap().value, "value");
    /// # Ok(()) }
    /// ```
    pub fn snapshot_at(&self, at_ts: Timestamp) -> Snapshot {
        Snapshot::new(self.clone(), First::At(at_ts))
    }

    /// Returns a snapshot whose timestamp is at most `max_staleness` old at its first read, and not
    /// below anything that this client has read or written. Any replica that has the state serves
    /// it. `max_staleness` counts in microseconds. If it is at most twice the error bound of the
    /// clock, the timestamp is the present, as for [`Client::snapshot`].
    ///
    /// The first read may choose the oldest timestamp allowed. If that is more than a second old,
    /// other ranges may have collected its versions, and reads there fail with
    /// [`ClientError::SnapshotTooOld`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let recent = client.stale_snapshot(std::time::Duration::from_millis(500));
    /// let read = recent.get("key").await?;
    /// # Ok(()) }
    /// ```
    pub fn stale_snapshot(&self, max_staleness: Duration) -> Snapshot {
        let max_us = u64::try_from(max_staleness.as_micros()).unwrap_or(u64::MAX);
        Snapshot::new(self.clone(), First::Stale { max_us })
    }

    /// Returns the highest timestamp that this client and its clones have read or written, or
    /// [`Timestamp::ZERO`] before the first one. Pass it to [`Client::observe`] on another client,
    /// whose stale reads then see at least as much.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(one: Client, other: Client) -> Result<(), ClientError> {
    /// one.put("key", "value").await?;
    /// other.observe(one.session_token());
    /// let stale = other.stale_snapshot(std::time::Duration::from_secs(10));
    /// assert!(stale.get("key").await?.is_some());
    /// # Ok(()) }
    /// ```
    pub fn session_token(&self) -> Timestamp {
        Timestamp::from_bits(self.counters.seen_ts.load(Ordering::Relaxed))
    }

    /// Raises this client's session token to that of another client. It is never lowered. Pass only
    /// values of [`Client::session_token`] of the same cluster: stale reads wait for the token's
    /// time to pass.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(client: Client, token: Timestamp) -> Result<(), ClientError> {
    /// client.observe(token);
    /// assert!(client.session_token() >= token);
    /// # Ok(()) }
    /// ```
    pub fn observe(&self, session_token: Timestamp) {
        self.counters.seen_ts.fetch_max(session_token.to_bits(), Ordering::Relaxed);
    }
}

/// All ranges at one timestamp; see [`Client::snapshot`], [`Client::snapshot_at`] and
/// [`Client::stale_snapshot`]. The first read sets the timestamp. Clones share it.
///
/// The versions at the timestamp are kept for 60 seconds
/// ([`MAX_SNAPSHOT_AGE_US`](crate::MAX_SNAPSHOT_AGE_US)) from it, in all ranges, also in ranges
/// that are not read: the client renews its oldest open snapshot at every node once a second. After
/// that, reads fail with [`ClientError::SnapshotTooOld`]. Drop a snapshot that is no longer needed:
/// the cluster keeps every version since the oldest open one.
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
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let snapshot = client.snapshot();
    /// assert_eq!(snapshot.at_ts(), None);
    /// # Ok(()) }
    /// ```
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.open.get().map(|open| open.at_ts)
    }

    /// Reads a key. Of two concurrent first reads of a snapshot, one may take twice the time limit
    /// of a call, because it reads again at the timestamp of the other.
    ///
    /// # Errors
    ///
    /// A read changes nothing, with any error.
    ///
    /// - [`ClientError::SnapshotTooOld`]: the versions are no longer kept. Not retryable: open a
    ///   new snapshot.
    /// - [`ClientError::Deadline`]: no replica of the range that has the state answers in time, or
    ///   the timestamp lies in the future. Retryable.
    /// - [`ClientError::Rejected`] with [`Rejection::KeySize`]: the key is empty or longer than
    ///   [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES). Not retryable.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// if let Some(read) = client.snapshot().get("key").await? {
    ///     println!("{:?}, written at {}", read.value, read.version_ts);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        let key = key.into();
        check_key(&key).map_err(ClientError::Rejected)?;
        Versioned::of(self.read(|mode| Call::Get { key: key.clone(), mode }).await?)
    }

    pub(crate) async fn page(&self, span: &ScanSpan) -> Result<Outcome, ClientError> {
        self.read(|mode| Call::Scan { span: span.clone(), mode }).await
    }

    async fn read(&self, call: impl Fn(ReadMode) -> Call) -> Result<Outcome, ClientError> {
        loop {
            let kind = self.at_ts().map_or_else(|| self.first_kind(), ReadKind::AsOf);
            // A fresh snapshot reads at the leader first: for a while, other replicas do not know
            // everything up to its timestamp.
            let anywhere = !matches!(self.first, First::Fresh);
            let mode = ReadMode::AtTimestamp { kind, anywhere };
            let outcome = match self.client.call(call(mode)).await {
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
