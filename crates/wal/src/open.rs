//! Opens a directory of segments: finds the files of the log, its end, and the files that may be
//! reused.
//!
//! Files are verified in parallel, each on its own. The log is then assembled from their headers
//! and replayed in order. No file is changed before every reason to refuse the log was checked.
//!
//! The header of each segment holds the first segment that was needed when it was started. A file
//! is reused only after a header that excludes it is durable. So the newest such header is always
//! found, and a segment missing after the beginning that it names is damage.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
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

/// Limit on the threads that verify files.
const MAX_THREADS: usize = 8;

/// The segments of a directory, classified.
pub(crate) struct Opened {
    /// The end of the log, or `None` if it is new.
    pub(crate) end: Option<End>,
    /// The segments of the log in order, the last one included.
    pub(crate) live: VecDeque<Live>,
    /// Segments that are no longer needed, but that no durable header excludes.
    pub(crate) released: VecDeque<Live>,
    /// The first segment of the log according to its durable headers.
    pub(crate) claimed: u64,
    /// Files to reuse.
    pub(crate) idle: Vec<PathBuf>,
    /// Number of the next file.
    pub(crate) slots: u64,
    /// The records that the groups need.
    pub(crate) retention: Retention,
}

/// A segment of the log.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) sequence: u64,
    pub(crate) path: PathBuf,
}

/// The last segment of the log, and its end.
pub(crate) struct End {
    pub(crate) active: Segment,
    pub(crate) sequence: u64,
    pub(crate) offset: usize,
    pub(crate) last_crc: u32,
    pub(crate) sealed: bool,
}

/// Returns the path of a slot's file.
pub(crate) fn slot_path(dir: &Path, slot: u64) -> PathBuf {
    dir.join(format!("{slot:08}.{SEGMENT_EXTENSION}"))
}

/// Creates a directory. Syncs its parent and that one's parent, even if the directory existed: the
/// start that created it may have crashed before a sync.
fn create_durably(dir: &Path) -> Result<(), WalError> {
    fs::create_dir_all(dir).map_err(WalError::io("create", dir))?;
    let parents = dir.ancestors().skip(1).take(2).filter(|parent| !parent.as_os_str().is_empty());
    for parent in parents {
        let synced = File::open(parent).and_then(|directory| directory.sync_all());
        synced.map_err(WalError::io("sync", parent))?;
    }
    Ok(())
}

/// Reads a directory, replays its log, and prepares its files for appends.
pub(crate) fn open_directory(
    dir: &Path,
    options: &LogOptions,
    progress: &(dyn Fn(OpenProgress) + Sync),
    mut visit: impl FnMut(Record<'_>),
) -> Result<Opened, WalError> {
    create_durably(dir)?;
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
    // The directory is changed only from here on.
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

/// The files that form the log.
pub(crate) struct Chain {
    /// Indexes of the files, in the log's order.
    pub(crate) segments: Vec<usize>,
    /// The first needed segment according to all headers, of the log or not.
    pub(crate) first_needed: u64,
    /// The first needed segment according to the headers of the log, which the next start will
    /// find.
    claimed: u64,
    /// Sequence of the last segment.
    last: u64,
    pub(crate) end: Position,
    sealed: bool,
    /// The highest durable position in any of its records.
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
                // The first header is synced before any record is written, so this is damage.
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

    /// Fails if a record after the end shows that the log was durable beyond it.
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
                // It may be the next segment, with a damaged header.
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

    /// Adds a file that is not part of the log to the released or the idle files.
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
            // It was started after the recovered end, and its sequence will be used again. None of
            // its records may remain.
            Header::Started(_) | Header::Unreadable => {
                zero_from(&open_file(&path, options.segment_bytes)?, &path, 0)?;
            }
            Header::Blank => {}
        }
        opened.idle.push(path);
        Ok(())
    }
}

/// The files in a log's directory.
pub(crate) struct Listed {
    /// Segments with their slots, sorted by slot.
    pub(crate) slots: Vec<(u64, PathBuf)>,
    /// Files whose creation was interrupted. They were never part of the log.
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

/// A file and the end of its valid part, checked without other files.
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

    /// Makes a segment of the log durable. If it is the last one, erases what was cut and returns
    /// it.
    fn settle(self, chain: &Chain, options: &LogOptions) -> Result<Option<End>, WalError> {
        let start = self.start().expect("the log is made of started segments");
        let Self { segment, scan, .. } = self;
        let path = segment.path.clone();
        let file = open_file(&path, options.segment_bytes)?;
        let base = segment_position(start.sequence, options.segment_bytes);
        if chain.durable < base + scan.end as u64 {
            // No record shows that these bytes were synced. After a failed sync they may be only in
            // the page cache, in pages that are marked clean. So write them again.
            let from = usize::try_from(chain.durable.saturating_sub(base)).expect("it is mapped");
            // Copied, because a write from the mapping would lock the same page for reading and
            // writing.
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
    // Only the last segment will be written to again.
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
