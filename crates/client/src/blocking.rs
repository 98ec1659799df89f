//! The blocking client, for callers without an executor.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_lite::future::block_on;

use palisade_clock::Timestamp;
use palisade_wire::{Commit, Expected, Row};

use crate::{
    Client, ClientError, ClientOptions, Committed, Snapshot, Transaction, Versioned,
    transaction::Tries,
};

/// A [`Client`] whose calls block the calling thread, at most for the time limit of
/// [`ClientOptions::timeout`]. It must not be used inside an executor, whose thread it would block.
/// With a client of [`Client::connect_local`], calls on the thread of its `LocalSet` never return.
///
/// Sizes and limits are those of [`Client`].
#[derive(Clone, Debug)]
pub struct BlockingClient {
    client: Client,
}

impl From<Client> for BlockingClient {
    fn from(client: Client) -> Self {
        Self { client }
    }
}

impl BlockingClient {
    /// Connects to a cluster, like [`Client::connect`].
    ///
    /// # Errors
    ///
    /// As for [`Client::connect`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example() -> Result<(), ClientError> {
    /// let nodes = [std::net::SocketAddr::from(([127, 0, 0, 1], 7000))];
    /// let client = BlockingClient::connect(&nodes, ClientOptions::default())?;
    /// # Ok(()) }
    /// ```
    pub fn connect(addresses: &[SocketAddr], options: ClientOptions) -> Result<Self, ClientError> {
        Ok(Self { client: block_on(Client::connect(addresses, options))? })
    }

