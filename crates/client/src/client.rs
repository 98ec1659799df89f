//! The asynchronous face.

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

/// Calls that may be under way at a time; further ones wait their turn.
const MAX_CALLS: usize = 32 * 1024;

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// The cluster to insist on, if any.
    pub cluster_id: Option<u64>,
    /// How long a call may take before it ends with [`ClientError::Deadline`].
    pub timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { cluster_id: None, timeout: Duration::from_secs(10) }
    }
}

/// A value with the timestamp of its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// When it was written, in the cluster's time.
    pub version_ts: Timestamp,
}

impl Versioned {
    /// What an answer to a read of a key says.
    pub(crate) fn of(outcome: Outcome) -> Result<Option<Self>, ClientError> {
        match outcome {
            Outcome::Value { version_ts, value, .. } => {
                Ok(value.map(|value| Self { value, version_ts }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A write that is durable and replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The timestamp of the new version: above that of everything that anybody knew of when the
    /// write was asked for.
    pub commit_ts: Timestamp,
    /// How long the answer waited for the timestamp to pass, after everything else was done.
    pub waited: Duration,
}

/// What a client counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests that were sent again.
    pub retries: u64,
}

/// Counters that the driver and all clones share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) retries: AtomicU64,
    /// Tries of transactions.
    pub(crate) owners: AtomicU64,
    /// The latest timestamp of anything seen or written.
    pub(crate) seen_ts: AtomicU64,
    pub(crate) snapshots: Arc<OpenSnapshots>,
}

/// A client of a cluster. Clones share its connections and its session.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
    /// Names the transactions of all clones towards whoever keeps their locks.
    lockers: SessionId,
    timeout: Duration,
}

impl Client {
    /// Connects to a cluster of which at least one of the addresses answers. Its connections have a
    /// thread of their own.
    pub async fn connect(
        addresses: &[SocketAddr],
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        Self::start(Cluster::At(addresses.to_vec()), options, Driver::spawn).await
    }

    /// Likewise, but its connections live in the caller's thread, as a task of the
    /// [`LocalSet`](tokio::task::LocalSet) that this is called in: no call crosses threads, which
    /// is faster for a program that does all of its work in one. No call gets on unless the set is
    /// polled; clones may be used elsewhere all the same.
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

    /// A client of a shard in this process.
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

    /// The same client with another time limit for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Writes a key, durably and replicated.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.commit(Commit::new().put(key, value)).await
    }

    /// Writes a key that has no value yet, or fails with [`ClientError::ConditionFailed`].
    pub async fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        let key = key.into();
        self.commit(Commit::new().expect(key.clone(), Expected::Absent).put(key, value)).await
    }

