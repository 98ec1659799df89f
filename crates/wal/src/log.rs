//! The log itself: append, what to sync, and how much room is left.

use std::{
    collections::VecDeque,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    LengthRule, Position, Record, RecordKind, WalError,
    open::{End, Live, Opened, open_directory, slot_path},
    record::{MAX_PAYLOAD_BYTES, Place, RECORD_HEADER_BYTES, encode, record_bytes},
    retention::{Note, Retention},
    segment::{PAGE_BYTES, SEGMENT_HEADER_BYTES, Segment, SegmentStart, segment_position},
    spare::{Order, SpareSegments},
};

/// Whose log it is, and how large it may grow.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// The cluster; a segment of another one is refused.
    pub cluster_id: u64,
    /// The node; likewise.
    pub node: u16,
    /// The shard; likewise.
    pub shard: u16,
    /// Bytes of a segment: a multiple of 4 KiB with room for at least two of the longest records.
    pub segment_bytes: u64,
    /// Bytes that all segments together may take: three segments at least, and those ahead.
    pub limit_bytes: u64,
    /// Bytes that are kept ready beyond the segment that is written to, rounded up to whole
    /// segments, and at least one: so long before it matters is a full disk noticed.
    pub ahead_bytes: u64,
    /// How appended bytes get to the files.
    pub backend: Backend,
}

/// How appended bytes get from memory to a segment's file. The files are the same in either case,
/// so that a log can be opened with the one that it was not written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The memory is the file's page cache: whoever carries out a [`SyncPlan`] syncs the file's
    /// data, and the kernel knows which pages to write.
    #[default]
    Mapped,
    /// The memory is the log's own: whoever carries out a [`SyncPlan`] writes the pages it names
    /// past the page cache (`O_DIRECT`), and syncs the file's data.
    Direct,
}

impl LogOptions {
    /// The smallest segment that can be configured, in bytes: room for a few of the longest records.
    pub const MIN_SEGMENT_BYTES: u64 = 4 * MAX_PAYLOAD_BYTES as u64;

    /// Fails, with what to change, if the sizes don't fit together.
    pub fn check(&self) -> Result<(), String> {
        if self.segment_bytes < Self::MIN_SEGMENT_BYTES
            || !self.segment_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(format!(
                "a log segment of {} bytes is not possible: use a multiple of 4 KiB, at least {}",
                self.segment_bytes,
                Self::MIN_SEGMENT_BYTES
            ));
        }
        let least = (3 + self.segments_ahead() as u64) * self.segment_bytes;
        if self.limit_bytes < least {
            return Err(format!(
                "a log limit of {} bytes is too low for segments of {} bytes: it must be at least \
                 {least}",
                self.limit_bytes, self.segment_bytes
            ));
        }
        Ok(())
    }

    /// Segments that are kept ready.
    fn segments_ahead(&self) -> usize {
        let segments = self.ahead_bytes.div_ceil(self.segment_bytes).max(1);
        usize::try_from(segments).expect("so many would not fit memory")
    }

    fn max_segments(&self) -> u64 {
        self.limit_bytes / self.segment_bytes
    }

    fn length_rule(&self) -> LengthRule {
        LengthRule { segment_bytes: self.segment_bytes, max_segments: self.max_segments() }
    }
}

/// An empty queue of notes keeps room for so many.
const MAX_IDLE_NOTES: usize = 4096;

/// What must be done so that the log is durable up to a position. There may be more to do after it:
/// a sealed segment is synced by itself, before its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncPlan {
    /// The file to sync.
    pub path: Arc<Path>,
    /// The pages of it that have changed, in bytes from its beginning: whole pages of 4 KiB. With
    /// [`Backend::Direct`] they must be written first, as [`Log::pages`] gives them.
    pub pages: Range<u64>,
    /// Whether the segment is sealed: once this is carried out, its file is not synced again.
    pub seals: bool,
    /// What is durable afterwards.
    pub up_to: Position,
    /// How many of the records appended since the log was opened are durable afterwards.
    pub appends: u64,
}

/// A segment that is complete, but not known to be durable yet.
#[derive(Debug)]
struct Sealed {
    segment: Segment,
    end: Position,
    /// Records appended up to its end.
    appends: u64,
}

/// How far an open is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenProgress {
    /// Bytes of segments that were verified.
    pub verified_bytes: u64,
    /// Bytes of all segments.
    pub total_bytes: u64,
}

/// What the next segment is being made of.
#[derive(Debug)]
enum Preparing {
    New,
    Old(PathBuf),
}