    /// Returns the same client with another time limit for its calls; see
    /// [`ClientOptions::timeout`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let impatient = client.with_timeout(std::time::Duration::from_millis(200));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout) }
    }

    /// Writes a key, like [`Client::put`].
    ///
    /// # Errors
    ///
    /// As for [`Client::put`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let committed = client.put("key", "value")?;
    /// # Ok(()) }
    /// ```
    pub fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        block_on(self.client.put(key, value))
    }

    /// Writes a key that has no value yet, like [`Client::insert`].
    ///
    /// # Errors
    ///
    /// As for [`Client::insert`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// client.insert("locks/printer", "ann")?;
    /// # Ok(()) }
    /// ```
    pub fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        block_on(self.client.insert(key, value))
    }

    /// Writes a key if it matches `expected`, like [`Client::compare_and_set`].
    ///
    /// # Errors
    ///
    /// As for [`Client::compare_and_set`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// client.compare_and_set("state", Expected::Value("ready".into()), "running")?;
    /// # Ok(()) }
    /// ```
    pub fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        block_on(self.client.compare_and_set(key, expected, value))
    }

    /// Deletes a key, like [`Client::delete`].
    ///
    /// # Errors
    ///
    /// As for [`Client::delete`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// client.delete("key")?;
    /// # Ok(()) }
    /// ```
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        block_on(self.client.delete(key))
    }

    /// Commits several writes atomically, like [`Client::commit`].
    ///
    /// # Errors
    ///
    /// As for [`Client::commit`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// client.commit(Commit::new().put("seats/2", "ann").delete("seats/1"))?;
    /// # Ok(()) }
    /// ```
    pub fn commit(&self, commit: Commit) -> Result<Committed, ClientError> {
        block_on(self.client.commit(commit))
    }

    /// Deletes the keys from `begin` to `end`, like [`Client::delete_span`].
    ///
    /// # Errors
    ///
    /// As for [`Client::delete_span`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let deleted = client.delete_span("users/a", Some("users/b".into()))?;
    /// # Ok(()) }
    /// ```
    pub fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        block_on(self.client.delete_span(begin, end))
    }

    /// Reads all rows of [`Client::scan`] into memory. Their total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`Scan::all`](crate::Scan::all).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let rows = client.scan("users/a", Some("users/b".into()))?;
    /// # Ok(()) }
    /// ```
    pub fn scan(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<Row>, ClientError> {
        block_on(self.client.scan(begin, end).all())
    }

    /// Reads all rows of [`Client::scan_prefix`] into memory. Their total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`Scan::all`](crate::Scan::all).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let rows = client.scan_prefix("users/")?;
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Result<Vec<Row>, ClientError> {
        block_on(self.client.scan_prefix(prefix).all())
    }

    /// Reads the latest value of a key, like [`Client::get`].
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let value = client.get("key")?.map(|read| read.value);
    /// # Ok(()) }
    /// ```
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        block_on(self.client.get(key))
    }

    /// Reads the latest value of a key, like [`Client::get_linearizable_by_key`].
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let value = client.get_linearizable_by_key("key")?.map(|read| read.value);
    /// # Ok(()) }
    /// ```
    pub fn get_linearizable_by_key(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Versioned>, ClientError> {
        block_on(self.client.get_linearizable_by_key(key))
    }

    /// Returns a snapshot of all ranges, like [`Client::snapshot`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let value = client.snapshot().get("key")?;
    /// # Ok(()) }
    /// ```
    pub fn snapshot(&self) -> BlockingSnapshot {
        BlockingSnapshot { snapshot: self.client.snapshot() }
    }

    /// Returns a snapshot at a given timestamp, like [`Client::snapshot_at`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let written = client.put("key", "value")?;
    /// let value = client.snapshot_at(written.commit_ts).get("key")?;
    /// # Ok(()) }
    /// ```
    pub fn snapshot_at(&self, at_ts: Timestamp) -> BlockingSnapshot {
        BlockingSnapshot { snapshot: self.client.snapshot_at(at_ts) }
    }

    /// Returns a snapshot of limited age, like [`Client::stale_snapshot`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let value = client.stale_snapshot(std::time::Duration::from_millis(500)).get("key")?;
    /// # Ok(()) }
    /// ```
    pub fn stale_snapshot(&self, max_staleness: Duration) -> BlockingSnapshot {
        BlockingSnapshot { snapshot: self.client.stale_snapshot(max_staleness) }
    }

    /// Runs a transaction, like [`Client::run`].
    ///
    /// # Errors
    ///
    /// As for [`Client::run`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// client.run(|tx: &mut BlockingTransaction| {
    ///     let length = tx.get_for_update("key")?.map_or(0, |value| value.len());
    ///     tx.put("key", vec![b'x'; length + 1])
    /// })?;
    /// # Ok(()) }
    /// ```
    pub fn run<T, E: From<ClientError>>(
        &self,
        mut body: impl FnMut(&mut BlockingTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = Tries::new(self.client.clone());
        loop {
            let mut transaction = BlockingTransaction { transaction: tries.begin() };
            let result = body(&mut transaction);
            if let Some(result) = block_on(tries.end(transaction.transaction, result)) {
                return result;
            }
        }
    }

    /// Returns the asynchronous client that this client uses.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// println!("{} retries", client.inner().stats().retries);
    /// # Ok(()) }
    /// ```
    pub fn inner(&self) -> &Client {
        &self.client
    }
}

/// A [`Snapshot`] whose calls block the calling thread.
#[derive(Clone, Debug)]
pub struct BlockingSnapshot {
    snapshot: Snapshot,
}

impl BlockingSnapshot {
    /// Returns the timestamp of the snapshot, or `None` before the first read.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// assert_eq!(client.snapshot().at_ts(), None);
    /// # Ok(()) }
    /// ```
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.snapshot.at_ts()
    }

    /// Reads a key, like [`Snapshot::get`].
    ///
    /// # Errors
    ///
    /// As for [`Snapshot::get`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let snapshot = client.snapshot();
    /// let (one, other) = (snapshot.get("one")?, snapshot.get("other")?);
    /// # Ok(()) }
    /// ```
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        block_on(self.snapshot.get(key))
    }

    /// Reads all rows of [`Snapshot::scan`] into memory. Their total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`Scan::all`](crate::Scan::all).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let rows = client.snapshot().scan("users/a", Some("users/b".into()))?;
    /// # Ok(()) }
    /// ```
    pub fn scan(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<Row>, ClientError> {
        block_on(self.snapshot.scan(begin, end).all())
    }

    /// Reads all rows of [`Snapshot::scan_prefix`] into memory. Their total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`Scan::all`](crate::Scan::all).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*; fn example(client: BlockingClient) -> Result<(), ClientError> {
    /// let rows = client.snapshot().scan_prefix("users/")?;
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Result<Vec<Row>, ClientError> {
        block_on(self.snapshot.scan_prefix(prefix).all())
    }
}

