//! Palisade: a sharded, replicated, strictly serializable store.
//!
//! This is the crate that a program depends on. The database runs in the program's process or is a
//! cluster:
//!
//! ```
//! use palisade::{BlockingTransaction, ClientError};
//!
//! // Or file:DIRECTORY, or palisade://HOST:PORT,HOST:PORT.
//! let db = palisade::open_blocking("mem:")?;
//! db.put("account/ann", "70")?;
//! db.insert("account/bob", "30")?;
//!
//! // A transaction: both writes are committed, or none.
//! let moved = db.run(|tx: &mut BlockingTransaction| {
//!     let ann = tx.get_for_update("account/ann")?;
//!     tx.put("account/ann", "45")?;
//!     tx.put("account/bob", "55")?;
//!     Ok::<_, ClientError>(ann)
//! })?;
//! assert_eq!(moved.unwrap(), "70");
//!
//! // A snapshot: everything at one timestamp. It does not block writers.
//! let snapshot = db.snapshot();
//! assert_eq!(snapshot.scan_prefix("account/")?.len(), 2);
//! db.delete("account/ann")?;
//! assert_eq!(snapshot.get("account/ann")?.unwrap().value, "45");
//! # Ok::<(), palisade::OpenError>(())
//! ```
//!
//! [`open`] returns a [`Client`], whose calls are futures for any executor; [`open_blocking`]
//! returns a [`BlockingClient`]. [`Client`] documents the limits.
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod open;

pub use open::{OpenError, open, open_blocking, open_blocking_with, open_with};

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