/// A shard's log.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    dir: PathBuf,
    /// The segments of the log in order, the active one included.
    live: VecDeque<Live>,
    sealing: VecDeque<Sealed>,
    active: Segment,
    /// Whether the active segment has its seal, because the log was closed right after sealing.
    sealed: bool,
    sequence: u64,
    /// Offset in the active segment of the next record.
    offset: usize,
    last_crc: u32,
    /// Records appended since the log was opened, seals not counted.
    appends: u64,
    durable: Position,
    /// What the groups need, by the records that are durable; and those that are not yet, with
    /// their ends.
    retention: Retention,
    unsynced: VecDeque<(Position, Note)>,
    /// Segments that are not needed any more, but that no durable header leaves out.
    released: VecDeque<Live>,
    /// The first segment of the log by the latest durable header; and by those that will be durable
    /// with these positions.
    claimed: u64,
    claims: VecDeque<(Position, u64)>,
    /// Files to use again.
    idle: Vec<PathBuf>,
    /// The segments to be started next.
    blanks: VecDeque<Segment>,
    spares: SpareSegments,
    /// What it is being made of, until it is ready; and why the last could not be made.
    preparing: Option<Preparing>,
    failure: Option<WalError>,
    /// Whether the last attempt failed.
    has_failed: bool,
    /// Files that the directory holds or that are ordered; also names the next one.
    slots: u64,
    poisoned: bool,
}

impl Log {
    /// Opens the log in a directory, creating it if need be, and hands every record to `visit` in
    /// order. Blocks: meant for the start of a shard, before it serves. `progress` is called now
    /// and then, by several threads.
    ///
    /// A tail that no sync had covered is cut. Damage of anything that had been durable is an
    /// error, and then nothing in the directory is changed.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        progress: &(dyn Fn(OpenProgress) + Sync),
        visit: impl FnMut(Record<'_>),
    ) -> Result<Self, WalError> {
        let opened = open_directory(dir, &options, progress, visit)?;
        let Opened { end, mut live, released, claimed, mut idle, mut slots, retention } = opened;
        let spares = SpareSegments::start(dir, &options)?;
        let end = match end {
            Some(end) => end,
            None => {
                let order = idle.pop().map_or_else(
                    || {
                        slots += 1;
                        Order::Create(slot_path(dir, slots - 1))
                    },
                    Order::Recycle,
                );
                spares.order(order);
                let mut active = spares.take()?;
                let start = SegmentStart { sequence: 0, previous_crc: 0, first_needed: 0 };
                active.start(&options, start);
                active.sync_header()?;
                live.push_back(Live { sequence: 0, path: active.path.to_path_buf() });
                End {
                    active,
                    sequence: 0,
                    offset: SEGMENT_HEADER_BYTES,
                    last_crc: 0,
                    sealed: false,
                }
            }
        };
        let base = segment_position(end.sequence, options.segment_bytes);
        let mut log = Self {
            options,
            dir: dir.to_owned(),
            live,
            sealing: VecDeque::new(),
            active: end.active,
            sealed: end.sealed,
            sequence: end.sequence,
            offset: end.offset,
            last_crc: end.last_crc,
            appends: 0,
            durable: base + end.offset as u64,
            retention,
            unsynced: VecDeque::new(),
            released,
            claimed,
            claims: VecDeque::new(),
            idle,
            blanks: VecDeque::new(),
            spares,
            preparing: None,
            failure: None,
            has_failed: false,
            slots,
            poisoned: false,
        };
        log.release();
        log.keep_spare();
        while let Some(preparing) = log.preparing.take() {
            // A full disk is known before the first record.
            let prepared = log.spares.take();
            log.take_in(preparing, prepared);
        }
        Ok(log)
    }

    /// Appends a record and returns the position of its end. It is durable once
    /// [`Log::durable`] has reached that.
    ///
    /// Never blocks. Fails, having written nothing, with [`WalError::NotReady`] while the next
    /// segment is being prepared, [`WalError::Full`] if there will be none, or
    /// [`WalError::Poisoned`] after a failed sync.
    pub fn append(&mut self, record: &Record<'_>) -> Result<Position, WalError> {
        assert!(record.payload.len() <= MAX_PAYLOAD_BYTES, "a payload over the limit was appended");
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        self.take_in_spare();
        let bytes = record_bytes(record.payload.len());
        if !self.fits(bytes) {
            self.start_next_segment()?;
        }
        assert!(self.fits(bytes), "a fresh segment holds at least two of the longest records");
        self.write(record);
        self.appends += 1;
        self.unsynced.push_back((self.end(), Note::new(record, self.sequence)));
        Ok(self.end())
    }