/// A [`Transaction`] whose calls block the calling thread.
#[derive(Debug)]
pub struct BlockingTransaction {
    transaction: Transaction,
}

impl BlockingTransaction {
    /// Reads a key and locks it against writes, like [`Transaction::get`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::get`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// let value = tx.get("key")?;
    /// # Ok(()) }
    /// ```
    pub fn get(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        block_on(self.transaction.get(key))
    }

    /// Reads a key that will be written, like [`Transaction::get_for_update`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::get`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// let length = tx.get_for_update("key")?.map_or(0, |value| value.len());
    /// # Ok(()) }
    /// ```
    pub fn get_for_update(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        block_on(self.transaction.get_for_update(key))
    }

    /// Writes a key, like [`Transaction::put`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::put`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// tx.put("key", "value")?;
    /// # Ok(()) }
    /// ```
    pub fn put(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        self.transaction.put(key, value)
    }

    /// Writes a key that has no value yet, like [`Transaction::insert`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::insert`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// tx.insert("key", "value")?;
    /// # Ok(()) }
    /// ```
    pub fn insert(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        block_on(self.transaction.insert(key, value))
    }

    /// Writes a key if it matches `expected`, like [`Transaction::compare_and_set`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::compare_and_set`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// tx.compare_and_set("state", Expected::Value("ready".into()), "running")?;
    /// # Ok(()) }
    /// ```
    pub fn compare_and_set(
        &mut self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        block_on(self.transaction.compare_and_set(key, expected, value))
    }

    /// Deletes a key, like [`Transaction::delete`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::delete`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// tx.delete("key")?;
    /// # Ok(()) }
    /// ```
    pub fn delete(&mut self, key: impl Into<Bytes>) -> Result<(), ClientError> {
        self.transaction.delete(key)
    }

    /// Reads all rows of [`Transaction::scan`] into memory. Their total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`TransactionScan::all`](crate::TransactionScan::all).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// let users = tx.scan("users/a", Some("users/b".into()))?;
    /// # Ok(()) }
    /// ```
    pub fn scan(
        &mut self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<(Bytes, Bytes)>, ClientError> {
        block_on(self.transaction.scan(begin, end).all())
    }

    /// Reads all rows of [`Transaction::scan_prefix`] into memory. Their total size is not limited.
    ///
    /// # Errors
    ///
    /// As for [`TransactionScan::all`](crate::TransactionScan::all).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// let users = tx.scan_prefix("users/")?;
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix(
        &mut self,
        prefix: impl Into<Bytes>,
    ) -> Result<Vec<(Bytes, Bytes)>, ClientError> {
        block_on(self.transaction.scan_prefix(prefix).all())
    }

    /// Deletes the keys from `begin` to `end`, like [`Transaction::delete_span`].
    ///
    /// # Errors
    ///
    /// As for [`Transaction::delete_span`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use palisade_client::*;
    /// # fn example(tx: &mut BlockingTransaction) -> Result<(), ClientError> {
    /// let deleted = tx.delete_span("users/a", Some("users/b".into()))?;
    /// # Ok(()) }
    /// ```
    pub fn delete_span(
        &mut self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        block_on(self.transaction.delete_span(begin, end))
    }
}
