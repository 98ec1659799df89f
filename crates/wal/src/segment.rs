//! One file of the log: a header page, then records.
//!
//! ```text
//! offset  bytes  field
//!      0      8  magic "PALISWAL"
//!      8      4  version of the format
//!     12      4  crc32 of the header, this field zero
//!     16      8  cluster
//!     24      2  node
//!     26      2  shard
//!     28      4  crc of the last record before this segment
//!     32      8  sequence: 0 for the log's first segment
//!     40      8  bytes of a segment
//!   4096      …  records
//! ```
//! A file whose header page is all zero is a spare. Files are named by slot, not by sequence, so
//! that a spare becomes part of the log without touching the directory.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use memmap2::{MmapMut, MmapOptions};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use crate::{LogOptions, Position, WalError};

/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"PALISWAL";
const FORMAT_VERSION: u32 = 2;

/// Steps in which a segment is pre-written. The page cache keeps a file in folios as large as the
/// writes that filled it, and a store through the mapping dirties the whole folio: with large
/// steps a small append would sync a megabyte.
pub(crate) const PREWRITE_STEP_BYTES: usize = 16 * 1024;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct SegmentHeader {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    cluster_id: U64,
    node: U16,
    shard: U16,
    previous_crc: U32,
    sequence: U64,
    segment_bytes: U64,
}

/// A segment's file and its mapping.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) map: MmapMut,
    pub(crate) file: File,
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentStart {
    pub(crate) sequence: u64,
    pub(crate) previous_crc: u32,
}

impl Segment {
    /// Creates a spare: allocated, written to its last byte and synced before it is mapped, so that
    /// a full disk is an error here and never a fault in the mapping.
    pub(crate) fn create(path: &Path, segment_bytes: u64) -> Result<Self, WalError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(WalError::io("create", path))?;
        let step = vec![0; PREWRITE_STEP_BYTES];
        for offset in (0..segment_bytes).step_by(PREWRITE_STEP_BYTES) {
            file.write_all_at(&step, offset).map_err(WalError::io("pre-write", path))?;
        }
        file.sync_all().map_err(WalError::io("sync", path))?;
        Self::map(file, path)
    }

    /// Opens a file that [`Segment::create`] made earlier.
    pub(crate) fn open(path: &Path, segment_bytes: u64) -> Result<Self, WalError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(WalError::io("open", path))?;
        let len = file.metadata().map_err(WalError::io("inspect", path))?.len();
        if len != segment_bytes {
            return Err(WalError::Foreign {
                path: path.to_owned(),
                what: "its length is not the configured segment size (was the creation of the file \
                       interrupted, or log.segment_bytes changed?)",
            });
        }
        Self::map(file, path)
    }

    #[expect(unsafe_code, reason = "a file mapping is shared memory that the compiler can't see")]
    fn map(file: File, path: &Path) -> Result<Self, WalError> {
        // SAFETY: the mapping is undefined behaviour only if the file is changed behind it. The
        // data directory is locked by this process, the file is never truncated while it is mapped,
        // and every byte of it has been allocated, so that no access faults for want of a block.
        let map = unsafe { MmapOptions::new().populate().map_mut(&file) }
            .map_err(WalError::io("map", path))?;
        Ok(Self { path: path.to_owned(), map, file })
    }

    /// Makes a spare the next segment of the log. Durable with the first sync of its records.
    pub(crate) fn start(&mut self, options: &LogOptions, start: SegmentStart) {
        let mut header = SegmentHeader {
            magic: MAGIC,
            version: U32::new(FORMAT_VERSION),
            crc: U32::ZERO,
            cluster_id: U64::new(options.cluster_id),
            node: U16::new(options.node),
            shard: U16::new(options.shard),
            previous_crc: U32::new(start.previous_crc),
            sequence: U64::new(start.sequence),
            segment_bytes: U64::new(options.segment_bytes),
        };
        header.crc = U32::new(crc32fast::hash(header.as_bytes()));
        self.map[..size_of::<SegmentHeader>()].copy_from_slice(header.as_bytes());
    }

    /// Reads the header: `None` for a spare.
    pub(crate) fn read_start(
        &self,
        options: &LogOptions,
    ) -> Result<Option<SegmentStart>, WalError> {
        let page = &self.map[..SEGMENT_HEADER_BYTES];
        if page.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let foreign = |what| Err(WalError::Foreign { path: self.path.clone(), what });
        let (mut header, _) =
            SegmentHeader::read_from_prefix(page).expect("a page is longer than the header");
        if header.magic != MAGIC {
            return foreign("it is not a log segment of Palisade");
        }
        if header.version.get() != FORMAT_VERSION {
            return foreign("its format version is not read by this build");
        }
        let crc = header.crc.get();
        header.crc = U32::ZERO;
        if crc32fast::hash(header.as_bytes()) != crc {
            return Err(WalError::Corrupt {
                path: self.path.clone(),
                offset: 0,
                what: "the segment header's checksum does not match",
            });
        }
        if header.cluster_id.get() != options.cluster_id {
            return foreign("it belongs to another cluster");
        }
        if header.node.get() != options.node || header.shard.get() != options.shard {
            return foreign("it belongs to another node or shard");
        }
        if header.segment_bytes.get() != options.segment_bytes {
            return foreign("it was written with another segment size");
        }
        Ok(Some(SegmentStart {
            sequence: header.sequence.get(),
            previous_crc: header.previous_crc.get(),
        }))
    }

    /// Turns the file back into a spare, durably.
    pub(crate) fn clear(&mut self) -> Result<(), WalError> {
        self.zero_from(0)
    }

    /// Zeroes everything from `offset` on, durably, touching only pages that hold something.
    pub(crate) fn zero_from(&mut self, offset: usize) -> Result<(), WalError> {
        for page in self.map[offset..].chunks_mut(SEGMENT_HEADER_BYTES) {
            if page.iter().any(|byte| *byte != 0) {
                page.fill(0);
            }
        }
        self.file.sync_data().map_err(WalError::io("sync", &self.path))
    }
}

/// The position of a segment's first byte.
pub(crate) fn segment_position(sequence: u64, segment_bytes: u64) -> Position {
    sequence * segment_bytes
}
