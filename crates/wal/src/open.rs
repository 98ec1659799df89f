//! Opening a directory of segments: which are the log, where it ends, and what may be reused.
//!
//! Files are verified side by side, each on its own; then the log is put together from what their
//! headers say, and replayed in order. Nothing is changed before every reason to refuse has been
//! looked at.
//!
//! Where the log begins is written in the header of each segment, when it is started: the first
//! segment that was needed then. A file is used again only once a header that leaves it out is
//! durable, so that the latest word on it is always to be found, and a segment that is missing
//! from there on is damage.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

use crate::{
    LogOptions, OpenProgress, Position, Record, WalError,
    recovery::{Records, Scan, was_durable_beyond},
    retention::{Note, Retention},
    segment::{
        Header, SEGMENT_HEADER_BYTES, Segment, SegmentBytes, SegmentStart, open_file,
        peek_sequence, segment_position, zero_from,
    },
};

const SEGMENT_EXTENSION: &str = "seg";

/// Threads that verify files.
const MAX_THREADS: usize = 8;

/// A directory's segments, told apart.
pub(crate) struct Opened {
    /// Where the log ends, unless it is new.
    pub(crate) end: Option<End>,
    /// The segments of the log in order, the last one included.
    pub(crate) live: VecDeque<Live>,
    /// Segments that are not needed any more, but that no durable header leaves out.
    pub(crate) released: VecDeque<Live>,
    /// The first segment of the log, as far as durable headers know.
    pub(crate) claimed: u64,
    /// Files to use again.
    pub(crate) idle: Vec<PathBuf>,
    /// Number of the next file.
    pub(crate) slots: u64,
    /// What the groups need.
    pub(crate) retention: Retention,
}

/// A segment of the log.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) sequence: u64,
    pub(crate) path: PathBuf,
}

/// The segment that the log ends in.
pub(crate) struct End {
    pub(crate) active: Segment,
    pub(crate) sequence: u64,
    pub(crate) offset: usize,
    pub(crate) last_crc: u32,
    pub(crate) sealed: bool,
}

/// The file of a slot.
pub(crate) fn slot_path(dir: &Path, slot: u64) -> PathBuf {
    dir.join(format!("{slot:08}.{SEGMENT_EXTENSION}"))
}

/// Reads a directory and replays its log.
pub(crate) fn open_directory(
    dir: &Path,
    options: &LogOptions,
    progress: &(dyn Fn(OpenProgress) + Sync),
    mut visit: impl FnMut(Record<'_>),
) -> Result<Opened, WalError> {
    fs::create_dir_all(dir).map_err(WalError::io("create", dir))?;
    let Listed { slots: listed, unfinished } = list_slots(dir)?;
    let slots = listed.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0);
    let paths: Vec<_> = listed.into_iter().map(|(_, path)| path).collect();
    let files = verify_all(&paths, options, progress)?;
    let chain = Chain::find(&files, options)?;
    chain.refuse_if_damaged(&files, options)?;

    let mut opened = Opened {
        end: None,
        live: VecDeque::new(),
        released: VecDeque::new(),
        claimed: chain.claimed,
        idle: Vec::new(),
        slots,
        retention: Retention::default(),
    };
    for file in chain.segments.iter().map(|at| &files[*at]) {
        let start = file.start().expect("the log is made of started segments");
        for found in file.records(start, options) {
            opened.retention.observe(Note::new(&found.record, start.sequence));
            visit(found.record);
        }
    }
    // From here on the directory is changed.
    for path in unfinished {
        fs::remove_file(&path).map_err(WalError::io("remove", &path))?;
    }
    let mut in_order: Vec<_> = chain.segments.iter().map(|_| None).collect();
    for (at, file) in files.into_iter().enumerate() {
        match chain.segments.iter().position(|segment| *segment == at) {
            Some(place) => in_order[place] = Some(file),
            None => chain.set_aside(file, options, &mut opened)?,
        }
    }
    opened.released.make_contiguous().sort_by_key(|live| live.sequence);
    for file in in_order.into_iter().flatten() {
        let sequence = file.start().expect("the log is made of started segments").sequence;
        opened.live.push_back(Live { sequence, path: file.segment.path.clone() });
        opened.end = file.settle(&chain, options)?;
    }
    Ok(opened)
}

/// The files that are the log.
pub(crate) struct Chain {
    /// In order.
    pub(crate) segments: Vec<usize>,
    /// The first segment that is needed, as far as any header knows.
    pub(crate) first_needed: u64,
    /// Likewise, as far as the headers of the log know, which will be there at the next start.
    claimed: u64,
    /// The last segment, and where it ends.
    last: u64,
    pub(crate) end: Position,
    sealed: bool,
    /// The furthest position that a record says was durable.
    durable: Position,
}

