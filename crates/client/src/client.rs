//! The asynchronous client.

use std::{
    any::Any,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::{Change, Topology};
use palisade_wire::{
    AccessKey, Commit, Expected, NodeStatus, Outcome, PeerAddress, SessionId, ShardId, ShardStatus,
    TxnId, check_key,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    ClientError, InProcess,
    calls::{Call, ReadMode},
    connection::Access,
    counters::Counters,
    driver::{Cluster, Command, Driver},
    entropy::fresh_session,
    error::unexpected,
    open_snapshots::OpenSnapshot,
    results::{ClientStats, Committed, Versioned},
};

/// Capacity of the queue of calls to the driver. Further callers wait until it has room.
const MAX_CALLS: usize = 32 * 1024;

/// Longest time limit of a call, about 100 years. Later deadlines may be beyond the range of an
/// [`Instant`].
const MAX_TIMEOUT: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// Options of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Id of the cluster. Nodes of another cluster are ignored. `None`, the default, accepts any
    /// cluster.
    pub cluster_id: Option<u64>,
    /// Time limit of a call. Past it, the call ends with [`ClientError::Deadline`]. 10 seconds by
    /// default. A commit whose outcome is unknown may still take effect until 5
    /// seconds after its time limit, and 10 minutes after its start at the latest. Longer limits
    /// than 100 years, such as [`Duration::MAX`], count as 100 years.
    pub timeout: Duration,
    /// Key for a cluster that has a secret, from `palisade key derive`. Clusters without a secret
    /// are then refused. `None`, the default, for a cluster without a secret.
    pub key: Option<AccessKey>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { cluster_id: None, timeout: Duration::from_secs(10), key: None }
    }
}

/// A client of a cluster. Clones share the connections and the session.
///
/// Sizes: a key has 1 to [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) bytes, a value at most
/// [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) bytes and may be empty. A commit has at most
/// [`MAX_COMMIT_PARTS`](crate::MAX_COMMIT_PARTS) conditions and writes, whose keys and values have
/// at most [`MAX_COMMIT_BYTES`](crate::MAX_COMMIT_BYTES) bytes together.
///
/// Time: each call retries until the time limit of [`ClientOptions::timeout`]. A future that is
/// dropped does not cancel its call: a commit that was sent may still take effect.
#[derive(Clone, Debug)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    pub(crate) counters: Arc<Counters>,
    /// Session that names the transactions of all clones in the lock tables.
    lock_session: SessionId,
    pub(crate) timeout: Duration,
    /// Dropped last.
    _kept: Option<Arc<dyn Any + Send + Sync>>,
}

