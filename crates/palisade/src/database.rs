//! One way to open them all.

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

/// A database: in memory, in a directory, or a cluster, with the same calls, which are those of
/// [`Client`].
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
    // Before the engine: that ends with the last clone.
    client: Client,
    _engine: Option<Arc<Engine>>,
}

/// A [`Database`] whose calls block the calling thread; they are those of [`BlockingClient`]. Not for
/// use inside an executor.
#[derive(Clone)]
pub struct BlockingDatabase {
    client: BlockingClient,
    _database: Database,
}

/// Why a database can't be opened. Nothing was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The address is of no kind that there is. Not retryable.
    #[error(
        "{address:?} is no address of a database: use mem:, file:DIRECTORY or \
         palisade://HOST:PORT,HOST:PORT"
    )]
    Address {
        /// What was given.
        address: String,
    },
    /// The name of a node can't be resolved. Retryable.
    #[error("the address of a node, {name:?}, cannot be resolved: {source}")]
    Name {
        /// What was given.
        name: String,
        /// The resolver's answer.
        source: std::io::Error,
    },
    /// A database of this process can't be opened.
    #[error(transparent)]
    Embedded(#[from] palisade_embedded::OpenError),
    /// The cluster can't be reached; and what calls say.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Database {
    /// Opens a database:
    ///
    /// - `mem:` is new and empty, and gone when its last clone is dropped;
    /// - `file:DIRECTORY` is in a directory, which is made if need be, and which one process at a time
    ///   has;
    /// - `palisade://HOST:PORT,HOST:PORT` is the cluster of which at least one of these nodes answers.
    pub async fn open(address: &str) -> Result<Self, OpenError> {
        Self::open_with(address, ClientOptions::default()).await
    }

    /// Likewise, with options for its calls.
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
