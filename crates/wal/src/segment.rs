//! A segment is one file of the log: a header page, then records.
//!
//! ```text
//! offset  bytes  field
//!      0      8  magic "PALISWAL"
//!      8      4  version of the format
//!     12      4  crc32 of the header with this field zero
//!     16      8  cluster
//!     24      2  node
//!     26      2  shard
//!     28      4  crc of the last record before this segment
//!     32      8  sequence: 0 for the log's first segment
//!     40      8  size of a segment in bytes
//!     48      8  sequence of the first segment that was still needed when this one was started
//!   4096      …  records
//! ```
//! A file whose header page is all zero is a spare. Files are named by slot, not by sequence, so
//! that starting a spare does not change the directory. A segment that is no longer needed is
//! reused without clearing it: each use of a file has its own sequence, which the checksum of each
//! record covers. So no record of an earlier use verifies.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use rustix::fs::{OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

use crate::{Backend, LogOptions, Position, WalError, options::PAGE_BYTES};

/// Size of the header page before the first record, in bytes.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 4096;

const BLANK_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

const MAGIC: [u8; 8] = *b"PALISWAL";
const FORMAT_VERSION: u32 = 3;

/// Bytes that are pre-written between two syncs.
const PREWRITE_BURST_BYTES: u64 = 1024 * 1024;

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
    first_needed: U64,
}

/// A segment's file and the memory that appends go to: a mapping of the file ([`Backend::Mapped`]),
/// or anonymous memory of the same size, whose pages the driver writes ([`Backend::Direct`]).
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: Arc<Path>,
    pub(crate) map: MmapMut,
    pub(crate) file: File,
}

/// Memory of a closed segment, to be reused with [`Backend::Direct`]. Its content belongs to an
/// earlier sequence, as in a reused file.
#[derive(Debug)]
pub(crate) struct Memory(MmapMut);

/// Fills a file with zeros through the page cache.
fn prewrite(file: &File, path: &Path, segment_bytes: u64) -> Result<(), WalError> {
    for offset in (0..segment_bytes).step_by(BLANK_PAGE.len()) {
        file.write_all_at(&BLANK_PAGE, offset).map_err(WalError::io("pre-write", path))?;
        // Small bursts, because the log's own syncs queue behind these writes.
        if (offset + PAGE_BYTES).is_multiple_of(PREWRITE_BURST_BYTES) {
            file.sync_data().map_err(WalError::io("sync", path))?;
        }
    }
    Ok(())
}

/// Fills a file with zeros past the page cache (`O_DIRECT`). If pages were left in the cache, each
/// later direct write would have to evict them, and the kernel moves such writes to a worker
/// thread. Falls back to [`prewrite`] on a file system without direct writes.
fn prewrite_past_cache(file: &File, path: &Path, segment_bytes: u64) -> Result<(), WalError> {
    let flags = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT));
    if flags.is_err() {
        return prewrite(file, path, segment_bytes);
    }
    let len = usize::try_from(PREWRITE_BURST_BYTES.min(segment_bytes)).expect("it fits memory");
    // Memory from a mapping is page-aligned, as direct writes require.
    let zeros = MmapOptions::new()
        .len(len)
        .map_anon()
        .map_err(WalError::io("find memory to pre-write", path))?;
    for offset in (0..segment_bytes).step_by(len) {
        let left = usize::try_from(segment_bytes - offset).map_or(len, |left| left.min(len));
        file.write_all_at(&zeros[..left], offset).map_err(WalError::io("pre-write", path))?;
        // Small bursts, because the log's next sync flushes everything in the disk's write cache.
        file.sync_data().map_err(WalError::io("sync", path))?;
    }
    fcntl_getfl(file)
        .and_then(|flags| fcntl_setfl(file, flags - OFlags::DIRECT))
        .map_err(|error| WalError::io("pre-write", path)(error.into()))
}

/// The fields of a header that place its segment in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentStart {
    pub(crate) sequence: u64,
    pub(crate) previous_crc: u32,
    /// Segments before this one are no longer part of the log.
    pub(crate) first_needed: u64,
}

/// The state of a file according to its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The file was never started as a segment.
    Blank,
    /// The checksum does not match: the start was interrupted, or the header is damaged.
    Unreadable,
    /// The file was started as a segment.
    Started(SegmentStart),
}

