//! The write-ahead log of a shard: memory-mapped, checksummed, shared by all groups of the shard.
//!
//! The problem: a commit must be on disk before it is acknowledged, and a disk takes its time for
//! every sync, whatever its size. The naive way, a file for each group and a sync for each write,
//! is bound by the sync; a file that grows also syncs its metadata. So: one log for all groups,
//! segments that are pre-written before they are mapped (a sync then writes data alone), appends
//! that are stores into the mapping, and group commit: the next sync starts when the last one
//! returns, and covers everything appended meanwhile.
//!
//! Invariants:
//! - A record is handed back by recovery only if its checksum, its position and its place in the
//!   chain all fit.
//! - Everything at or below a position that was reported durable is there after a crash, or
//!   [`Log::open`] refuses.
//! - The mapping never meets a hole: every byte of a segment is written before it is mapped.
//! - [`Log::append`] never blocks: preparing a segment is another thread's work.
//! - A file is used again only when nothing in it can be needed by a restart at any later moment.
//! - After a failed sync nothing is appended, and nothing is reported durable.
//!
//! Knows nothing of what the records mean, and nothing of the executor: who drives the log asks
//! for a [`SyncPlan`], carries it out in whatever way suits it, and reports back with
//! [`Log::synced`]. There are two [`Backend`]s, which differ in whose memory appends go to: the
//! file's page cache, or pages of the log's own that are written past it.
//!
//! Left out: repair of damaged records from peers (a damaged log is refused as a whole).
#![allow(clippy::disallowed_methods, reason = "this crate is the disk that is handed to others")]

mod data_dir;
mod error;
mod image;
mod inspect;
mod length;
mod log;
mod open;
mod record;
mod recovery;
mod retention;
mod segment;
mod spare;

pub use data_dir::{DataDir, DataDirError, Owner};
pub use error::WalError;
pub use image::{Image, ImageDamage, Remains};
pub use inspect::{InspectedRecord, InspectedSegment, Inspection, SegmentRole, inspect};
pub use length::LengthRule;
pub use log::{Backend, Log, LogOptions, OpenProgress, SyncPlan};
pub use record::{MAX_PAYLOAD_BYTES, RECORD_HEADER_BYTES, Record, RecordKind, record_bytes};

/// A place in the log, in bytes from its beginning; rising over all segments.
pub type Position = u64;
