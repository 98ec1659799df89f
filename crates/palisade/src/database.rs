//! Opens any kind of database by its address.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
    sync::Arc,
    time::Duration,
};

use palisade_client::{
    Bytes, Client, ClientError, ClientOptions, Commit, Committed, Expected, InProcess, Scan,
    Snapshot, Timestamp, Transaction, Versioned,
};
use palisade_embedded::Engine;
use thiserror::Error;

/// A database in memory, in a directory, or a cluster. Clones share the database.
///
/// Sizes, limits and the time limit of a call are those of [`Client`].
///
/// A database in this process has one range, so a transaction may use any keys. It keeps its data
/// in memory. A commit waits for the sync of the directory, if there is one, and not for the clock.
/// The log in a directory has at most 4 GiB. After a failed sync the database stops, and every call
/// fails with [`ClientError::Closed`]. It also stops when its last clone is dropped: snapshots,
/// scans and clones of [`Database::client`] do not keep it open.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), palisade::OpenError> {
/// # futures_lite::future::block_on(async {
/// use palisade::{ClientError, Database};
///
/// let db = Database::open("mem:").await?;
/// db.put("visits", "1").await?;
/// let visits = db
///     .run(async |tx| {
///         let before = tx.get_for_update("visits").await?;
///         tx.put("visits", "2")?;
///         Ok::<_, ClientError>(before)
///     })
///     .await?;
/// assert_eq!(visits.as_deref(), Some(&b"1"[..]));
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone)]
pub struct Database {
    // Fields drop in order: the client before the engine, which stops with the last clone.
    client: Client,
    engine: Option<Arc<Engine>>,
}