impl Chain {
    pub(crate) fn find(files: &[Verified], options: &LogOptions) -> Result<Self, WalError> {
        let mut by_sequence = BTreeMap::new();
        let mut first_needed = None;
        for (at, file) in files.iter().enumerate() {
            let Some(start) = file.start() else { continue };
            first_needed = first_needed.max(Some((start.first_needed, at)));
            if by_sequence.insert(start.sequence, at).is_some() {
                return Err(file.corrupt(0, "another file claims the same place in the log"));
            }
        }
        let unreadable = files.iter().find(|file| file.header == Header::Unreadable);
        let Some((first_needed, claimant)) = first_needed else {
            return match unreadable {
                // A log's first segment is durable before anything is written to it.
                Some(file) => Err(file.corrupt(0, "the segment header does not verify")),
                None => Ok(Self::empty()),
            };
        };
        let mut chain = Self { first_needed, ..Self::empty() };
        let mut last_crc = None;
        for sequence in first_needed.. {
            let Some(at) = by_sequence.get(&sequence) else { break };
            let file = &files[*at];
            let start = file.start().expect("it has a sequence");
            if last_crc.is_some_and(|crc| crc != start.previous_crc) {
                break;
            }
            chain.segments.push(*at);
            chain.claimed = chain.claimed.max(start.first_needed);
            chain.last = sequence;
            chain.end = segment_position(sequence, options.segment_bytes) + file.scan.end as u64;
            chain.sealed = file.scan.sealed;
            chain.durable = chain.durable.max(file.scan.durable);
            last_crc = Some(file.scan.last_crc);
            if !chain.sealed {
                break;
            }
        }
        if chain.segments.is_empty() {
            let what = "the segment that it names as the log's first is missing";
            return Err(files[claimant].corrupt(0, what));
        }
        Ok(chain)
    }

    fn empty() -> Self {
        Self {
            segments: Vec::new(),
            first_needed: 0,
            claimed: 0,
            last: 0,
            end: 0,
            sealed: false,
            durable: 0,
        }
    }

    /// Fails if anything after the end shows that the log had been durable beyond it.
    pub(crate) fn refuse_if_damaged(
        &self,
        files: &[Verified],
        options: &LogOptions,
    ) -> Result<(), WalError> {
        let Some(last) = self.segments.last() else { return Ok(()) };
        for file in files {
            let (sequence, from) = match file.header {
                Header::Started(start) if start.sequence == self.last && !self.sealed => {
                    (self.last, file.scan.end)
                }
                Header::Started(start) if start.sequence > self.last => {
                    (start.sequence, SEGMENT_HEADER_BYTES)
                }
                // The next segment, perhaps.
                Header::Unreadable if self.sealed => (self.last + 1, SEGMENT_HEADER_BYTES),
                _ => continue,
            };
            let base = segment_position(sequence, options.segment_bytes);
            if was_durable_beyond(&file.segment.bytes, sequence, base, from, self.end) {
                let end = &files[*last];
                return Err(end.corrupt(end.scan.end as u64, "a record does not verify"));
            }
        }
        Ok(())
    }

    /// What becomes of a file that is no part of the log.
    fn set_aside(
        &self,
        file: Verified,
        options: &LogOptions,
        opened: &mut Opened,
    ) -> Result<(), WalError> {
        let Verified { segment: SegmentBytes { path, .. }, header, .. } = file;
        match header {
            Header::Started(SegmentStart { sequence, .. }) if sequence < self.claimed => {}
            Header::Started(SegmentStart { sequence, .. }) if sequence < self.first_needed => {
                opened.released.push_back(Live { sequence, path });
                return Ok(());
            }
            // It was started after what is now the end, and its place will be taken again: nothing
            // of it may be left.
            Header::Started(_) | Header::Unreadable => {
                zero_from(&open_file(&path, options.segment_bytes)?, &path, 0)?;
            }
            Header::Blank => {}
        }
        opened.idle.push(path);
        Ok(())
    }
}

/// The files of a log.
pub(crate) struct Listed {
    /// By slot.
    pub(crate) slots: Vec<(u64, PathBuf)>,
    /// Their creation was interrupted: they never were part of the log.
    unfinished: Vec<PathBuf>,
}

