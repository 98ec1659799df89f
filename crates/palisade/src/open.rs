//! Opens any kind of database by its address.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
};

use futures_lite::future::block_on;
use palisade_client::{BlockingClient, Client, ClientError, ClientOptions};
use palisade_embedded::Engine;
use thiserror::Error;

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

/// Opens a database by its address:
///
/// - `mem:` is new and empty, and is lost when its last client is dropped.
/// - `file:DIRECTORY` is stored in a directory, which is created if it does not exist. One process
///   at a time can open it. The log is read in the calling thread.
/// - `palisade://HOST:PORT,HOST:PORT` is a cluster. At least one of the nodes must answer within 10
///   seconds. Names are resolved in the calling thread.
///
/// A database in this process has one range, so a transaction may use any keys. It keeps its data
/// in memory. A commit waits for the sync of the directory, if there is one, and not for the clock.
/// The log in a directory has at most 4 GiB. After a failed sync the database stops, and every call
/// fails with [`ClientError::Closed`]. It also stops when the last clone of its client is dropped,
/// together with the client's snapshots, scans and transactions.
///
/// # Errors
///
/// No data was changed.
///
/// - [`OpenError::Address`]: the address has no known form. Not retryable.
/// - [`OpenError::Name`]: the name of a node cannot be resolved. Retryable.
/// - [`OpenError::Embedded`]: the directory or its log cannot be used. Retryable if another process
///   has the directory open, once that process has ended.
/// - [`OpenError::Client`]: the cluster does not answer (retryable), or the client cannot start
///   (not retryable).
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// use palisade::ClientError;
///
/// let db = palisade::open("mem:").await?;
/// db.put("visits", "1").await?;
/// let visits = db
///     .run(async |tx| {
///         let before = tx.get_for_update("visits").await?;
///         tx.put("visits", "2")?;
///         Ok::<_, ClientError>(before)
///     })
///     .await?;
/// assert_eq!(visits.as_deref(), Some(&b"1"[..]));
/// # Ok::<(), palisade::OpenError>(()) }).unwrap();
/// ```
pub async fn open(address: &str) -> Result<Client, OpenError> {
    open_with(address, ClientOptions::default()).await
}

/// Opens a database like [`open`], with options for its calls. The time limit also holds for the
/// search for a node that answers. The id of the cluster has no meaning for a database in this
/// process.
///
/// # Errors
///
/// As for [`open`].
///
/// # Examples
///
/// ```
/// # futures_lite::future::block_on(async {
/// use std::time::Duration;
///
/// let timeout = Duration::from_secs(3);
/// let options = palisade::ClientOptions { timeout, ..Default::default() };
/// let db = palisade::open_with("mem:", options).await?;
/// assert_eq!(db.get("key").await?, None);
/// # Ok::<(), palisade::OpenError>(()) }).unwrap();
/// ```
pub async fn open_with(address: &str, options: ClientOptions) -> Result<Client, OpenError> {
    if address == "mem:" {
        embed(Engine::in_memory(), options).await
    } else if let Some(directory) = address.strip_prefix("file:").filter(|it| !it.is_empty()) {
        embed(Engine::in_directory(Path::new(directory)), options).await
    } else if let Some(nodes) = address.strip_prefix("palisade://") {
        Ok(Client::connect(&resolve(nodes, address)?, options).await?)
    } else {
        Err(OpenError::Address { address: address.to_owned() })
    }
}

/// Opens a database like [`open`], for calls that block the calling thread.
///
/// # Errors
///
/// As for [`open`].
///
/// # Examples
///
/// ```
/// let db = palisade::open_blocking("mem:")?;
/// db.put("key", "value")?;
/// assert_eq!(db.get("key")?.unwrap().value, "value");
/// # Ok::<(), palisade::OpenError>(())
/// ```
pub fn open_blocking(address: &str) -> Result<BlockingClient, OpenError> {
    open_blocking_with(address, ClientOptions::default())
}

/// Opens a database like [`open_with`], for calls that block the calling thread.
///
/// # Errors
///
/// As for [`open`].
///
/// # Examples
///
/// ```
/// let options = palisade::ClientOptions::default();
/// let db = palisade::open_blocking_with("mem:", options)?;
/// assert_eq!(db.get("key")?, None);
/// # Ok::<(), palisade::OpenError>(())
/// ```
pub fn open_blocking_with(
    address: &str,
    options: ClientOptions,
) -> Result<BlockingClient, OpenError> {
    Ok(block_on(open_with(address, options))?.into())
}

type Started = Result<(Engine, palisade_client::InProcess), palisade_embedded::OpenError>;

async fn embed(started: Started, options: ClientOptions) -> Result<Client, OpenError> {
    let (engine, shard) = started?;
    Ok(Client::in_process(shard, options).await?.keeping(engine))
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
