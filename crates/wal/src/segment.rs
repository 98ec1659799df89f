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
//!     48      8  sequence of the first segment that was still needed when this one was started
//!   4096      …  records
//! ```
//! A file whose header page is all zero is a spare. Files are named by slot, not by sequence, so
//! that a spare becomes part of the log without touching the directory, and a segment that is not
//! needed any more becomes a spare as it is: every use of a file has a sequence of its own, which
//! is in the checksum of each record, so that nothing of an earlier use verifies.

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

use crate::{Backend, LogOptions, Position, WalError};

/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 4096;

/// Unit in which memory and disk exchange bytes, and steps in which a segment is pre-written: the
/// page cache keeps a file in folios as large as the writes that filled it, and a store through the
/// mapping dirties the whole folio. With large steps a small append would sync a megabyte.
pub(crate) const PAGE_BYTES: u64 = 4096;

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

/// A segment's file, and the memory that is written to: a mapping of the file, or as many bytes of
/// our own, whose pages the driver writes.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: Arc<Path>,
    pub(crate) map: MmapMut,
    pub(crate) file: File,
}

/// Memory of a segment that is let go, for [`Backend::Direct`]. What it holds is of an earlier
/// sequence, like what a file holds that is used again.
#[derive(Debug)]
pub(crate) struct Memory(MmapMut);

/// Fills a file with zeros, through the page cache.
fn prewrite(file: &File, path: &Path, segment_bytes: u64) -> Result<(), WalError> {
    for offset in (0..segment_bytes).step_by(BLANK_PAGE.len()) {
        file.write_all_at(&BLANK_PAGE, offset).map_err(WalError::io("pre-write", path))?;
        // The log's own syncs queue up behind whatever is written here.
        if (offset + PAGE_BYTES).is_multiple_of(PREWRITE_BURST_BYTES) {
            file.sync_data().map_err(WalError::io("sync", path))?;
        }
    }
    Ok(())
}

/// Fills a file with zeros, past the page cache: pages left there would have to be thrown out by
/// each of the direct writes to come, which the kernel hands to a thread of its own for that. A file
/// system that can't write so is written to as usual.
fn prewrite_past_cache(file: &File, path: &Path, segment_bytes: u64) -> Result<(), WalError> {
    let flags = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT));
    if flags.is_err() {
        return prewrite(file, path, segment_bytes);
    }
    let len = usize::try_from(PREWRITE_BURST_BYTES.min(segment_bytes)).expect("it fits memory");
    // A mapping begins at a page, as direct writes must.
    let zeros = MmapOptions::new()
        .len(len)
        .map_anon()
        .map_err(WalError::io("find memory to pre-write", path))?;
    for offset in (0..segment_bytes).step_by(len) {
        let left = usize::try_from(segment_bytes - offset).map_or(len, |left| left.min(len));
        file.write_all_at(&zeros[..left], offset).map_err(WalError::io("pre-write", path))?;
        // A disk that keeps writes in a cache of its own empties all of that for the log's next sync.
        file.sync_data().map_err(WalError::io("sync", path))?;
    }
    fcntl_getfl(file)
        .and_then(|flags| fcntl_setfl(file, flags - OFlags::DIRECT))
        .map_err(|error| WalError::io("pre-write", path)(error.into()))
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentStart {
    pub(crate) sequence: u64,
    pub(crate) previous_crc: u32,
    /// Segments before this one are no part of the log any more.
    pub(crate) first_needed: u64,
}

/// What a file is, as far as its header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// It was never started.
    Blank,
    /// The checksum does not match: its start was interrupted, or it is damaged.
    Unreadable,
    /// It was started.
    Started(SegmentStart),
}

impl Segment {
    /// Creates a spare: allocated, written to its last byte and synced before it is mapped, so that
    /// a full disk is an error here and never a fault in the mapping.
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

    /// Opens a file that [`Segment::create`] made earlier, to write over whatever it holds.
    pub(crate) fn open(
        path: &Path,
        options: &LogOptions,
        memory: Option<Memory>,
    ) -> Result<Self, WalError> {
        Self::with_memory(open_file(path, options.segment_bytes)?, path, options, memory)
    }

    /// Closes the file. Returns memory that can serve another segment.
    pub(crate) fn let_go(self, options: &LogOptions) -> Option<Memory> {
        (options.backend == Backend::Direct).then_some(Memory(self.map))
    }

    /// Opens a file to go on after what it holds up to `used`.
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
            // Populated: a page that is touched for the first time costs a fault.
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
        // SAFETY: the mapping is undefined behaviour only if the file is changed behind it. The
        // data directory is locked by this process, the file is never truncated while it is mapped,
        // and every byte of it has been allocated, so that no access faults for want of a block.
        let map = unsafe { MmapOptions::new().map_mut(file) }.map_err(WalError::io("map", path))?;
        // Pages that have left the page cache come back one by one: read ahead they would come in
        // folios as large as what was read, and each small append would sync one of them.
        map.advise(Advice::Random).map_err(WalError::io("advise on", path))?;
        map.advise(Advice::PopulateRead).map_err(WalError::io("read", path))?;
        Ok(map)
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
            first_needed: U64::new(start.first_needed),
        };
        header.crc = U32::new(crc32fast::hash(header.as_bytes()));
        self.map[..size_of::<SegmentHeader>()].copy_from_slice(header.as_bytes());
    }

    /// Makes the header durable before there are records.
    pub(crate) fn sync_header(&self) -> Result<(), WalError> {
        let header = self.map[..SEGMENT_HEADER_BYTES].to_vec();
        self.file.write_all_at(&header, 0).map_err(WalError::io("write", &self.path))?;
        self.file.sync_data().map_err(WalError::io("sync", &self.path))
    }
}

/// The sequence that a file's header claims, read without anything around it. Not to be trusted.
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

/// Opens a file that [`Segment::create`] made earlier, without its memory.
pub(crate) fn open_file(path: &Path, segment_bytes: u64) -> Result<File, WalError> {
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(WalError::io("open", path))?;
    check_length(&file, path, segment_bytes)?;
    Ok(file)
}

/// Zeroes a file from `offset` on, and syncs it. Pages that are zero are not written.
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

/// A segment's bytes, to be read only.
#[derive(Debug)]
pub(crate) struct SegmentBytes {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Mmap,
}

impl SegmentBytes {
    /// Maps a file. One that is to be written to must be read `page_by_page`, for the sake of small
    /// folios; any other is read ahead.
    #[expect(unsafe_code, reason = "a file mapping is shared memory that the compiler can't see")]
    pub(crate) fn open(
        path: &Path,
        segment_bytes: u64,
        page_by_page: bool,
    ) -> Result<Self, WalError> {
        let file = File::open(path).map_err(WalError::io("open", path))?;
        check_length(&file, path, segment_bytes)?;
        // SAFETY: as above. An inspection reads beside a process that may be writing: what it sees
        // of a record that is being written does not verify, and no byte of it is used unchecked.
        let bytes = unsafe { MmapOptions::new().map(&file) }.map_err(WalError::io("map", path))?;
        let advise = |advice| bytes.advise(advice).map_err(WalError::io("read", path));
        if page_by_page {
            advise(Advice::Random)?;
        }
        advise(Advice::PopulateRead)?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Reads the header.
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

/// Whose log a file says that it is part of; `None` if it says nothing.
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

/// The header, or `None` if there is nothing at all.
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

/// The position of a segment's first byte.
pub(crate) fn segment_position(sequence: u64, segment_bytes: u64) -> Position {
    sequence * segment_bytes
}
