//! The blocking form of a database, for callers without an executor.

use std::{fmt, time::Duration};

use futures_lite::future::block_on;
use palisade_client::{
    BlockingClient, BlockingSnapshot, BlockingTransaction, Bytes, ClientError, ClientOptions,
    Commit, Committed, Expected, Row, Timestamp, Versioned,
};

use crate::{Database, OpenError};

/// A [`Database`] whose calls block the calling thread, at most for the time limit of
/// [`ClientOptions::timeout`]. It must not be used inside an executor, whose thread it would block.
///
/// # Examples
///
/// ```
/// use palisade::BlockingDatabase;
///
/// let db = BlockingDatabase::open("mem:")?;
/// db.put("key", "value")?;
/// assert_eq!(db.get("key")?.unwrap().value, "value");
/// # Ok::<(), palisade::OpenError>(())
/// ```
#[derive(Clone)]
pub struct BlockingDatabase {
    // Fields drop in order: the client before the database, whose engine stops with the last clone.
    client: BlockingClient,
    database: Database,
}

impl BlockingDatabase {
    /// Opens a database by its address; see [`Database::open`].
    ///
    /// # Errors
    ///
    /// As for [`Database::open`].
    ///
    /// # Examples
    ///
    /// ```
    /// let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("key", "value")?;
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn open(address: &str) -> Result<Self, OpenError> {
        Self::open_with(address, ClientOptions::default())
    }

    /// Opens a database with options for its calls; see [`Database::open_with`].
    ///
    /// # Errors
    ///
    /// As for [`Database::open`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use palisade::{BlockingDatabase, ClientOptions};
    ///
    /// let options = ClientOptions { timeout: Duration::from_secs(3), ..ClientOptions::default() };
    /// let db = BlockingDatabase::open_with("mem:", options)?;
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn open_with(address: &str, options: ClientOptions) -> Result<Self, OpenError> {
        let database = block_on(Database::open_with(address, options))?;
        Ok(Self { client: BlockingClient::from(database.client().clone()), database })
    }