pub(crate) fn list_slots(dir: &Path) -> Result<Listed, WalError> {
    let (mut slots, mut unfinished) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(WalError::io("list", dir))? {
        let path = entry.map_err(WalError::io("list", dir))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let slot = path.file_stem().and_then(|stem| stem.to_str()).and_then(|s| s.parse().ok());
        match (extension, slot) {
            (Some(SEGMENT_EXTENSION), Some(slot)) => slots.push((slot, path)),
            (Some("tmp"), _) => unfinished.push(path),
            _ => {
                return Err(WalError::Foreign {
                    path,
                    what: "it is not a log segment of Palisade",
                });
            }
        }
    }
    slots.sort();
    Ok(Listed { slots, unfinished })
}

/// A file, and how far it is valid on its own.
pub(crate) struct Verified {
    pub(crate) segment: SegmentBytes,
    pub(crate) header: Header,
    pub(crate) scan: Scan,
}

impl Verified {
    fn new(path: &Path, options: &LogOptions, is_last: bool) -> Result<Self, WalError> {
        let segment = SegmentBytes::open(path, options.segment_bytes, is_last)?;
        let header = segment.header(options)?;
        let scan = Scan { end: SEGMENT_HEADER_BYTES, last_crc: 0, sealed: false, durable: 0 };
        let mut file = Self { segment, header, scan };
        if let Some(start) = file.start() {
            file.scan = file.records(start, options).finish();
        }
        Ok(file)
    }

    pub(crate) fn start(&self) -> Option<SegmentStart> {
        match self.header {
            Header::Started(start) => Some(start),
            Header::Blank | Header::Unreadable => None,
        }
    }

    pub(crate) fn records(&self, start: SegmentStart, options: &LogOptions) -> Records<'_> {
        let base = segment_position(start.sequence, options.segment_bytes);
        Records::new(&self.segment.bytes, start.sequence, base, start.previous_crc)
    }

    /// Makes a segment of the log durable, and the last one, which is returned, free of what was
    /// cut.
    fn settle(self, chain: &Chain, options: &LogOptions) -> Result<Option<End>, WalError> {
        let start = self.start().expect("the log is made of started segments");
        let Self { segment, scan, .. } = self;
        let path = segment.path.clone();
        let file = open_file(&path, options.segment_bytes)?;
        let base = segment_position(start.sequence, options.segment_bytes);
        if chain.durable < base + scan.end as u64 {
            // No record tells that a sync of these has succeeded. If one has failed, they may be
            // in the page cache only, and look clean.
            let from = usize::try_from(chain.durable.saturating_sub(base)).expect("it is mapped");
            // Not from the mapping: the kernel would lock a page to write it, and to read it.
            let bytes = segment.bytes[from..scan.end].to_vec();
            let again = file.write_all_at(&bytes, from as u64);
            again.map_err(WalError::io("write", &path))?;
        }
        drop(segment);
        if start.sequence == chain.last && !scan.sealed {
            zero_from(&file, &path, scan.end as u64)?;
        } else {
            file.sync_data().map_err(WalError::io("sync", &path))?;
        }
        if start.sequence != chain.last {
            return Ok(None);
        }
        Ok(Some(End {
            active: Segment::reopen(&path, scan.end, options)?,
            sequence: start.sequence,
            offset: scan.end,
            last_crc: scan.last_crc,
            sealed: scan.sealed,
        }))
    }

    fn corrupt(&self, offset: u64, what: &'static str) -> WalError {
        WalError::Corrupt { path: self.segment.path.clone(), offset, what }
    }
}

pub(crate) fn verify_all(
    paths: &[PathBuf],
    options: &LogOptions,
    progress: &(dyn Fn(OpenProgress) + Sync),
) -> Result<Vec<Verified>, WalError> {
    let (next, verified) = (AtomicUsize::new(0), AtomicU64::new(0));
    let total_bytes = paths.len() as u64 * options.segment_bytes;
    let sequences = paths.iter().map(|path| peek_sequence(path));
    let sequences = sequences.collect::<Result<Vec<_>, _>>()?;
    // Only that one will be written to again.
    let last = (0..paths.len()).max_by_key(|at| sequences[*at]);
    let work = || {
        let mut done = Vec::new();
        while let Some((at, path)) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            paths.get(at).map(|path| (at, path))
        } {
            done.push((at, Verified::new(path, options, Some(at) == last)?));
            let before = verified.fetch_add(options.segment_bytes, Ordering::Relaxed);
            let verified_bytes = before + options.segment_bytes;
            progress(OpenProgress { verified_bytes, total_bytes });
        }
        Ok(done)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut files = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(paths.len())).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<Vec<_>, WalError>>| {
            worker.join().expect("a worker ends with a result")
        };
        workers.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?
    .into_iter()
    .flatten()
    .collect::<Vec<_>>();
    files.sort_by_key(|(at, _)| *at);
    Ok(files.into_iter().map(|(_, file)| file).collect())
}