impl Client {
    /// Connects to a cluster. Tries the addresses in turn, each for up to one second, until one
    /// answers. That node names the other nodes. The connections run on a thread of their own.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Unreachable`]: no address answers within the timeout of `options`.
    ///   Retryable.
    /// - [`ClientError::Refused`]: a node refuses the connection, such as one without the right
    ///   key, and no other address answers. Not retryable.
    /// - [`ClientError::NoEntropy`] and [`ClientError::Protocol`]: the client cannot start. Not
    ///   retryable.
    ///
    /// Nothing is changed in any case.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example() -> Result<(), ClientError> {
    /// use std::{net::SocketAddr, time::Duration};
    ///
    /// let nodes = [SocketAddr::from(([127, 0, 0, 1], 7000))];
    /// let options = ClientOptions { timeout: Duration::from_secs(3), ..ClientOptions::default() };
    /// let client = Client::connect(&nodes, options).await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect(
        addresses: &[SocketAddr],
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        Self::start(Cluster::At(addresses.to_vec()), options, Driver::spawn).await
    }

    /// Connects like [`Client::connect`], but runs the connections in the caller's thread, as a
    /// task of the current [`LocalSet`](tokio::task::LocalSet). Calls then cross no threads, which
    /// is faster for a single-threaded program. Calls progress, and end by their deadlines, only
    /// while the set is polled. Clones may be used on other threads.
    ///
    /// # Errors
    ///
    /// As for [`Client::connect`], and [`ClientError::Closed`] (not retryable) if the set was
    /// dropped.
    ///
    /// # Panics
    ///
    /// Outside a `LocalSet`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example() -> Result<(), ClientError> {
    /// let nodes = [std::net::SocketAddr::from(([127, 0, 0, 1], 7000))];
    /// let calls = async {
    ///     let client = Client::connect_local(&nodes, ClientOptions::default()).await?;
    ///     client.put("key", "value").await
    /// };
    /// tokio::task::LocalSet::new().run_until(calls).await?;
    /// # Ok(()) }
    /// ```
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

    /// Returns a client of a shard in this process. Calls fail with [`ClientError::Closed`] once
    /// the shard has stopped.
    ///
    /// # Errors
    ///
    /// [`ClientError::NoEntropy`] and [`ClientError::Protocol`]: the client cannot start. Nothing
    /// was changed. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(shard: InProcess) -> Result<(), ClientError> {
    /// let client = Client::in_process(shard, ClientOptions::default()).await?;
    /// client.put("key", "value").await?;
    /// # Ok(()) }
    /// ```
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
        let [session, lock_session] = [fresh_session()?, fresh_session()?];
        let ClientOptions { cluster_id, timeout, key } = options;
        let access = Access { cluster_id, key };
        let shared = counters.clone();
        start(Driver { cluster, access, timeout, session, commands, counters: shared, ready })?;
        is_ready.await.map_err(|_| ClientError::Closed)??;
        Ok(Self { commands: sender, counters, lock_session, timeout, _kept: None })
    }

    /// Returns the same client, which drops a value together with its last clone, snapshot and
    /// transaction. For the engine of a shard in this process.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # async fn example(shard: InProcess, engine: String) -> Result<(), ClientError> {
    /// let client = Client::in_process(shard, ClientOptions::default()).await?.keeping(engine);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn keeping(self, value: impl Any + Send + Sync) -> Self {
        Self { _kept: Some(Arc::new(value)), ..self }
    }

    /// Returns the same client with another time limit for its calls; see
    /// [`ClientOptions::timeout`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let impatient = client.with_timeout(std::time::Duration::from_millis(200));
    /// impatient.get("key").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Writes a key. Waits as [`Client::commit`] does: the write is then durable and replicated.
    ///
    /// # Errors
    ///
    /// As for [`Client::commit`], except for a failed condition and several ranges.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let committed = client.put("key", "value").await?;
    /// assert!(committed.commit_ts <= client.session_token());
    /// # Ok(()) }
    /// ```
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.commit(Commit::new().put(key, value)).await
    }

    /// Writes a key that has no value yet.
    ///
    /// # Errors
    ///
    /// As for [`Client::commit`]. [`ClientError::ConditionFailed`] states that the key has a value.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// match client.insert("locks/printer", "ann").await {
    ///     Ok(_) => println!("ann holds the lock"),
    ///     Err(ClientError::ConditionFailed { .. }) => println!("the lock is held"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        let key = key.into();
        self.commit(Commit::new().expect(key.clone(), Expected::Absent).put(key, value)).await
    }

    /// Writes a key if it matches `expected`.
    ///
    /// # Errors
    ///
    /// As for [`Client::commit`]. [`ClientError::ConditionFailed`] states that the key does not
    /// match.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// if let Some(read) = client.get("key").await? {
    ///     let unchanged = Expected::Version(read.version_ts);
    ///     client.compare_and_set("key", unchanged, "new value").await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        let key = key.into();
        self.commit(Commit::new().expect(key.clone(), expected).put(key, value)).await
    }

    /// Deletes a key. Succeeds also if the key has no value. Waits as [`Client::commit`] does.
    ///
    /// # Errors
    ///
    /// As for [`Client::put`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// client.delete("key").await?;
    /// # Ok(()) }
    /// ```
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        self.commit(Commit::new().delete(key)).await
    }

    /// Commits several writes atomically, if all conditions hold. All keys must lie in one range.
    /// If several writes have the same key, the last one takes effect.
    ///
    /// Waits for the syncs of a majority (Raft) or of all members (chain), and until the commit
    /// timestamp has passed: about twice the error bound of the clock from the start.
    ///
    /// # Errors
    ///
    /// Nothing was changed, and the same call is not retryable:
    ///
    /// - [`ClientError::ConditionFailed`]: a condition does not hold.
    /// - [`ClientError::SeveralRanges`]: the keys lie in more than one range.
    /// - [`ClientError::Rejected`] with [`Rejection::KeySize`], [`Rejection::ValueSize`] or
    ///   [`Rejection::CommitSize`]: a size is over its limit, or the commit is empty.
    /// - [`ClientError::Rejected`] with [`Rejection::IdReused`]: see there.
    ///
    /// The outcome may be unknown:
    ///
    /// - [`ClientError::Deadline`]: no answer in time. Retryable. Its field `outcome_unknown`
    ///   states whether the commit may have taken effect.
    /// - [`ClientError::Rejected`] with [`Rejection::Expired`]: the answers to earlier tries were
    ///   lost, and the range no longer remembers the outcome. Unknown, and not retryable.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Unknown, and not retryable.
    ///
    /// [`Rejection::KeySize`]: crate::Rejection::KeySize
    /// [`Rejection::ValueSize`]: crate::Rejection::ValueSize
    /// [`Rejection::CommitSize`]: crate::Rejection::CommitSize
    /// [`Rejection::IdReused`]: crate::Rejection::IdReused
    /// [`Rejection::Expired`]: crate::Rejection::Expired
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let free = Commit::new().expect("seats/2", Expected::Absent);
    /// client.commit(free.put("seats/2", "ann").delete("seats/1")).await?;
    /// # Ok(()) }
    /// ```
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

    /// Reads the latest value of a key. Strictly serializable with operations on all keys.
    ///
    /// Served by the replica that sequences the key's writes: Raft's leader or the chain's head.
    /// Waits for pending writes of this key only, and for one round to the followers if Raft's
    /// leader has no lease.
    ///
    /// # Errors
    ///
    /// A read changes nothing, with any error.
    ///
    /// - [`ClientError::Deadline`]: no majority or no head answers in time. Retryable.
    /// - [`ClientError::Rejected`] with [`Rejection::KeySize`]: the key is empty or longer than
    ///   [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES). Not retryable.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Not retryable.
    ///
    /// [`Rejection::KeySize`]: crate::Rejection::KeySize
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// if let Some(read) = client.get("key").await? {
    ///     println!("{:?}, written at {}", read.value, read.version_ts);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        self.get_as(key.into(), ReadMode::Latest).await
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
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let read = client.get_linearizable_by_key("key").await?;
    /// assert!(read.is_none_or(|read| read.value.len() <= MAX_VALUE_BYTES));
    /// # Ok(()) }
    /// ```
    pub async fn get_linearizable_by_key(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Versioned>, ClientError> {
        self.get_as(key.into(), ReadMode::LatestOfKey).await
    }

    async fn get_as(&self, key: Bytes, mode: ReadMode) -> Result<Option<Versioned>, ClientError> {
        check_key(&key).map_err(ClientError::Rejected)?;
        Versioned::of(self.call(Call::Get { key, mode }).await?)
    }

    /// Returns the nodes and ranges of the cluster, as this client currently knows them. Sends
    /// nothing to the cluster.
    ///
    /// # Errors
    ///
    /// [`ClientError::Closed`] and [`ClientError::Protocol`]. Nothing was changed. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let topology = client.topology().await?;
    /// println!("{} nodes, {} ranges", topology.nodes.len(), topology.ranges.ranges().len());
    /// # Ok(()) }
    /// ```
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
    /// Nothing was changed.
    ///
    /// - [`ClientError::NodeDown`]: there is no connection to the shard, or no such shard.
    ///   Retryable.
    /// - [`ClientError::Deadline`]: the shard does not answer in time. Retryable.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Not retryable.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let at = PeerAddress { node: NodeId(0), shard: ShardId(0) };
    /// println!("{} bytes left", client.shard_status(at).await?.log_left_bytes);
    /// # Ok(()) }
    /// ```
    pub async fn shard_status(&self, at: PeerAddress) -> Result<ShardStatus, ClientError> {
        match self.call(Call::Status(at)).await? {
            Outcome::Status(bytes) => ShardStatus::from_bytes(&bytes)
                .map_err(|error| ClientError::Protocol(error.to_string())),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the status of every node. Nodes with a shard that does not answer are left out.
    /// Requests one shard after the other, each for up to the time limit of a call.
    ///
    /// # Errors
    ///
    /// As for [`Client::topology`]. A shard that does not answer is no error.
    ///
    /// # Panics
    ///
    /// If the topology lists more than 65,536 shards of one node, which no node can have.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// for node in client.status().await? {
    ///     println!("{}: {} shards", node.node, node.shards.len());
    /// }
    /// # Ok(()) }
    /// ```
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

    /// Changes the range map. [`Change`] documents the preconditions. Waits until the change is
    /// committed in the control plane's range.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Rejected`] with [`Rejection::InvalidChange`]: the map does not admit the
    ///   change. Nothing was changed. Not retryable.
    /// - [`ClientError::Rejected`] with [`Rejection::Unknown`]: the same, but an earlier try may
    ///   have made the change. Unknown: compare [`Client::topology`].
    /// - [`ClientError::Rejected`] with [`Rejection::NotPermitted`]: the client has no key of an
    ///   administrator. Nothing was changed. Not retryable.
    /// - [`ClientError::Deadline`]: no answer in time. Retryable. Its field `outcome_unknown`
    ///   states whether the change may have been made.
    /// - [`ClientError::Closed`] and [`ClientError::Protocol`]. Unknown, and not retryable.
    ///
    /// [`Rejection::InvalidChange`]: crate::Rejection::InvalidChange
    /// [`Rejection::NotPermitted`]: crate::Rejection::NotPermitted
    /// [`Rejection::Unknown`]: crate::Rejection::Unknown
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// let change = Change::RemoveFromChain { range: RangeId(3), epoch: 1, node: NodeId(2) };
    /// client.change_ranges(&change).await?;
    /// # Ok(()) }
    /// ```
    pub async fn change_ranges(&self, change: &Change) -> Result<(), ClientError> {
        match self.call(Call::Control(change.to_bytes())).await? {
            Outcome::ControlDone => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the counters of this client and its clones.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; async fn example(client: Client) -> Result<(), ClientError> {
    /// println!("{} retries", client.stats().retries);
    /// # Ok(()) }
    /// ```
    pub fn stats(&self) -> ClientStats {
        let Counters { retries, reruns, .. } = &*self.counters;
        ClientStats { retries: retries.load(Ordering::Relaxed) + reruns.load(Ordering::Relaxed) }
    }

    pub(crate) async fn call(&self, call: Call) -> Result<Outcome, ClientError> {
        self.call_until(call, self.deadline()).await
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
        if let Some(seen_ts) = outcome.visible_ts() {
            self.counters.seen_ts.fetch_max(seen_ts.to_bits(), Ordering::Relaxed);
        }
        Ok(outcome)
    }

    /// Starts a call and ignores its answer. Drops the call if the queue is full.
    pub(crate) fn send(&self, call: Call) {
        let (deadline, reply) = (self.deadline(), oneshot::channel().0);
        let command = Command { call, deadline, timeout: self.timeout, reply };
        // A rollback that is dropped is harmless: idle locks expire.
        let _ = self.commands.try_send(command);
    }

    /// Returns the deadline of a call that starts now.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(MAX_TIMEOUT)
    }

    /// Names the next try of a transaction.
    pub(crate) fn next_owner(&self) -> TxnId {
        let sequence = self.counters.owners.fetch_add(1, Ordering::Relaxed);
        TxnId { session: self.lock_session, sequence }
    }

    /// Registers an open snapshot, so that the cluster keeps its versions until it is dropped.
    pub(crate) fn open_snapshot(&self, at_ts: Timestamp) -> OpenSnapshot {
        self.counters.snapshots.open(at_ts)
    }

    pub(crate) fn count_rerun(&self) {
        self.counters.reruns.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_does_not_overflow_at_maximum_timeout() {
        let (commands, _received) = mpsc::channel(1);
        let (counters, lock_session) = (Arc::default(), SessionId(1));
        let client =
            Client { commands, counters, lock_session, timeout: Duration::MAX, _kept: None };
        assert!(client.deadline() > Instant::now() + MAX_TIMEOUT / 2);
    }
}