    /// Returns the client of the database; see [`Database::client`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// let at_start = db.client().inner().stats();
    /// assert_eq!(at_start.retries, 0);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn client(&self) -> &BlockingClient {
        &self.client
    }

    /// Returns the same database with another time limit for its calls; see
    /// [`ClientOptions::timeout`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// let short = db.with_timeout(std::time::Duration::from_secs(2));
    /// db.put("key", "value")?;
    /// assert_eq!(short.get("key")?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout), database: self.database.clone() }
    }

    /// Writes a key; see [`Database::put`].
    ///
    /// # Errors
    ///
    /// As for [`Client::put`](crate::Client::put).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// let committed = db.put("key", "value")?;
    /// assert_eq!(db.get("key")?.unwrap().version_ts, committed.commit_ts);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.client.put(key, value)
    }

    /// Writes a key that has no value yet; see [`Database::insert`].
    ///
    /// # Errors
    ///
    /// As for [`Client::insert`](crate::Client::insert).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// use palisade::ClientError;
    ///
    /// db.insert("locks/printer", "ann")?;
    /// let taken = db.insert("locks/printer", "bob");
    /// assert_eq!(taken, Err(ClientError::ConditionFailed { condition: 0 }));
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.client.insert(key, value)
    }

    /// Writes a key if it matches `expected`; see [`Database::compare_and_set`].
    ///
    /// # Errors
    ///
    /// As for [`Client::compare_and_set`](crate::Client::compare_and_set).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// use palisade::Expected;
    ///
    /// let first = db.put("key", "1")?;
    /// db.compare_and_set("key", Expected::Version(first.commit_ts), "2")?;
    /// db.compare_and_set("key", Expected::Value("1".into()), "3").unwrap_err();
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.client.compare_and_set(key, expected, value)
    }

    /// Deletes a key. Succeeds also if the key has no value; see [`Database::delete`].
    ///
    /// # Errors
    ///
    /// As for [`Client::delete`](crate::Client::delete).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("key", "value")?;
    /// db.delete("key")?;
    /// assert_eq!(db.get("key")?, None);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        self.client.delete(key)
    }

    /// Commits several writes atomically, if all conditions hold; see [`Database::commit`].
    /// Conditions and writes: at most [`MAX_COMMIT_PARTS`](crate::MAX_COMMIT_PARTS) together.
    ///
    /// # Errors
    ///
    /// As for [`Client::commit`](crate::Client::commit).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// use palisade::{Commit, Expected};
    ///
    /// let free = Commit::new().expect("seats/2", Expected::Absent);
    /// db.commit(free.put("seats/2", "ann").delete("seats/1"))?;
    /// assert_eq!(db.get("seats/2")?.unwrap().value, "ann");
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn commit(&self, commit: Commit) -> Result<Committed, ClientError> {
        self.client.commit(commit)
    }

    /// Deletes the keys from `begin` (inclusive) to `end` (exclusive; `None` for no bound), and
    /// returns how many it deleted. Not atomic; see [`Database::delete_span`].
    ///
    /// # Errors
    ///
    /// As for [`Client::delete_span`](crate::Client::delete_span).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("users/ann", "1")?;
    /// assert_eq!(db.delete_span("users/a", Some("users/b".into()))?, 1);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        self.client.delete_span(begin, end)
    }

    /// Runs a transaction: reads, then writes, atomically and strictly serializable. `body` runs
    /// again if the transaction loses its locks; see [`Database::run`].
    ///
    /// # Errors
    ///
    /// As for [`Client::run`](crate::Client::run).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// use palisade::{BlockingTransaction, ClientError};
    ///
    /// let visits = db.run(|tx: &mut BlockingTransaction| {
    ///     let before = tx.get_for_update("visits")?;
    ///     let visits = before.map_or(0, |before| before.len()) + 1;
    ///     tx.put("visits", "*".repeat(visits))?;
    ///     Ok::<_, ClientError>(visits)
    /// })?;
    /// assert_eq!(visits, 1);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn run<T, E: From<ClientError>>(
        &self,
        body: impl FnMut(&mut BlockingTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        self.client.run(body)
    }

    /// Reads the latest value of a key. Strictly serializable with operations on all keys; see
    /// [`Database::get`].
    ///
    /// # Errors
    ///
    /// As for [`Client::get`](crate::Client::get).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("key", "value")?;
    /// assert_eq!(db.get("key")?.unwrap().value, "value");
    /// assert_eq!(db.get("other key")?, None);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        self.client.get(key)
    }

    /// Reads the latest value of a key. Linearizable for this key alone; see
    /// [`Database::get_linearizable_by_key`].
    ///
    /// # Errors
    ///
    /// As for [`Client::get`](crate::Client::get).
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("key", "value")?;
    /// assert_eq!(db.get_linearizable_by_key("key")?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn get_linearizable_by_key(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Versioned>, ClientError> {
        self.client.get_linearizable_by_key(key)
    }

    /// Reads all rows from `begin` (inclusive) to `end` (exclusive; `None` for no bound) into
    /// memory; see [`Database::scan`].
    ///
    /// # Errors
    ///
    /// As for [`BlockingClient::scan`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("a", "1")?;
    /// db.put("b", "2")?;
    /// assert_eq!(db.scan("b", None)?[0].value, "2");
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn scan(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<Vec<Row>, ClientError> {
        self.client.scan(begin, end)
    }

    /// Reads all rows whose keys begin with `prefix` into memory; see [`Database::scan_prefix`].
    ///
    /// # Errors
    ///
    /// As for [`BlockingClient::scan_prefix`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// db.put("users/ann", "1")?;
    /// assert_eq!(db.scan_prefix("users/")?.len(), 1);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Result<Vec<Row>, ClientError> {
        self.client.scan_prefix(prefix)
    }

    /// Returns a snapshot of all ranges at one timestamp, without locks. It stays readable for 60
    /// seconds; see [`Database::snapshot`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// let before = db.snapshot();
    /// assert_eq!(before.get("key")?, None); // sets the timestamp
    /// db.put("key", "value")?;
    /// assert_eq!(before.get("key")?, None);
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn snapshot(&self) -> BlockingSnapshot {
        self.client.snapshot()
    }

    /// Returns a snapshot at a given timestamp. Replaced versions are kept for at least one second;
    /// see [`Database::snapshot_at`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// let written = db.put("key", "value")?;
    /// let then = db.snapshot_at(written.commit_ts);
    /// assert_eq!(then.get("key")?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn snapshot_at(&self, at_ts: Timestamp) -> BlockingSnapshot {
        self.client.snapshot_at(at_ts)
    }

    /// Returns a snapshot that is at most `max_staleness` old, and not older than anything that
    /// this database and its clones have read or written; see [`Database::stale_snapshot`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let db = palisade::BlockingDatabase::open("mem:")?;
    /// use std::time::Duration;
    ///
    /// db.put("key", "value")?;
    /// let recent = db.stale_snapshot(Duration::from_millis(500));
    /// assert_eq!(recent.get("key")?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(())
    /// ```
    pub fn stale_snapshot(&self, max_staleness: Duration) -> BlockingSnapshot {
        self.client.stale_snapshot(max_staleness)
    }
}

impl fmt::Debug for BlockingDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockingDatabase").field(&self.client).finish()
    }
}
