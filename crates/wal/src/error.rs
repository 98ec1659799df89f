//! Errors of the log.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a log can't be opened or appended to.
#[derive(Debug, Error)]
pub enum WalError {
    /// A file operation failed. Retryable once its cause is fixed: for a full disk, once there is
    /// space.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error that the kernel returned.
        source: io::Error,
    },
    /// Durable records are damaged. Not retryable: restore the file, or remove this node's data and
    /// rebuild it from its peers.
    #[error(
        "{path} is damaged at byte {offset}: {what}; records after it show that it had been \
         durable. Nothing was changed. Restore the file, or replace this replica",
        path = path.display()
    )]
    Corrupt {
        /// The damaged segment.
        path: PathBuf,
        /// Offset of the damage in the file, in bytes.
        offset: u64,
        /// The check that failed.
        what: &'static str,
    },
    /// The file belongs to another log, or was written with another format version or segment size.
    /// Not retryable.
    #[error("{path} cannot be used by this shard: {what}", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The property that does not match.
        what: &'static str,
    },
    /// The next segment is still being prepared. Retryable after a short wait.
    #[error("the next log segment is still being prepared")]
    NotReady,
    /// An earlier sync failed. Not retryable: restart the node, which recovers from the files.
    #[error("a sync of the log failed earlier; nothing is appended any more. Restart the node")]
    Poisoned,
    /// The log has reached its limit. Retryable once segments are released, or with a higher limit.
    #[error("the log has reached its limit of {limit_bytes} bytes")]
    Full {
        /// The configured limit, in bytes.
        limit_bytes: u64,
    },
}

impl WalError {
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
