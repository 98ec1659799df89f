//! The write-ahead log of a shard: checksummed records in pre-written segments, shared by all
//! groups of the shard.
//!
//! The problem: a commit must be on disk before it is acknowledged, and each sync has a high fixed
//! cost. With one file per group and one sync per write, throughput is limited by the syncs. A file
//! that grows also syncs its metadata.
//!
//! So all groups share one log. Segments are written in full before use, so that later syncs write
//! data only. Appends are stores to memory. Syncs are grouped: the next sync starts when the last
//! one returns, and covers everything appended meanwhile.
//!
//! Invariants:
//! - Recovery returns a record only if its checksum, its position and its place in the chain are
//!   correct.
//! - After a crash, [`Log::open`] recovers every needed record below a position that was reported
//!   durable, or it fails.
//! - A mapped file has no holes: every byte of a segment is written before it is mapped.
//! - [`Log::append`] never blocks: another thread prepares the segments.
//! - A file is reused only when no later restart can need any record in it.
//! - After a failed sync, nothing is appended and nothing is reported durable.
//!
//! The log does not interpret payloads and does not depend on the executor. Its driver takes a
//! [`SyncPlan`], carries it out, and reports back with [`Log::synced`]. The two [`Backend`]s differ
//! in the memory that appends go to: the file's page cache, or the log's own pages, which are
//! written past the page cache.
//!
//! Left out: repair of damaged records from peers. A damaged log is refused as a whole.
#![allow(clippy::disallowed_methods, reason = "this crate is the disk that is handed to others")]

mod data_dir;
mod error;
mod inspect;
mod length;
mod log;
mod memory_log;
mod open;
mod options;
mod record;
mod recovery;
mod retention;
mod segment;
mod spare;

pub use data_dir::{DataDir, DataDirError, Owner};
pub use error::WalError;
pub use inspect::{InspectedRecord, InspectedSegment, Inspection, SegmentRole, inspect};
pub use length::LengthRule;
pub use log::{Log, Retained, SyncPlan};
pub use memory_log::{MemoryLog, MemoryLogDamage, Remains};
pub use options::{Backend, LogOptions, OpenProgress};
pub use record::{MAX_PAYLOAD_BYTES, RECORD_HEADER_BYTES, Record, RecordKind, record_bytes};

/// A position in the log, in bytes from its beginning. Positions rise across segments.
pub type Position = u64;
