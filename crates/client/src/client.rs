//! The asynchronous client.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::{Change, Topology};
use palisade_wire::{
    Commit, Expected, NodeStatus, Outcome, PeerAddress, Rejection, SessionId, ShardId, ShardStatus,
    TxnId, check_key,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    ClientError, Scan, Snapshot, Transaction,
    driver::{Call, Cluster, Command, Driver, How, InProcess, fresh_session},
    open_snapshots::{OpenSnapshot, OpenSnapshots},
    snapshot::First,
    transaction::Tries,
};

/// Capacity of the queue of calls to the driver. Further callers wait until it has room.
const MAX_CALLS: usize = 32 * 1024;

/// Options of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Id of the cluster. Nodes of another cluster are ignored. `None` accepts any cluster.
    pub cluster_id: Option<u64>,
    /// Time limit of a call. Past it, the call ends with [`ClientError::Deadline`]. 10 seconds by
    /// default.
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { cluster_id: None, timeout: Duration::from_secs(10) }
    }
}

/// A value and the timestamp of its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The commit timestamp of the write.
    pub version_ts: Timestamp,
}

impl Versioned {
    /// Converts the outcome of a read of one key.
    pub(crate) fn of(outcome: Outcome) -> Result<Option<Self>, ClientError> {
        match outcome {
            Outcome::Value { version_ts, value, .. } => {
                Ok(value.map(|value| Self { value, version_ts }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A commit that is durable and replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The timestamp of the new versions. It is above every timestamp that had been returned to any
    /// client when the commit was requested.
    pub commit_ts: Timestamp,
    /// How long the acknowledgement waited for the timestamp to pass, after replication was done.
    pub waited: Duration,
}

/// Counters of a client and its clones, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Number of requests that were sent again, and of transactions that were run again.
    pub retries: u64,
}

/// State that the driver and all clones share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) retries: AtomicU64,
    /// Number of transaction tries so far; names the next one.
    pub(crate) owners: AtomicU64,
    /// The highest timestamp that this client has read or written.
    pub(crate) seen_ts: AtomicU64,
    pub(crate) snapshots: Arc<OpenSnapshots>,
}

/// A client of a cluster. Clones share the connections and the session.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
    /// Session that names the transactions of all clones in the lock tables.
    lockers: SessionId,
    timeout: Duration,
}

impl Client {
    /// Connects to a cluster. At least one of the addresses must answer. The connections run on a
    /// thread of their own.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unreachable`] (retryable) if no address answers within the timeout of
    /// `options`; [`ClientError::NoEntropy`] and [`ClientError::Protocol`] if the client cannot
    /// start (not retryable).
    pub async fn connect(
        addresses: &[SocketAddr],
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        Self::start(Cluster::At(addresses.to_vec()), options, Driver::spawn).await
    }

    /// Connects like [`Client::connect`], but runs the connections in the caller's thread, as a
    /// task of the current [`LocalSet`](tokio::task::LocalSet). Calls then cross no threads, which
    /// is faster for a single-threaded program. Calls progress only while the set is polled. Clones
    /// may be used on other threads.
    ///
    /// # Errors
    ///
    /// As for [`Client::connect`].
    ///
    /// # Panics
    ///
    /// Outside a `LocalSet`.
    pub async fn connect_local(
        addresses: &[SocketAddr],
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        Self::start(Cluster::At(addresses.to_vec()), options, |driver| {
            tokio::task::spawn_local(driver.drive());
            Ok(())
        })
        .await
    }

    /// Returns a client of a shard in this process.
    ///
    /// # Errors
    ///
    /// [`ClientError::NoEntropy`] and [`ClientError::Protocol`] if the client cannot start (not
    /// retryable).
    pub async fn in_process(shard: InProcess, options: ClientOptions) -> Result<Self, ClientError> {
        Self::start(Cluster::InProcess(shard), options, Driver::spawn).await
    }

    async fn start(
        cluster: Cluster,
        options: ClientOptions,
        start: impl FnOnce(Driver) -> Result<(), ClientError>,
    ) -> Result<Self, ClientError> {
        let (sender, commands) = mpsc::channel(MAX_CALLS);
        let counters = Arc::new(Counters::default());
        let (ready, is_ready) = oneshot::channel();
        let [session, lockers] = [fresh_session()?, fresh_session()?];
        start(Driver { cluster, options, session, commands, counters: counters.clone(), ready })?;
        is_ready.await.map_err(|_| ClientError::Closed)??;
        Ok(Self { commands: sender, counters, lockers, timeout: options.timeout })
    }

    /// Returns the same client with another time limit for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Writes a key. The write is durable and replicated when this returns. Errors: as for
    /// [`Client::commit`].
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.commit(Commit::new().put(key, value)).await
    }

    /// Writes a key that has no value yet, or fails with [`ClientError::ConditionFailed`]. Other
    /// errors: as for [`Client::commit`].
    pub async fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        let key = key.into();
        self.commit(Commit::new().expect(key.clone(), Expected::Absent).put(key, value)).await
    }

