//! The blocking client, for callers without an executor.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_lite::future::block_on;

use palisade_clock::Timestamp;
use palisade_wire::{Commit, Expected, Row};

use crate::{Client, ClientError, ClientOptions, Committed, Snapshot, Transaction, Versioned};

/// A [`Client`] whose calls block the calling thread. It must not be used inside an executor.
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
    /// See [`Client::connect`].
    pub fn connect(addresses: &[SocketAddr], options: ClientOptions) -> Result<Self, ClientError> {
        Ok(Self { client: block_on(Client::connect(addresses, options))? })
    }

    /// See [`Client::with_timeout`].
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout) }
    }

    /// See [`Client::put`].
    pub fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        block_on(self.client.put(key, value))
    }

    /// See [`Client::insert`].
    pub fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        block_on(self.client.insert(key, value))
    }

    /// See [`Client::compare_and_set`].
    pub fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        block_on(self.client.compare_and_set(key, expected, value))
    }

    /// See [`Client::delete`].
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        block_on(self.client.delete(key))
    }

    /// See [`Client::commit`].
    pub fn commit(&self, commit: Commit) -> Result<Committed, ClientError> {
        block_on(self.client.commit(commit))
    }

    /// See [`Client::delete_span`].
    pub fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        block_on(self.client.delete_span(begin, end))
    }

    /// Reads all rows of [`Client::scan`] into memory.
    pub fn scan(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<Row>, ClientError> {
        block_on(self.client.scan(begin, end).all())
    }

    /// Reads all rows of [`Client::scan_prefix`] into memory.
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Result<Vec<Row>, ClientError> {
        block_on(self.client.scan_prefix(prefix).all())
    }

    /// See [`Client::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        block_on(self.client.get(key))
    }

    /// See [`Client::get_linearizable_by_key`].
    pub fn get_linearizable_by_key(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Versioned>, ClientError> {
        block_on(self.client.get_linearizable_by_key(key))
    }

    /// See [`Client::snapshot`].
    pub fn snapshot(&self) -> BlockingSnapshot {
        BlockingSnapshot { snapshot: self.client.snapshot() }
    }

    /// See [`Client::snapshot_at`].
    pub fn snapshot_at(&self, at_ts: Timestamp) -> BlockingSnapshot {
        BlockingSnapshot { snapshot: self.client.snapshot_at(at_ts) }
    }

    /// See [`Client::stale_snapshot`].
    pub fn stale_snapshot(&self, max_staleness: Duration) -> BlockingSnapshot {
        BlockingSnapshot { snapshot: self.client.stale_snapshot(max_staleness) }
    }

    /// See [`Client::run`].
    pub fn run<T, E: From<ClientError>>(
        &self,
        mut body: impl FnMut(&mut BlockingTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = self.client.tries();
        loop {
            let mut transaction = BlockingTransaction { transaction: tries.begin() };
            let result = body(&mut transaction);
            if let Some(result) = block_on(tries.end(transaction.transaction, result)) {
                return result;
            }
        }
    }

    /// Returns the asynchronous client that this client uses.
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
    /// See [`Snapshot::at_ts`].
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.snapshot.at_ts()
    }

    /// See [`Snapshot::get`].
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        block_on(self.snapshot.get(key))
    }

    /// Reads all rows of [`Snapshot::scan`] into memory.
    pub fn scan(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<Row>, ClientError> {
        block_on(self.snapshot.scan(begin, end).all())
    }

    /// Reads all rows of [`Snapshot::scan_prefix`] into memory.
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
    /// See [`Transaction::get`].
    pub fn get(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        block_on(self.transaction.get(key))
    }

    /// See [`Transaction::get_for_update`].
    pub fn get_for_update(&mut self, key: impl Into<Bytes>) -> Result<Option<Bytes>, ClientError> {
        block_on(self.transaction.get_for_update(key))
    }

    /// See [`Transaction::put`].
    pub fn put(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        self.transaction.put(key, value)
    }

    /// See [`Transaction::insert`].
    pub fn insert(
        &mut self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        block_on(self.transaction.insert(key, value))
    }

    /// See [`Transaction::compare_and_set`].
    pub fn compare_and_set(
        &mut self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<(), ClientError> {
        block_on(self.transaction.compare_and_set(key, expected, value))
    }

    /// See [`Transaction::delete`].
    pub fn delete(&mut self, key: impl Into<Bytes>) -> Result<(), ClientError> {
        self.transaction.delete(key)
    }

    /// Reads all rows of [`Transaction::scan`] into memory.
    pub fn scan(
        &mut self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<(Bytes, Bytes)>, ClientError> {
        block_on(self.transaction.scan(begin, end).all())
    }

    /// Reads all rows of [`Transaction::scan_prefix`] into memory.
    pub fn scan_prefix(
        &mut self,
        prefix: impl Into<Bytes>,
    ) -> Result<Vec<(Bytes, Bytes)>, ClientError> {
        block_on(self.transaction.scan_prefix(prefix).all())
    }

    /// See [`Transaction::delete_span`].
    pub fn delete_span(
        &mut self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        block_on(self.transaction.delete_span(begin, end))
    }
}
