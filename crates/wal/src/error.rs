//! What can go wrong with a log.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a log can't be opened or appended to.
#[derive(Debug, Error)]
pub enum WalError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Durable records are damaged. Not retryable: restore the file, or remove this node's data
    /// and let it be rebuilt from its peers.
    #[error(
        "{path} is damaged at byte {offset}: {what}; records after it show that it had been \
         durable. Nothing was changed. Restore the file, or replace this replica",
        path = path.display()
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The file belongs to another log, or to another version of the format.
    #[error("{path} cannot be used by this shard: {what}", path = path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// The next segment is still being prepared. Retryable in a moment.
    #[error("the next log segment is still being prepared")]
    NotReady,
    /// A sync has failed. Not retryable: start again, and trust what is read then.
    #[error("a sync of the log failed earlier; nothing is appended any more. Restart the node")]
    Poisoned,
    /// The log has reached its limit. Retryable only with a higher limit.
    #[error("the log has reached its limit of {limit_bytes} bytes")]
    Full {
        /// The limit.
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