    /// Writes a key if it matches `expected`, or fails with [`ClientError::ConditionFailed`]. Other
    /// errors: as for [`Client::commit`].
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        let key = key.into();
        self.commit(Commit::new().expect(key.clone(), expected).put(key, value)).await
    }

    /// Deletes a key. Succeeds also if the key has no value. Errors: as for [`Client::commit`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        self.commit(Commit::new().delete(key)).await
    }

    /// Commits several writes atomically. All keys must lie in one range.
    ///
    /// # Errors
    ///
    /// - [`ClientError::ConditionFailed`], [`ClientError::SeveralRanges`], and
    ///   [`ClientError::Rejected`] for a size over its limit. Nothing was changed. Not retryable.
    /// - [`ClientError::Deadline`], [`ClientError::Closed`], [`ClientError::Protocol`] and other
    ///   rejections: [`ClientError::is_outcome_unknown`] returns whether the commit may have taken
    ///   effect.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, ClientError> {
        commit.check().map_err(ClientError::Rejected)?;
        match self.call(Call::Commit { commit, locks: None }).await? {
            Outcome::Committed { commit_ts, waited_us } => {
                let waited = Duration::from_micros(u64::from(waited_us));
                Ok(Committed { commit_ts, waited })
            }
            Outcome::ConditionFailed { condition, .. } => {
                Err(ClientError::ConditionFailed { condition: usize::from(condition) })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a transaction: reads, then writes, in one range, atomically and strictly serializable.
    /// Other clients see its writes only after the commit, and cannot change what it has read.
    ///
    /// `body` is run again from its start if the transaction loses its locks, to an older
    /// transaction or to a change of leader. So `body` should have no effects beside calls of the
    /// transaction. A transaction loses its locks after 5 seconds without a call. If `body` returns
    /// an error, the transaction is rolled back. All tries together end by the client's deadline.
    ///
    /// # Errors
    ///
    /// The errors of `body`, [`ClientError::SeveralRanges`] (not retryable), and those of
    /// [`Client::commit`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(
    /// #     client: palisade_client::Client
    /// # ) -> Result<(), palisade_client::ClientError> {
    /// let counted = client
    ///     .run(async |tx| {
    ///         let before = tx.get_for_update("visits").await?;
    ///         let visits = before.map_or(0, |before| before.len()) + 1;
    ///         tx.put("visits", "*".repeat(visits))?;
    ///         Ok::<_, palisade_client::ClientError>(visits)
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<T, E: From<ClientError>>(
        &self,
        mut body: impl AsyncFnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = self.tries();
        loop {
            let mut transaction = tries.begin();
            let result = body(&mut transaction).await;
            if let Some(result) = tries.end(transaction, result).await {
                return result;
            }
        }
    }

    /// Reads the latest value of a key. Strictly serializable with operations on all keys.
    ///
    /// Served by the replica that sequences the key's writes: Raft's leader or the chain's head. It
    /// waits for pending writes of this key only.
    ///
    /// # Errors
    ///
    /// [`ClientError::Deadline`] (retryable) if no majority or no head answers in time, and
    /// [`ClientError::Rejected`] if the key is empty or too long.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        self.get_as(key.into(), How::Latest).await
    }

    /// Reads the latest value of a key. Linearizable for this key alone.
    ///
    /// It sees every write of this key that was acknowledged before the call. It may miss a pending
    /// write of this key that is ordered before an acknowledged write of *another* key. Use
    /// [`Client::get`] if the order of several keys matters.
    ///
    /// Served by Raft's leader or the chain's tail, without waiting for pending writes. For a
    /// chain, this keeps reads off the head, which serves the writes.
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    pub async fn get_linearizable_by_key(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Versioned>, ClientError> {
        self.get_as(key.into(), How::LatestOfKey).await
    }

    async fn get_as(&self, key: Bytes, how: How) -> Result<Option<Versioned>, ClientError> {
        check_key(&key).map_err(ClientError::Rejected)?;
        Versioned::of(self.call(Call::Get { key, how }).await?)
    }

    /// Returns a snapshot of all ranges at one timestamp, without locks. It contains every write
    /// that was acknowledged before the snapshot's first read. It stays readable for 60 seconds
    /// from its timestamp, which the first read sets.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.clone(), First::Fresh)
    }

    /// Returns a snapshot at a given timestamp. Any replica that has the state at `at_ts` serves
    /// it. Reads fail with [`ClientError::SnapshotTooOld`] if the versions of that time are no
    /// longer kept.
    pub fn snapshot_at(&self, at_ts: Timestamp) -> Snapshot {
        Snapshot::new(self.clone(), First::At(at_ts))
    }

    /// Returns a snapshot whose timestamp is at most `max_staleness` old at its first read, and not
    /// below anything that this client has read or written. Any replica that has the state serves
    /// it.
    pub fn stale_snapshot(&self, max_staleness: Duration) -> Snapshot {
        let max_us = u64::try_from(max_staleness.as_micros()).unwrap_or(u64::MAX);
        Snapshot::new(self.clone(), First::Stale { max_us })
    }

    /// Returns the highest timestamp that this client and its clones have read or written. Pass it
    /// to [`Client::observe`] on another client, whose stale reads then see at least as much.
    pub fn session_token(&self) -> Timestamp {
        Timestamp::from_bits(self.counters.seen_ts.load(Ordering::Relaxed))
    }

    /// Raises this client's session token to that of another client.
    pub fn observe(&self, session_token: Timestamp) {
        self.counters.seen_ts.fetch_max(session_token.to_bits(), Ordering::Relaxed);
    }

    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order, in a new [`Client::snapshot`].
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        self.snapshot().scan(begin, end)
    }

    /// Returns a scan of the keys that begin with `prefix`, in a new [`Client::snapshot`].
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Scan {
        self.snapshot().scan_prefix(prefix)
    }

    /// Deletes the keys from `begin` (inclusive) to `end` (exclusive; `None` for no bound), and
    /// returns how many it deleted. Each page of keys is a commit of its own, so keys that are
    /// written meanwhile may remain. [`Transaction::delete_span`] is atomic.
    ///
    /// # Errors
    ///
    /// As for [`Scan::next_page`] and [`Client::commit`]. Earlier pages stay deleted.
    pub async fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        let mut scan = self.scan(begin, end);
        let mut deleted = 0;
        while let Some(rows) = scan.next_page().await? {
            deleted += rows.len() as u64;
            // A page lies in one range, and never exceeds the limits of a commit.
            self.commit(rows.into_iter().fold(Commit::new(), |commit, row| commit.delete(row.key)))
                .await?;
        }
        Ok(deleted)
    }

    /// Returns the nodes and ranges of the cluster, as this client currently knows them.
    ///
    /// # Errors
    ///
    /// [`ClientError::Closed`] (not retryable).
    pub async fn topology(&self) -> Result<Topology, ClientError> {
        match self.call(Call::Topology).await? {
            Outcome::RangeMap(bytes) => Topology::from_bytes(&bytes)
                .map_err(|error| ClientError::Protocol(error.to_string())),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the status that a shard reports of itself.
    ///
    /// # Errors
    ///
    /// [`ClientError::NodeDown`] and [`ClientError::Deadline`] (retryable) if the shard does not
    /// answer.
    pub async fn shard_status(&self, at: PeerAddress) -> Result<ShardStatus, ClientError> {
        match self.call(Call::Status { at }).await? {
            Outcome::Status(bytes) => ShardStatus::from_bytes(&bytes)
                .map_err(|error| ClientError::Protocol(error.to_string())),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the status of every node. Nodes with a shard that does not answer are left out.
    ///
    /// # Errors
    ///
    /// As for [`Client::topology`]; [`ClientError::Protocol`] (not retryable) if an answer is
    /// invalid.
    pub async fn status(&self) -> Result<Vec<NodeStatus>, ClientError> {
        let topology = self.topology().await?;
        let mut nodes = Vec::new();
        for node in &topology.nodes {
            let mut shards = Vec::new();
            for shard in 0..node.client.len() {
                let shard = ShardId(u16::try_from(shard).expect("shards are numbered by u16"));
                match self.shard_status(PeerAddress { node: node.node, shard }).await {
                    Ok(status) => shards.push(status),
                    Err(ClientError::NodeDown | ClientError::Deadline { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            if shards.len() == node.client.len() {
                nodes.push(NodeStatus { node: node.node, shards });
            }
        }
        Ok(nodes)
    }

    /// Changes the range map. [`Change`] documents the preconditions.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rejected`] (not retryable) if the change is not allowed, and
    /// [`ClientError::Deadline`].
    pub async fn change_ranges(&self, change: &Change) -> Result<(), ClientError> {
        match self.call(Call::Control { change: change.to_bytes() }).await? {
            Outcome::ControlDone => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the counters of this client and its clones.
    pub fn stats(&self) -> ClientStats {
        ClientStats { retries: self.counters.retries.load(Ordering::Relaxed) }
    }

    pub(crate) async fn call(&self, call: Call) -> Result<Outcome, ClientError> {
        self.call_until(call, Instant::now() + self.timeout).await
    }

    pub(crate) async fn call_until(
        &self,
        call: Call,
        deadline: Instant,
    ) -> Result<Outcome, ClientError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { call, deadline, timeout: self.timeout, reply };
        self.commands.send(command).await.map_err(|_| ClientError::Closed)?;
        let outcome = answer.await.map_err(|_| ClientError::Closed)??;
        outcome.visible_ts().into_iter().for_each(|seen_ts| self.observe(seen_ts));
        Ok(outcome)
    }

    /// Starts a call and ignores its answer. Drops the call if the queue is full.
    pub(crate) fn send(&self, call: Call) {
        let deadline = Instant::now() + self.timeout;
        let command =
            Command { call, deadline, timeout: self.timeout, reply: oneshot::channel().0 };
        // A rollback that is dropped is harmless: idle locks expire.
        let _ = self.commands.try_send(command);
    }

    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.clone(), self.timeout)
    }

    /// Names the next try of a transaction.
    pub(crate) fn next_owner(&self) -> TxnId {
        let sequence = self.counters.owners.fetch_add(1, Ordering::Relaxed);
        TxnId { session: self.lockers, sequence }
    }

    /// Registers an open snapshot, so that the cluster keeps its versions until it is dropped.
    pub(crate) fn open_snapshot(&self, at_ts: Timestamp) -> OpenSnapshot {
        self.counters.snapshots.open(at_ts)
    }

    pub(crate) fn count_retry(&self) {
        self.counters.retries.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) fn unexpected(outcome: &Outcome) -> ClientError {
    match outcome {
        Outcome::Rejected(rejection) => ClientError::Rejected(*rejection),
        other => ClientError::Protocol(format!("an answer of another kind: {other:?}")),
    }
}

/// Returns true if a rejection ends the call, so that it is not retried.
pub(crate) fn is_final(rejection: Rejection) -> bool {
    !rejection.is_retryable()
}