/// Why a database cannot be opened. No data was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address has no known form. Not retryable.
    #[error(
        "{address:?} is no address of a database: use mem:, file:DIRECTORY or \
         palisade://HOST:PORT,HOST:PORT"
    )]
    Address {
        /// The address.
        address: String,
    },
    /// The name of a node cannot be resolved. Retryable.
    #[error("the address of a node, {name:?}, cannot be resolved: {source}")]
    Name {
        /// The name, with its port.
        name: String,
        /// The resolver's error.
        #[source]
        source: std::io::Error,
    },
    /// A database in this process cannot be opened. Retryable if another process has the directory
    /// open, once that process has ended.
    #[error(transparent)]
    Embedded(#[from] palisade_embedded::OpenError),
    /// The cluster cannot be reached, or the client cannot start.
    /// [`ClientError::is_retryable`] applies. Calls of a program that returns [`OpenError`] convert
    /// their errors to this variant too.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Database {
    /// Opens a database by its address:
    ///
    /// - `mem:` is new and empty, and is lost when its last clone is dropped.
    /// - `file:DIRECTORY` is stored in a directory, which is created if it does not exist. One
    ///   process at a time can open it. The log is read in the calling thread.
    /// - `palisade://HOST:PORT,HOST:PORT` is a cluster. At least one of the nodes must answer
    ///   within 10 seconds. Names are resolved in the calling thread.
    ///
    /// # Errors
    ///
    /// No data was changed.
    ///
    /// - [`OpenError::Address`]: the address has no known form. Not retryable.
    /// - [`OpenError::Name`]: the name of a node cannot be resolved. Retryable.
    /// - [`OpenError::Embedded`]: the directory or its log cannot be used. Retryable if another
    ///   process has the directory open, once that process has ended.
    /// - [`OpenError::Client`]: the cluster does not answer (retryable), or the client cannot start
    ///   (not retryable).
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// let db = palisade::Database::open("mem:").await?;
    /// db.put("key", "value").await?;
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn open(address: &str) -> Result<Self, OpenError> {
        Self::open_with(address, ClientOptions::default()).await
    }

    /// Opens a database like [`Database::open`], with options for its calls. The time limit also
    /// holds for the search for a node that answers. The id of the cluster has no meaning for a
    /// database in this process.
    ///
    /// # Errors
    ///
    /// As for [`Database::open`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// use std::time::Duration;
    ///
    /// use palisade::{ClientOptions, Database};
    ///
    /// let options = ClientOptions { timeout: Duration::from_secs(3), ..ClientOptions::default() };
    /// let db = Database::open_with("mem:", options).await?;
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn open_with(address: &str, options: ClientOptions) -> Result<Self, OpenError> {
        if address == "mem:" {
            Self::embed(Engine::in_memory()?, options).await
        } else if let Some(directory) = address.strip_prefix("file:").filter(|it| !it.is_empty()) {
            Self::embed(Engine::in_directory(Path::new(directory))?, options).await
        } else if let Some(nodes) = address.strip_prefix("palisade://") {
            let client = Client::connect(&resolve(nodes, address)?, options).await?;
            Ok(Self { client, engine: None })
        } else {
            Err(OpenError::Address { address: address.to_owned() })
        }
    }

    async fn embed(
        (engine, in_process): (Engine, InProcess),
        options: ClientOptions,
    ) -> Result<Self, OpenError> {
        let client = Client::in_process(in_process, options).await?;
        Ok(Self { client, engine: Some(Arc::new(engine)) })
    }

    /// Returns the client of the database. It has calls for the state of a cluster, such as
    /// [`Client::status`], and for session tokens. A clone of it does not keep a database in this
    /// process open.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("key", "value").await?;
    /// assert!(db.client().session_token() > palisade::Timestamp::ZERO);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the same database with another time limit for its calls; see
    /// [`ClientOptions::timeout`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// let short = db.with_timeout(std::time::Duration::from_secs(2));
    /// db.put("key", "value").await?;
    /// assert_eq!(short.get("key").await?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout), engine: self.engine.clone() }
    }

    /// Writes a key; see [`Client::put`].
    ///
    /// # Errors
    ///
    /// As for [`Client::put`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// let committed = db.put("key", "value").await?;
    /// assert_eq!(db.get("key").await?.unwrap().version_ts, committed.commit_ts);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.client.put(key, value).await
    }

    /// Writes a key that has no value yet; see [`Client::insert`].
    ///
    /// # Errors
    ///
    /// As for [`Client::insert`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// use palisade::ClientError;
    ///
    /// db.insert("locks/printer", "ann").await?;
    /// let taken = db.insert("locks/printer", "bob").await;
    /// assert_eq!(taken, Err(ClientError::ConditionFailed { condition: 0 }));
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn insert(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.client.insert(key, value).await
    }

    /// Writes a key if it matches `expected`; see [`Client::compare_and_set`].
    ///
    /// # Errors
    ///
    /// As for [`Client::compare_and_set`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// use palisade::Expected;
    ///
    /// let first = db.put("key", "1").await?;
    /// db.compare_and_set("key", Expected::Version(first.commit_ts), "2").await?;
    /// db.compare_and_set("key", Expected::Value("1".into()), "3").await.unwrap_err();
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Expected,
        value: impl Into<Bytes>,
    ) -> Result<Committed, ClientError> {
        self.client.compare_and_set(key, expected, value).await
    }

    /// Deletes a key. Succeeds also if the key has no value; see [`Client::delete`].
    ///
    /// # Errors
    ///
    /// As for [`Client::delete`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("key", "value").await?;
    /// db.delete("key").await?;
    /// assert_eq!(db.get("key").await?, None);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Committed, ClientError> {
        self.client.delete(key).await
    }

    /// Commits several writes atomically, if all conditions hold; see [`Client::commit`].
    /// Conditions and writes: at most [`MAX_COMMIT_PARTS`](crate::MAX_COMMIT_PARTS) together.
    ///
    /// # Errors
    ///
    /// As for [`Client::commit`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// use palisade::{Commit, Expected};
    ///
    /// let free = Commit::new().expect("seats/2", Expected::Absent);
    /// db.commit(free.put("seats/2", "ann").delete("seats/1")).await?;
    /// assert_eq!(db.get("seats/2").await?.unwrap().value, "ann");
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn commit(&self, commit: Commit) -> Result<Committed, ClientError> {
        self.client.commit(commit).await
    }

    /// Deletes the keys from `begin` (inclusive) to `end` (exclusive; `None` for no bound), and
    /// returns how many it deleted. Not atomic; see [`Client::delete_span`].
    ///
    /// # Errors
    ///
    /// As for [`Client::delete_span`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("users/ann", "1").await?;
    /// assert_eq!(db.delete_span("users/a", Some("users/b".into())).await?, 1);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn delete_span(
        &self,
        begin: impl Into<Bytes>,
        end: Option<Bytes>,
    ) -> Result<u64, ClientError> {
        self.client.delete_span(begin, end).await
    }

    /// Runs a transaction: reads, then writes, atomically and strictly serializable. `body` runs
    /// again if the transaction loses its locks; see [`Client::run`].
    ///
    /// # Errors
    ///
    /// As for [`Client::run`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// use palisade::{ClientError, Transaction};
    ///
    /// let visits = db
    ///     .run(async |tx: &mut Transaction| {
    ///         let before = tx.get_for_update("visits").await?;
    ///         let visits = before.map_or(0, |before| before.len()) + 1;
    ///         tx.put("visits", "*".repeat(visits))?;
    ///         Ok::<_, ClientError>(visits)
    ///     })
    ///     .await?;
    /// assert_eq!(visits, 1);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn run<T, E: From<ClientError>>(
        &self,
        body: impl AsyncFnMut(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        self.client.run(body).await
    }

    /// Reads the latest value of a key. Strictly serializable with operations on all keys; see
    /// [`Client::get`].
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("key", "value").await?;
    /// assert_eq!(db.get("key").await?.unwrap().value, "value");
    /// assert_eq!(db.get("other key").await?, None);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Versioned>, ClientError> {
        self.client.get(key).await
    }

    /// Reads the latest value of a key. Linearizable for this key alone; see
    /// [`Client::get_linearizable_by_key`].
    ///
    /// # Errors
    ///
    /// As for [`Client::get`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("key", "value").await?;
    /// assert_eq!(db.get_linearizable_by_key("key").await?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub async fn get_linearizable_by_key(
        &self,
        key: impl Into<Bytes>,
    ) -> Result<Option<Versioned>, ClientError> {
        self.client.get_linearizable_by_key(key).await
    }

    /// Returns a scan of the keys from `begin` (inclusive) to `end` (exclusive; `None` for no
    /// bound), in order, in a new snapshot; see [`Client::scan`]. A page has at most
    /// [`MAX_PAGE_ROWS`](crate::MAX_PAGE_ROWS) rows.
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("a", "1").await?;
    /// db.put("b", "2").await?;
    /// let mut scan = db.scan("", None).page_rows(1);
    /// assert_eq!(scan.next_page().await?.unwrap()[0].key, "a");
    /// assert_eq!(scan.next_page().await?.unwrap()[0].key, "b");
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub fn scan(&self, begin: impl Into<Bytes>, end: Option<Bytes>) -> Scan {
        self.client.scan(begin, end)
    }

    /// Returns a scan of the keys that begin with `prefix`, in a new snapshot; see
    /// [`Client::scan_prefix`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// db.put("users/ann", "1").await?;
    /// assert_eq!(db.scan_prefix("users/").all().await?.len(), 1);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub fn scan_prefix(&self, prefix: impl Into<Bytes>) -> Scan {
        self.client.scan_prefix(prefix)
    }

    /// Returns a snapshot of all ranges at one timestamp, without locks. It stays readable for 60
    /// seconds; see [`Client::snapshot`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// let before = db.snapshot();
    /// assert_eq!(before.get("key").await?, None); // sets the timestamp
    /// db.put("key", "value").await?;
    /// assert_eq!(before.get("key").await?, None);
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        self.client.snapshot()
    }

    /// Returns a snapshot at a given timestamp. Replaced versions are kept for at least one second;
    /// see [`Client::snapshot_at`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// let written = db.put("key", "value").await?;
    /// let then = db.snapshot_at(written.commit_ts);
    /// assert_eq!(then.get("key").await?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub fn snapshot_at(&self, at_ts: Timestamp) -> Snapshot {
        self.client.snapshot_at(at_ts)
    }

    /// Returns a snapshot that is at most `max_staleness` old, and not older than anything that
    /// this database and its clones have read or written; see [`Client::stale_snapshot`].
    ///
    /// # Examples
    ///
    /// ```
    /// # futures_lite::future::block_on(async {
    /// # let db = palisade::Database::open("mem:").await?;
    /// use std::time::Duration;
    ///
    /// db.put("key", "value").await?;
    /// let recent = db.stale_snapshot(Duration::from_millis(500));
    /// assert_eq!(recent.get("key").await?.unwrap().value, "value");
    /// # Ok::<(), palisade::OpenError>(()) }).unwrap();
    /// ```
    pub fn stale_snapshot(&self, max_staleness: Duration) -> Snapshot {
        self.client.stale_snapshot(max_staleness)
    }
}

fn resolve(nodes: &str, address: &str) -> Result<Vec<SocketAddr>, OpenError> {
    let mut found = Vec::new();
    for name in nodes.split(',').filter(|name| !name.is_empty()) {
        let resolved = name.to_socket_addrs();
        found.extend(resolved.map_err(|source| OpenError::Name { name: name.to_owned(), source })?);
    }
    if found.is_empty() {
        return Err(OpenError::Address { address: address.to_owned() });
    }
    Ok(found)
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.client).finish()
    }
}