    /// The end of the last record appended.
    pub fn end(&self) -> Position {
        self.base() + self.offset as u64
    }

    /// Everything that ends at or below this is on disk.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// What to sync next, or `None` if everything is durable.
    pub fn sync_plan(&self) -> Option<SyncPlan> {
        if self.durable == self.end() || self.poisoned {
            return None;
        }
        let plan = |sequence, segment: &Segment, up_to: Position, appends| {
            let base = segment_position(sequence, self.options.segment_bytes);
            // A segment of which no record is durable has a new header, too.
            let from = self.durable.saturating_sub(base) / PAGE_BYTES * PAGE_BYTES;
            let pages = from..(up_to - base).next_multiple_of(PAGE_BYTES);
            let seals = sequence != self.sequence;
            SyncPlan { path: segment.path.clone(), pages, seals, up_to, appends }
        };
        Some(match self.sealing.front() {
            Some(Sealed { segment, end, appends }) => {
                plan(self.sequence - self.sealing.len() as u64, segment, *end, *appends)
            }
            None => plan(self.sequence, &self.active, self.end(), self.appends),
        })
    }

    /// The pages of the current plan, as they are now: they may hold the beginning of what was
    /// appended since the plan was made.
    pub fn pages(&self, plan: &SyncPlan) -> &[u8] {
        let segment = self.sealing.front().map_or(&self.active, |sealed| &sealed.segment);
        assert_eq!(segment.path, plan.path, "the pages of another plan were asked for");
        let at = |offset| usize::try_from(offset).expect("it is in memory");
        &segment.map[at(plan.pages.start)..at(plan.pages.end)]
    }

    /// Takes note that a plan was carried out.
    pub fn synced(&mut self, plan: &SyncPlan) {
        let up_to = plan.up_to;
        assert!(!self.poisoned, "a sync was reported after one had failed");
        assert!(up_to <= self.end(), "a sync was reported beyond the end of the log");
        assert!(up_to >= self.durable, "the durable position went back");
        self.durable = up_to;
        while let Some(sealed) = self.sealing.pop_front_if(|sealed| sealed.end <= up_to) {
            self.spares.order(Order::LetGo(sealed.segment));
        }
        while let Some((_, note)) = self.unsynced.pop_front_if(|(end, _)| *end <= up_to) {
            self.retention.observe(note);
        }
        if self.unsynced.is_empty() && self.unsynced.capacity() > MAX_IDLE_NOTES {
            self.unsynced = VecDeque::new();
        }
        self.release();
        self.recycle();
    }

    /// Takes note that a sync has failed: what was appended since the last one that did not is
    /// neither durable nor lost, and trying again would not tell. Nothing is appended or synced
    /// from here on; only a new start, which reads the files, goes on.
    pub fn sync_failed(&mut self) {
        self.poisoned = true;
    }

    /// Bytes that can still be appended before the limit, or before the disk is full.
    pub fn left_bytes(&self) -> u64 {
        let usable = self.options.segment_bytes - SEGMENT_HEADER_BYTES as u64;
        let unused = (self.spare_files() + self.released.len() as u64).saturating_sub(1);
        self.options.segment_bytes - self.offset as u64 + unused * usable
    }

    /// Segments that hold something that is needed.
    pub fn live_segments(&self) -> usize {
        self.live.len()
    }

    /// Whether so much is kept that what pins the oldest segment should be written anew, if that
    /// takes `state_bytes` for all groups together.
    pub fn is_long(&self, state_bytes: u64) -> bool {
        self.options.length_rule().is_long(self.live.len(), state_bytes)
    }

    /// The groups for which the oldest segment is kept: once what they have there is written anew,
    /// or forgotten, it can be used again.
    pub fn pinning(&self) -> impl Iterator<Item = u32> {
        self.retention.pinning()
    }

    /// Nothing of a group is needed any more.
    pub fn forget(&mut self, group: u32) {
        self.retention.forget(group);
    }

    fn base(&self) -> Position {
        segment_position(self.sequence, self.options.segment_bytes)
    }

    /// Whether records of so many bytes fit the active segment and leave room for its seal.
    fn fits(&self, bytes: usize) -> bool {
        !self.sealed && self.offset + bytes + RECORD_HEADER_BYTES <= self.active.map.len()
    }

    fn write(&mut self, record: &Record<'_>) {
        let place = Place {
            sequence: self.sequence,
            position: self.end(),
            previous_crc: self.last_crc,
            durable: self.durable,
        };
        self.last_crc = encode(record, place, &mut self.active.map[self.offset..]);
        self.offset += record_bytes(record.payload.len());
    }