impl Segment {
    /// Creates a spare. The file is written to its last byte and synced before it is mapped, so
    /// that a full disk is an error here and never a fault in the mapping.
    pub(crate) fn create(
        path: &Path,
        options: &LogOptions,
        memory: Option<Memory>,
    ) -> Result<Self, WalError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(WalError::io("create", path))?;
        match options.backend {
            Backend::Mapped => prewrite(&file, path, options.segment_bytes)?,
            Backend::Direct => prewrite_past_cache(&file, path, options.segment_bytes)?,
        }
        file.sync_all().map_err(WalError::io("sync", path))?;
        Self::with_memory(file, path, options, memory)
    }

    /// Opens a file that [`Segment::create`] made earlier, to overwrite its content.
    pub(crate) fn open(
        path: &Path,
        options: &LogOptions,
        memory: Option<Memory>,
    ) -> Result<Self, WalError> {
        Self::with_memory(open_file(path, options.segment_bytes)?, path, options, memory)
    }

    /// Closes the file. With [`Backend::Direct`], returns the memory for reuse by another segment.
    pub(crate) fn let_go(self, options: &LogOptions) -> Option<Memory> {
        (options.backend == Backend::Direct).then_some(Memory(self.map))
    }

    /// Opens a file to append after its first `used` bytes.
    pub(crate) fn reopen(path: &Path, used: usize, options: &LogOptions) -> Result<Self, WalError> {
        let file = open_file(path, options.segment_bytes)?;
        let mut segment = Self::with_memory(file, path, options, None)?;
        if options.backend == Backend::Direct {
            let read = segment.file.read_exact_at(&mut segment.map[..used], 0);
            read.map_err(WalError::io("read", path))?;
        }
        Ok(segment)
    }

    fn with_memory(
        file: File,
        path: &Path,
        options: &LogOptions,
        memory: Option<Memory>,
    ) -> Result<Self, WalError> {
        let map = match (options.backend, memory) {
            (Backend::Mapped, _) => Self::map(&file, path)?,
            (Backend::Direct, Some(Memory(map))) => map,
            // Populated now, because the first access to each page costs a fault.
            (Backend::Direct, None) => MmapOptions::new()
                .len(usize::try_from(options.segment_bytes).expect("a segment fits memory"))
                .populate()
                .map_anon()
                .map_err(WalError::io("find memory for", path))?,
        };
        Ok(Self { path: path.into(), map, file })
    }

    #[expect(unsafe_code, reason = "a file mapping is shared memory that the compiler can't see")]
    fn map(file: &File, path: &Path) -> Result<MmapMut, WalError> {
        // SAFETY: a mapping is undefined behaviour only if something else changes the file while it
        // is mapped. This process has locked the data directory, and never truncates a mapped file.
        // Every byte of the file is allocated, so no access faults because a block is missing.
        let map = unsafe { MmapOptions::new().map_mut(file) }.map_err(WalError::io("map", path))?;
        // Disables read-ahead: it would load pages in folios as large as the read, and each small
        // append would then sync a whole folio.
        map.advise(Advice::Random).map_err(WalError::io("advise on", path))?;
        map.advise(Advice::PopulateRead).map_err(WalError::io("read", path))?;
        Ok(map)
    }

    /// Writes the header that makes a spare the next segment of the log. The header becomes durable
    /// with the first sync of the segment's records.
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
            first_needed: U64::new(start.first_needed),
        };
        header.crc = U32::new(crc32fast::hash(header.as_bytes()));
        self.map[..size_of::<SegmentHeader>()].copy_from_slice(header.as_bytes());
    }

    /// Makes the header durable before the first record is written.
    pub(crate) fn sync_header(&self) -> Result<(), WalError> {
        let header = self.map[..SEGMENT_HEADER_BYTES].to_vec();
        self.file.write_all_at(&header, 0).map_err(WalError::io("write", &self.path))?;
        self.file.sync_data().map_err(WalError::io("sync", &self.path))
    }
}

/// Returns the sequence in a file's header, or `None` if the header is blank or does not verify.
/// Reads only the header page. The result is a hint: the owner is not checked.
pub(crate) fn peek_sequence(path: &Path) -> Result<Option<u64>, WalError> {
    let file = File::open(path).map_err(WalError::io("open", path))?;
    fadvise(&file, 0, None, rustix::fs::Advice::Random)
        .map_err(|error| WalError::io("advise on", path)(error.into()))?;
    let mut page = BLANK_PAGE;
    match file.read_exact_at(&mut page, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(WalError::io("read", path)(error)),
    }
    Ok(read_header(&page).ok().flatten().map(|header| header.sequence.get()))
}

/// Opens a segment's file without mapping it. Fails if its length is not `segment_bytes`.
pub(crate) fn open_file(path: &Path, segment_bytes: u64) -> Result<File, WalError> {
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(WalError::io("open", path))?;
    check_length(&file, path, segment_bytes)?;
    Ok(file)
}

