//! A data directory belongs to one node of one cluster, and to one process at a time.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FORMAT_VERSION: u32 = 3;

/// Whose a data directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster_id: u64,
    /// The node of it.
    pub node: u16,
    /// How many shards the node has.
    pub shards: u16,
}

/// What a data directory says of itself.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format_version: u32,
    cluster_id: u64,
    node: u16,
    shards: u16,
}

/// A locked data directory. The lock goes with this value, or with the process, however that ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Why a data directory can't be used. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process has it. Retryable once that has ended.
    #[error(
        "the data directory {path} is in use by another process: stop that first, or use another \
         directory",
        path = path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error(
        "the data directory {path} holds {found}, but is opened for {expected}: correct that, or use \
         another directory",
        path = path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The file that says whose it is can't be understood.
    #[error("{path} cannot be understood: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl DataDir {
    /// Locks a directory, creating it if need be, and checks that it is this node's.
    pub fn open(path: &Path, owner: Owner) -> Result<Self, DataDirError> {
        let path = path.to_owned();
        fs::create_dir_all(&path).map_err(failed("create", &path))?;
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

    /// The directory of a shard's log.
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
            let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
            sync(&unfinished).map_err(failed("sync", &unfinished))?;
            fs::rename(&unfinished, &path).map_err(failed("rename", &unfinished))?;
            sync(dir).map_err(failed("sync", dir))
        }
        Err(error) => Err(failed("read", &path)(error)),
    }
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
