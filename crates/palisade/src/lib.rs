//! Palisade: a sharded, replicated, strictly serializable store.
//!
//! This is the crate that a program depends on. The database runs in the program's process or is a
//! cluster:
//!
//! ```
//! use palisade::BlockingDatabase;
//!
//! # fn main() -> Result<(), palisade::OpenError> {
//! // Or file:DIRECTORY, or palisade://HOST:PORT,HOST:PORT.
//! let db = BlockingDatabase::open("mem:")?;
//! db.put("answer", "42")?;
//! assert_eq!(db.get("answer")?.unwrap().value, "42");
//! # Ok(())
//! # }
//! ```
//!
//! [`Database`] has the same calls with futures, for any executor. [`Client`] documents the limits.
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod blocking;
mod database;

pub use blocking::BlockingDatabase;
pub use database::{Database, OpenError};

// Calls, and what they return.
pub use palisade_client::{
    BlockingClient, BlockingSnapshot, BlockingTransaction, Bytes, Client, ClientError,
    ClientOptions, ClientStats, Commit, Committed, Condition, Expected, Rejection, Row, Scan,
    Snapshot, Timestamp, Transaction, TransactionScan, Versioned, Write,
};

// The state of a cluster.
pub use palisade_client::{
    Admission, BoundSource, Change, Mode, NodeAddress, NodeId, NodeStatus, PeerAddress,
    RangeDescriptor, RangeId, RangeMap, RangeStatus, Role, ShardId, ShardStatus, Topology,
};

// Limits.
pub use palisade_client::{
    MAX_COMMIT_BYTES, MAX_COMMIT_PARTS, MAX_KEY_BYTES, MAX_PAGE_BYTES, MAX_PAGE_ROWS,
    MAX_SNAPSHOT_AGE_US, MAX_VALUE_BYTES,
};

pub use palisade_embedded::OpenError as EmbeddedError;