/// Zeroes a file from `offset` on, and syncs it. Does not write pages that are already zero.
pub(crate) fn zero_from(file: &File, path: &Path, offset: u64) -> Result<(), WalError> {
    let len = file.metadata().map_err(WalError::io("inspect", path))?.len();
    let mut page = BLANK_PAGE;
    let mut at = offset;
    while at < len {
        let end = (at + 1).next_multiple_of(PAGE_BYTES).min(len);
        let page = &mut page[..usize::try_from(end - at).expect("it is a page at most")];
        file.read_exact_at(page, at).map_err(WalError::io("read", path))?;
        if page.iter().any(|byte| *byte != 0) {
            page.fill(0);
            file.write_all_at(page, at).map_err(WalError::io("write", path))?;
        }
        at = end;
    }
    file.sync_data().map_err(WalError::io("sync", path))
}

/// The bytes of a segment, mapped read-only.
#[derive(Debug)]
pub(crate) struct SegmentBytes {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Mmap,
}

impl SegmentBytes {
    /// Maps a file and reads it into the page cache. A file that will be written to must be read
    /// `page_by_page`, without read-ahead, so that its folios stay small.
    #[expect(unsafe_code, reason = "a file mapping is shared memory that the compiler can't see")]
    pub(crate) fn open(
        path: &Path,
        segment_bytes: u64,
        page_by_page: bool,
    ) -> Result<Self, WalError> {
        let file = File::open(path).map_err(WalError::io("open", path))?;
        check_length(&file, path, segment_bytes)?;
        // SAFETY: as in `Segment::map`. An inspection may read while another process writes. A
        // partly written record does not verify, and no byte of a record is used unchecked.
        let bytes = unsafe { MmapOptions::new().map(&file) }.map_err(WalError::io("map", path))?;
        let advise = |advice| bytes.advise(advice).map_err(WalError::io("read", path));
        if page_by_page {
            advise(Advice::Random)?;
        }
        advise(Advice::PopulateRead)?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Reads and checks the header. Fails with [`WalError::Foreign`] if the segment belongs to
    /// another log, or has another format version or segment size.
    pub(crate) fn header(&self, options: &LogOptions) -> Result<Header, WalError> {
        let foreign = |what| Err(WalError::Foreign { path: self.path.clone(), what });
        let header = match read_header(&self.bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(Header::Blank),
            Err(Unread::Damaged) => return Ok(Header::Unreadable),
            Err(Unread::NotOurs) => return foreign("it is not a log segment of Palisade"),
            Err(Unread::Version) => return foreign("its format version is not read by this build"),
        };
        if header.cluster_id.get() != options.cluster_id {
            return foreign("it belongs to another cluster");
        }
        if header.node.get() != options.node || header.shard.get() != options.shard {
            return foreign("it belongs to another node or shard");
        }
        if header.segment_bytes.get() != options.segment_bytes {
            return foreign("it was written with another segment size");
        }
        Ok(Header::Started(SegmentStart {
            sequence: header.sequence.get(),
            previous_crc: header.previous_crc.get(),
            first_needed: header.first_needed.get(),
        }))
    }
}

/// Returns the owner and segment size in a header, or `None` if the header is blank or does not
/// verify. The other options are not stored and get defaults.
pub(crate) fn read_owner(page: &[u8]) -> Option<LogOptions> {
    let header = read_header(page).ok()??;
    Some(LogOptions {
        cluster_id: header.cluster_id.get(),
        node: header.node.get(),
        shard: header.shard.get(),
        segment_bytes: header.segment_bytes.get(),
        limit_bytes: u64::MAX,
        ahead_bytes: 0,
        backend: Backend::default(),
    })
}

enum Unread {
    NotOurs,
    Version,
    Damaged,
}

/// Returns the header, or `None` if the page is all zero.
fn read_header(bytes: &[u8]) -> Result<Option<SegmentHeader>, Unread> {
    let page = bytes.get(..SEGMENT_HEADER_BYTES).ok_or(Unread::NotOurs)?;
    if page.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (header, _) = SegmentHeader::read_from_prefix(page).map_err(|_| Unread::NotOurs)?;
    if header.magic != MAGIC {
        return Err(Unread::NotOurs);
    }
    if header.version.get() != FORMAT_VERSION {
        return Err(Unread::Version);
    }
    let unsigned = SegmentHeader { crc: U32::ZERO, ..header };
    if crc32fast::hash(unsigned.as_bytes()) != header.crc.get() {
        return Err(Unread::Damaged);
    }
    Ok(Some(header))
}

fn check_length(file: &File, path: &Path, segment_bytes: u64) -> Result<(), WalError> {
    let len = file.metadata().map_err(WalError::io("inspect", path))?.len();
    if len == segment_bytes {
        return Ok(());
    }
    Err(WalError::Foreign {
        path: path.to_owned(),
        what: "its length is not the configured segment size (was the creation of the file \
               interrupted, or log.segment_bytes changed?)",
    })
}

/// Returns the position of a segment's first byte.
pub(crate) fn segment_position(sequence: u64, segment_bytes: u64) -> Position {
    sequence * segment_bytes
}
