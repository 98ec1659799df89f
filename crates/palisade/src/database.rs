//! Opens any kind of database by its address.

use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    ops::Deref,
    path::Path,
    sync::Arc,
};

use futures_lite::future::block_on;
use palisade_client::{BlockingClient, Client, ClientError, ClientOptions, InProcess};
use palisade_embedded::Engine;
use thiserror::Error;

/// A database in memory, in a directory, or a cluster. All have the calls of [`Client`].
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
    _engine: Option<Arc<Engine>>,
}

/// A [`Database`] whose calls, those of [`BlockingClient`], block the calling thread. It must not
/// be used inside an executor.
#[derive(Clone)]
pub struct BlockingDatabase {
    client: BlockingClient,
    _database: Database,
}

/// Why a database cannot be opened. No data was changed.
#[derive(Debug, Error)]
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
        source: std::io::Error,
    },
    /// A database in this process cannot be opened.
    #[error(transparent)]
    Embedded(#[from] palisade_embedded::OpenError),
    /// The cluster cannot be reached, or the client cannot start. See [`ClientError`].
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Database {
    /// Opens a database by its address:
    ///
    /// - `mem:` is new and empty, and is lost when its last clone is dropped.
    /// - `file:DIRECTORY` is stored in a directory, which is created if it does not exist. One
    ///   process at a time can open it.
    /// - `palisade://HOST:PORT,HOST:PORT` is a cluster. At least one of the nodes must answer.
    ///
    /// # Errors
    ///
    /// - [`OpenError::Address`]: the address has no known form. Not retryable.
    /// - [`OpenError::Name`]: the name of a node cannot be resolved. Retryable.
    /// - [`OpenError::Embedded`]: the directory or its log cannot be used.
    /// - [`OpenError::Client`]: the cluster does not answer, or the client cannot start.
    pub async fn open(address: &str) -> Result<Self, OpenError> {
        Self::open_with(address, ClientOptions::default()).await
    }

    /// Opens a database like [`Database::open`], with options for its calls.
    pub async fn open_with(address: &str, options: ClientOptions) -> Result<Self, OpenError> {
        if address == "mem:" {
            Self::embed(Engine::in_memory()?, options).await
        } else if let Some(directory) = address.strip_prefix("file:").filter(|it| !it.is_empty()) {
            Self::embed(Engine::in_directory(Path::new(directory))?, options).await
        } else if let Some(nodes) = address.strip_prefix("palisade://") {
            let client = Client::connect(&resolve(nodes, address)?, options).await?;
            Ok(Self { client, _engine: None })
        } else {
            Err(OpenError::Address { address: address.to_owned() })
        }
    }

    async fn embed(
        (engine, in_process): (Engine, InProcess),
        options: ClientOptions,
    ) -> Result<Self, OpenError> {
        let client = Client::in_process(in_process, options).await?;
        Ok(Self { client, _engine: Some(Arc::new(engine)) })
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

impl Deref for Database {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.client).finish()
    }
}

impl BlockingDatabase {
    /// See [`Database::open`].
    pub fn open(address: &str) -> Result<Self, OpenError> {
        Self::open_with(address, ClientOptions::default())
    }

    /// See [`Database::open_with`].
    pub fn open_with(address: &str, options: ClientOptions) -> Result<Self, OpenError> {
        let database = block_on(Database::open_with(address, options))?;
        Ok(Self { client: BlockingClient::from(database.client.clone()), _database: database })
    }
}

impl Deref for BlockingDatabase {
    type Target = BlockingClient;

    fn deref(&self) -> &BlockingClient {
        &self.client
    }
}

impl fmt::Debug for BlockingDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockingDatabase").field(&self.client).finish()
    }
}