    /// Writes a key if it is as expected, or fails with [`ClientError::ConditionFailed`].
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        let key = key.into();
        self.commit(Commit::new().expect(key.clone(), expected).put(key, value)).await
    }

    /// Deletes a key, whether or not it has a value.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        self.commit(Commit::new().delete(key)).await
    }

    /// Makes several changes together or not at all. All keys must lie in one range.
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

    /// Runs a transaction: reads, then writes, in one range, all at one moment or not at all.
    /// Others see nothing of it before it has committed, and change nothing that it has read.
    ///
    /// It is run again, from the beginning, if it loses its locks to one that began before it, or
    /// with a leader; so `body` should do nothing but call the transaction, and must end soon:
    /// after 5 seconds without a call the locks are given to others. What `body` returns as an
    /// error rolls it back. The whole ends by the client's deadline.
    ///
    /// ```no_run
    /// # async fn example(client: palisade_client::Client) -> Result<(), palisade_client::ClientError> {
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

    /// Reads the latest value of a key: strictly serializable, with all other keys.
    ///
    /// Served by the replica that sequences the key's writes, Raft's leader or the chain's head. It
    /// waits for pending writes of this key, and for nothing otherwise.
    ///
    /// # Errors
    ///
    /// [`ClientError::Deadline`] (retryable) if no majority or no head answers in time, and
    /// [`ClientError::Rejected`] if the key is too long or empty.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        self.get_as(key.into(), How::Latest).await
    }

    /// Reads the latest value of a key: linearizable for this key alone.
    ///
    /// It sees every write of this key that was acknowledged before it began. It may miss a pending
    /// write of this key that is ordered before an acknowledged write of *another* key. Use
    /// [`Client::get`] if the order of several keys matters.
    ///
    /// Served by Raft's leader or the chain's tail, and waits for nothing: reads of a chain leave
    /// its head to the writes.
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

    /// Everything as it is at one moment, over all ranges, without locks: nothing that was
    /// acknowledged before the first read is missing. It stays readable for 60 seconds from its
    /// first read.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.clone(), First::Fresh)
    }

    /// Everything as it was at a moment in the past, from any replica that knows it. What is too
    /// old fails with [`ClientError::SnapshotTooOld`].
    pub fn snapshot_at(&self, at_ts: Timestamp) -> Snapshot {
        Snapshot::new(self.clone(), First::At(at_ts))
    }

    /// Everything as it was at one moment, not longer ago than `max_staleness` at the first read,
    /// from any replica that knows it; and not before anything that this client has seen or
    /// written.
    pub fn stale_snapshot(&self, max_staleness: Duration) -> Snapshot {
        let max_us = u64::try_from(max_staleness.as_micros()).unwrap_or(u64::MAX);
        Snapshot::new(self.clone(), First::Stale { max_us })
    }

    /// The latest moment that this client, with all its clones, has seen or written anything of. On
    /// another client, [`Client::observe`] makes even stale reads see at least as much.
    pub fn session_token(&self) -> Timestamp {
        Timestamp::from_bits(self.counters.seen_ts.load(Ordering::Relaxed))
    }

    /// Takes over what another client has seen.
    pub fn observe(&self, session_token: Timestamp) {
        self.counters.seen_ts.fetch_max(session_token.to_bits(), Ordering::Relaxed);
    }

    /// The keys from `begin` on, before `end` if there is one, in order, as they are at one moment:
    /// a scan of a fresh [`Client::snapshot`].
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        self.snapshot().scan(begin, end)
    }

    /// The keys that begin with a prefix, likewise.
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Scan {
        self.snapshot().scan_prefix(prefix)
    }

    /// Deletes the keys from `begin` on, before `end` if there is one, and returns how many there
    /// were: a page at a time, each by itself, so that keys written meanwhile may be left. For all
    /// at once see [`Transaction::delete_span`].
    pub async fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        let mut scan = self.scan(begin, end);
        let mut deleted = 0;
        while let Some(rows) = scan.next_page().await? {
            deleted += rows.len() as u64;
            // A page is of one range, and never more than a commit may hold.
            self.commit(rows.into_iter().fold(Commit::new(), |commit, row| commit.delete(row.key)))
                .await?;
        }
        Ok(deleted)
    }

    /// The cluster's nodes and ranges, as the client knows them.
    pub async fn topology(&self) -> Result<Topology, ClientError> {
        match self.call(Call::Topology).await? {
            Outcome::RangeMap(bytes) => Topology::from_bytes(&bytes)
                .map_err(|error| ClientError::Protocol(error.to_string())),
            other => Err(unexpected(&other)),
        }
    }

    /// The state of one shard, told by itself.
    pub async fn shard_status(&self, at: PeerAddress) -> Result<ShardStatus, ClientError> {
        match self.call(Call::Status { at }).await? {
            Outcome::Status(bytes) => ShardStatus::from_bytes(&bytes)
                .map_err(|error| ClientError::Protocol(error.to_string())),
            other => Err(unexpected(&other)),
        }
    }

    /// The state of every node; those that don't answer are left out.
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

    /// Changes the range map. What must hold before a change is written at [`Change`].
    pub async fn change_ranges(&self, change: &Change) -> Result<(), ClientError> {
        match self.call(Call::Control { change: change.to_bytes() }).await? {
            Outcome::ControlDone => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// What the client counted so far, over all clones.
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

    /// Makes a call whose answer nobody waits for, if there is room for it.
    pub(crate) fn send(&self, call: Call) {
        let deadline = Instant::now() + self.timeout;
        let command =
            Command { call, deadline, timeout: self.timeout, reply: oneshot::channel().0 };
        // Without room for it, its locks end by themselves.
        let _ = self.commands.try_send(command);
    }

    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.clone(), self.timeout)
    }

    /// What the next try of a transaction is known by.
    pub(crate) fn next_owner(&self) -> TxnId {
        let sequence = self.counters.owners.fetch_add(1, Ordering::Relaxed);
        TxnId { session: self.lockers, sequence }
    }

    /// Has the cluster keep what a snapshot sees, until it is dropped.
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

/// Refusals that end a call at once.
pub(crate) fn is_final(rejection: Rejection) -> bool {
    !rejection.is_retryable()
}
