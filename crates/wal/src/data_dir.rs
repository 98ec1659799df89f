//! Locks a data directory and checks its owner. A directory belongs to one node of one cluster, and
//! is used by one process at a time.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FORMAT_VERSION: u32 = 3;

/// The node that a data directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Id of the cluster.
    pub cluster_id: u64,
    /// Id of the node in the cluster.
    pub node: u16,
    /// Number of shards of the node.
    pub shards: u16,
}

/// The content of `identity.toml`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format_version: u32,
    cluster_id: u64,
    node: u16,
    shards: u16,
}

/// A locked data directory. The lock is released when this value is dropped or the process ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why a data directory can't be used. The logs in it were not changed.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// A file operation failed. Retryable once the cause is fixed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// Another process has locked the directory. Retryable once that process has ended.
    #[error(
        "the data directory {path} is in use by another process: stop that first, or use another \
         directory",
        path = path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory belongs to another node or cluster, or has another number of shards or format
    /// version. Not retryable.
    #[error(
        "the data directory {path} holds {found}, but is opened for {expected}: correct that, or use \
         another directory",
        path = path.display()
    )]
    Foreign {
        /// The data directory.
        path: PathBuf,
        /// The owner that the directory names.
        found: String,
        /// The owner that it was opened for.
        expected: String,
    },
    /// The file that names the owner can't be parsed. Not retryable.
    #[error("{path} cannot be understood: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        reason: String,
    },
}

impl DataDir {
    /// Locks a directory and checks that it belongs to `owner`. Creates the directory and its
    /// identity file if they do not exist.
    ///
    /// # Errors
    /// - [`DataDirError::InUse`] if another process has locked it. Retryable.
    /// - [`DataDirError::Foreign`] or [`DataDirError::Damaged`] if the identity does not match or
    ///   can't be parsed. Not retryable.
    /// - [`DataDirError::Io`] if a file operation failed.
    pub fn open(path: &Path, owner: Owner) -> Result<Self, DataDirError> {
        let path = path.to_owned();
        fs::create_dir_all(&path).map_err(failed("create", &path))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync(parent).map_err(failed("sync", parent))?;
        }
        let lock_path = path.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DataDirError::InUse { path }),
            Err(errno) => return Err(failed("lock", &lock_path)(errno.into())),
        }
        let Owner { cluster_id, node, shards } = owner;
        let expected = Identity { format_version: FORMAT_VERSION, cluster_id, node, shards };
        check_identity(&path, &expected)?;
        Ok(Self { path, _lock: lock })
    }

    /// Returns the directory of a shard's log.
    pub fn log_dir(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard:03}")).join("log")
    }
}

fn check_identity(dir: &Path, expected: &Identity) -> Result<(), DataDirError> {
    let path = dir.join("identity.toml");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let found: Identity = toml::from_str(&text).map_err(|error| DataDirError::Damaged {
                path: path.clone(),
                reason: error.to_string(),
            })?;
            if found != *expected {
                return Err(DataDirError::Foreign {
                    path: dir.to_owned(),
                    found: found.describe(),
                    expected: expected.describe(),
                });
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = toml::to_string(expected).expect("an identity always encodes");
            let unfinished = dir.join("identity.tmp");
            fs::write(&unfinished, text).map_err(failed("write", &unfinished))?;
            sync(&unfinished).map_err(failed("sync", &unfinished))?;
            fs::rename(&unfinished, &path).map_err(failed("rename", &unfinished))?;
            sync(dir).map_err(failed("sync", dir))
        }
        Err(error) => Err(failed("read", &path)(error)),
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Identity {
    fn describe(&self) -> String {
        format!(
            "node {} of cluster {} with {} shards (format {})",
            self.node, self.cluster_id, self.shards, self.format_version
        )
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { action, path, source }
}
