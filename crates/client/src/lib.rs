//! Client of a cluster: routes requests, follows leadership, retries safely, and ends every call by
//! its deadline.
//!
//! A [`Client`] runs its connections on its own thread, so its futures can be awaited on any
//! executor. [`BlockingClient`] needs no executor. Clones share the connections and the session.
//! The routing itself is a state machine without I/O, the [`router`].
//!
//! | limit | value |
//! | --- | --- |
//! | key | 1 to [`MAX_KEY_BYTES`] bytes |
//! | value | 0 to [`MAX_VALUE_BYTES`] bytes |
//! | conditions and writes of a commit or a transaction | [`MAX_COMMIT_PARTS`] |
//! | their keys and values | [`MAX_COMMIT_BYTES`] bytes |
//! | page of a scan | [`MAX_PAGE_ROWS`] rows; ends at [`MAX_PAGE_BYTES`] bytes or one row above |
//! | age of a snapshot | [`MAX_SNAPSHOT_AGE_US`] microseconds |
//! | time limit of a call | [`ClientOptions::timeout`], 10 seconds by default |
//!
//! Invariants:
//! - A write takes effect at most once, however often it is sent.
//! - An unknown outcome is reported as unknown, never as a failure.
//! - Every call ends by its deadline.
//!
//! ```no_run
//! # async fn example() -> Result<(), palisade_client::ClientError> {
//! use palisade_client::{Client, ClientOptions};
//!
//! let client =
//!     Client::connect(&["127.0.0.1:7000".parse().unwrap()], ClientOptions::default()).await?;
//! client.put("key", "value").await?;
//! assert_eq!(client.get("key").await?.unwrap().value, "value");
//! # Ok(())
//! # }
//! ```
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "drives real sockets")]

mod blocking;
mod calls;
mod client;
mod connection;
mod counters;
mod driver;
mod entropy;
mod error;
mod in_process;
mod open_snapshots;
mod results;
pub mod router;
mod scan;
mod sessions;
mod snapshot;
mod transaction;
mod transaction_scan;

pub use blocking::{BlockingClient, BlockingSnapshot, BlockingTransaction};
pub use bytes::Bytes;
pub use client::{Client, ClientOptions};
pub use error::ClientError;
pub use in_process::InProcess;
pub use palisade_clock::{BoundSource, Timestamp};
pub use palisade_control::{Change, NodeAddress, RangeDescriptor, RangeMap, Topology};
pub use palisade_wire::{
    AccessKey, Admission, Commit, Condition, Expected, MAX_COMMIT_BYTES, MAX_COMMIT_PARTS,
    MAX_KEY_BYTES, MAX_PAGE_BYTES, MAX_PAGE_ROWS, MAX_SNAPSHOT_AGE_US, MAX_VALUE_BYTES, Mode,
    NodeId, NodeStatus, PeerAddress, RangeId, RangeStatus, Refusal, Rejection, Role, Row, ShardId,
    ShardStatus, Write,
};
pub use results::{ClientStats, Committed, Versioned};
pub use scan::Scan;
pub use snapshot::Snapshot;
pub use transaction::Transaction;
pub use transaction_scan::TransactionScan;