    fn start_next_segment(&mut self) -> Result<(), WalError> {
        // The last spare is for a header that lets others go: without one, nothing ever would.
        if !self.has_failed && self.released.is_empty() && self.spare_files() <= 1 {
            return Err(WalError::Full { limit_bytes: self.options.limit_bytes });
        }
        let mut next = self.take_spare()?;
        if !self.sealed {
            self.write(&Record {
                kind: RecordKind::Seal,
                group: 0,
                term: 0,
                index: 0,
                part: 0,
                payload: &[],
            });
        }
        let end = self.end();
        self.sequence += 1;
        let (sequence, previous_crc) = (self.sequence, self.last_crc);
        let first_needed = self.live.front().map_or(sequence, |first| first.sequence);
        next.start(&self.options, SegmentStart { sequence, previous_crc, first_needed });
        self.live.push_back(Live { sequence, path: next.path.to_path_buf() });
        let segment = std::mem::replace(&mut self.active, next);
        self.sealing.push_back(Sealed { segment, end, appends: self.appends });
        self.sealed = false;
        self.offset = SEGMENT_HEADER_BYTES;
        self.claims.push_back((self.end(), first_needed));
        self.keep_spare();
        Ok(())
    }

    /// Takes the segments out of the log that nobody needs. Only durable records count, so the one
    /// with the durable position always stays.
    fn release(&mut self) {
        let durable_in = (self.durable / self.options.segment_bytes).min(self.sequence);
        let first_needed = self.retention.first_needed().map_or(durable_in, |n| n.min(durable_in));
        while let Some(live) = self.live.pop_front_if(|live| live.sequence < first_needed) {
            self.released.push_back(live);
        }
    }

    /// Makes released files available, once a header that leaves them out is durable.
    fn recycle(&mut self) {
        while let Some((_, first)) = self.claims.pop_front_if(|(at, _)| *at <= self.durable) {
            self.claimed = first;
        }
        while let Some(live) = self.released.pop_front_if(|live| live.sequence < self.claimed) {
            self.idle.push(live.path);
        }
        self.keep_spare();
    }

    /// Looks after the segment to be started next: to be called every second or so. Fails if it could
    /// not be prepared, because the disk is full, say; then it is tried again.
    pub fn prepare(&mut self) -> Result<(), WalError> {
        self.take_in_spare();
        let failure = self.failure.take();
        self.keep_spare();
        failure.map_or(Ok(()), Err)
    }

    /// Files that can be started now or in a while.
    fn spare_files(&self) -> u64 {
        let at_hand = (self.blanks.len() + self.idle.len()) as u64;
        if self.has_failed {
            return at_hand;
        }
        let can_be_made = self.options.max_segments().saturating_sub(self.slots);
        at_hand + u64::from(self.preparing.is_some()) + can_be_made
    }

    fn take_spare(&mut self) -> Result<Segment, WalError> {
        self.take_in_spare();
        if let Some(segment) = self.blanks.pop_front() {
            return Ok(segment);
        }
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.keep_spare();
        match self.preparing {
            Some(_) => Err(WalError::NotReady),
            None => Err(WalError::Full { limit_bytes: self.options.limit_bytes }),
        }
    }

    fn take_in_spare(&mut self) {
        let Some(preparing) = self.preparing.take() else { return };
        match self.spares.try_take() {
            Err(WalError::NotReady) => self.preparing = Some(preparing),
            prepared => self.take_in(preparing, prepared),
        }
    }

    fn take_in(&mut self, preparing: Preparing, prepared: Result<Segment, WalError>) {
        match prepared {
            Ok(segment) => {
                self.blanks.push_back(segment);
                self.has_failed = false;
                self.keep_spare();
            }
            Err(error) => {
                match preparing {
                    Preparing::New => self.slots -= 1,
                    Preparing::Old(path) => self.idle.push(path),
                }
                self.failure = Some(error);
                self.has_failed = true;
            }
        }
    }

    /// Has a segment prepared, if too few are ready and the limit allows one.
    fn keep_spare(&mut self) {
        let enough = self.blanks.len() >= self.options.segments_ahead();
        if self.preparing.is_some() || enough || self.failure.is_some() {
            return;
        }
        if let Some(path) = self.idle.pop() {
            self.spares.order(Order::Recycle(path.clone()));
            self.preparing = Some(Preparing::Old(path));
        } else if self.slots < self.options.max_segments() {
            self.spares.order(Order::Create(slot_path(&self.dir, self.slots)));
            self.slots += 1;
            self.preparing = Some(Preparing::New);
        }
    }
}
