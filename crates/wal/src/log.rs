//! The log: appends records, plans syncs, and reuses segments.

use std::{
    collections::VecDeque,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    LogOptions, OpenProgress, Position, Record, RecordKind, WalError,
    open::{End, Live, Opened, open_directory, slot_path},
    options::PAGE_BYTES,
    record::{MAX_PAYLOAD_BYTES, Place, RECORD_HEADER_BYTES, encode, record_bytes},
    retention::{Note, Retention},
    segment::{SEGMENT_HEADER_BYTES, Segment, SegmentStart, segment_position},
    spare::{Order, SpareSegments},
};

/// Capacity that an empty queue of notes may keep.
const MAX_IDLE_NOTES: usize = 4096;

/// The next sync, which makes the log durable up to a position. Another plan may follow: a sealed
/// segment is synced by itself, before its successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncPlan {
    /// The file to sync.
    pub path: Arc<Path>,
    /// The changed range of the file in bytes, in whole pages of 4 KiB. With
    /// [`Backend::Direct`](crate::Backend::Direct), these pages must be written before the sync;
    /// [`Log::pages`] returns them.
    pub pages: Range<u64>,
    /// True if the segment is sealed: this is the segment's last sync.
    pub seals: bool,
    /// The durable position afterwards.
    pub up_to: Position,
    /// Number of records appended since the log was opened that are durable afterwards.
    pub appends: u64,
}

/// The part of a log that a group needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    /// The group.
    pub group: u32,
    /// The log is kept from here on for the group.
    pub from: Position,
    /// Where the snapshot that is being written begins, if there is one. Once it is complete, the
    /// log is kept from here on, or from the first entry that it does not cover.
    pub unfinished: Option<Position>,
    /// Where entries begin that are not applied. No checkpoint releases them.
    pub unapplied: Option<Position>,
}

/// A complete segment that is not known to be durable yet.
#[derive(Debug)]
struct Sealed {
    segment: Segment,
    end: Position,
    /// Records appended up to its end, since the log was opened.
    appends: u64,
}

/// The source of the segment that is being prepared: a new file or an old one.
#[derive(Debug)]
enum Preparing {
    New,
    Old(PathBuf),
    /// A new file that is not needed yet, so that the disk can't be full when it is.
    Reserve,
}

/// The write-ahead log of a shard.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    dir: PathBuf,
    /// The segments of the log in order, the active one included.
    live: VecDeque<Live>,
    sealing: VecDeque<Sealed>,
    active: Segment,
    /// True if the active segment has a seal, because the log was closed right after sealing.
    sealed: bool,
    sequence: u64,
    /// Offset of the next record in the active segment.
    offset: usize,
    last_crc: u32,
    /// Records appended since the log was opened, seals not counted.
    appends: u64,
    durable: Position,
    /// The segments that the groups need, according to durable records.
    retention: Retention,
    /// Records that are not durable yet, each with its end.
    unsynced: VecDeque<(Position, Note)>,
    /// Segments that are no longer needed, but that no durable header excludes.
    released: VecDeque<Live>,
    /// The first segment of the log according to the latest durable header.
    claimed: u64,
    /// The same for headers that are not durable yet, each with the position that makes it durable.
    claims: VecDeque<(Position, u64)>,
    /// Files to reuse.
    idle: Vec<PathBuf>,
    /// Prepared segments, to be started next.
    blanks: VecDeque<Segment>,
    spares: SpareSegments,
    /// The source of the segment that is being prepared, if any.
    preparing: Option<Preparing>,
    /// Why the last preparation failed, until this is returned to a caller.
    failure: Option<WalError>,
    /// The same for a file that is only to be kept.
    reserve_failure: Option<WalError>,
    /// True if the last preparation failed.
    has_failed: bool,
    /// Number of files to keep beyond those of the log, for [`Log::reserve`].
    reserved_files: u64,
    /// Number of files that exist or are ordered; also the number of the next file.
    slots: u64,
    poisoned: bool,
}

impl Log {
    /// Opens the log in a directory, creates it if it does not exist, and passes each record to
    /// `visit` in order. Cuts a tail that no record shows to have been durable. Blocks: call this
    /// at the start of a shard, before it serves. `progress` is called from several threads.
    ///
    /// # Errors
    /// - [`WalError::Corrupt`] if durable records are damaged, [`WalError::Foreign`] if a file does
    ///   not belong to this log. Not retryable; no file was changed.
    /// - [`WalError::Io`] if a file operation failed.
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
            reserve_failure: None,
            has_failed: false,
            reserved_files: 0,
            slots,
            poisoned: false,
        };
        log.release();
        log.keep_spare();
        while let Some(preparing) = log.preparing.take() {
            // Waits, so that a full disk is noticed before the first record.
            let prepared = log.spares.take();
            log.take_in(preparing, prepared);
        }
        Ok(log)
    }

    /// Appends a record and returns the position of its end. The record is durable once
    /// [`Log::durable`] reaches that position. Never blocks.
    ///
    /// # Errors
    /// Nothing was written if this fails:
    /// - [`WalError::NotReady`] while the next segment is being prepared. Retryable.
    /// - [`WalError::Full`] if the limit allows no other segment. Retryable once segments are
    ///   released.
    /// - [`WalError::Io`] if the next segment could not be prepared. Retryable: it is tried again.
    /// - [`WalError::Poisoned`] after a failed sync. Not retryable.
    ///
    /// # Panics
    /// Panics if the payload is longer than [`MAX_PAYLOAD_BYTES`].
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

    /// Returns the end of the last record appended.
    pub fn end(&self) -> Position {
        self.base() + self.offset as u64
    }

    /// Returns the durable position: every record that ends at or below it is on disk.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// Returns the next sync, or `None` if everything is durable or a sync has failed.
    pub fn sync_plan(&self) -> Option<SyncPlan> {
        if self.durable == self.end() || self.poisoned {
            return None;
        }
        let plan = |sequence, segment: &Segment, up_to: Position, appends| {
            let base = segment_position(sequence, self.options.segment_bytes);
            // Starts at 0 in a segment without durable records: its header is not durable either.
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

    /// Returns the current content of the plan's pages. They may include the beginning of records
    /// appended since the plan was made.
    ///
    /// # Panics
    /// Panics if the plan is for another segment than the one to be synced next.
    pub fn pages(&self, plan: &SyncPlan) -> &[u8] {
        let segment = self.sealing.front().map_or(&self.active, |sealed| &sealed.segment);
        assert_eq!(segment.path, plan.path, "the pages of another plan were asked for");
        let at = |offset| usize::try_from(offset).expect("it is in memory");
        &segment.map[at(plan.pages.start)..at(plan.pages.end)]
    }

    /// Reports to the log that a plan was carried out.
    ///
    /// # Panics
    /// Panics if a sync has failed before, or if `up_to` of the plan is below the durable position
    /// or beyond the end of the log.
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

    /// Reports to the log that a sync has failed. Records appended since the last successful sync
    /// may or may not be on disk, and another sync would not show which. So nothing is appended or
    /// synced until the log is opened again, which reads the files.
    pub fn sync_failed(&mut self) {
        self.poisoned = true;
    }

    /// Returns the bytes that can still be appended before the limit is reached or the disk is
    /// full.
    pub fn left_bytes(&self) -> u64 {
        let usable = self.options.segment_bytes - SEGMENT_HEADER_BYTES as u64;
        let unused = (self.spare_files() + self.released.len() as u64).saturating_sub(1);
        self.options.segment_bytes - self.offset as u64 + unused * usable
    }

    /// Returns the number of segments from the first needed one to the active one.
    pub fn live_segments(&self) -> usize {
        self.live.len()
    }

    /// Returns the position of the first record that may still be needed.
    pub fn first(&self) -> Position {
        let first = self.live.front().map_or(self.sequence, |first| first.sequence);
        segment_position(first, self.options.segment_bytes)
    }

    /// Returns the limit on the bytes of all segments.
    pub fn limit_bytes(&self) -> u64 {
        self.options.limit_bytes
    }

    /// Returns true if the groups that pin the oldest segment should rewrite their state.
    /// `state_bytes` is what rewriting the state of all groups takes.
    pub fn is_long(&self, state_bytes: u64) -> bool {
        let live = self.live.len();
        let capacity = live as u64 + self.released.len() as u64 + self.spare_files();
        self.options.length_rule(capacity).is_long(live, state_bytes)
    }

    /// Keeps files for at least `bytes` beyond the end of the log, so that this much can be
    /// appended even if the disk fills up. [`Log::prepare`] creates them, one at a time.
    pub fn reserve(&mut self, bytes: u64) {
        let usable = self.options.segment_bytes - SEGMENT_HEADER_BYTES as u64;
        self.reserved_files = bytes.div_ceil(usable);
    }

    /// Returns the groups that pin the oldest segment. It can be reused once they have rewritten or
    /// forgotten what they need in it.
    pub fn pinning(&self) -> impl Iterator<Item = u32> {
        self.retention.pinning()
    }

    /// Returns what each group needs of the log. `applied` returns the index up to which a group
    /// has applied its entries.
    pub fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained> {
        let at = |sequence| segment_position(sequence, self.options.segment_bytes);
        self.retention.groups(applied).map(move |(group, needs)| Retained {
            group,
            from: at(needs.first),
            unfinished: needs.unfinished.map(at),
            unapplied: needs.unapplied.map(at),
        })
    }

    /// Marks all records of a group as no longer needed.
    pub fn forget(&mut self, group: u32) {
        self.retention.forget(group);
    }

    fn base(&self) -> Position {
        segment_position(self.sequence, self.options.segment_bytes)
    }

    /// Returns true if `bytes` fit the active segment and leave room for its seal.
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
        // Keeps the last spare for a header that excludes released segments. Without one, no file
        // could be reused.
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

    /// Moves segments that no group needs from `live` to `released`. Only durable records count, so
    /// the segment with the durable position stays.
    fn release(&mut self) {
        let durable_in = (self.durable / self.options.segment_bytes).min(self.sequence);
        let first_needed = self.retention.first_needed().map_or(durable_in, |n| n.min(durable_in));
        while let Some(live) = self.live.pop_front_if(|live| live.sequence < first_needed) {
            self.released.push_back(live);
        }
    }

    /// Makes released files reusable once a header that excludes them is durable.
    fn recycle(&mut self) {
        while let Some((_, first)) = self.claims.pop_front_if(|(at, _)| *at <= self.durable) {
            self.claimed = first;
        }
        while let Some(live) = self.released.pop_front_if(|live| live.sequence < self.claimed) {
            self.idle.push(live.path);
        }
        self.keep_spare();
    }

    /// Takes in the segment that was prepared and orders the next one. Call this about once a
    /// second.
    ///
    /// # Errors
    /// The reason why a segment could not be prepared, such as [`WalError::Io`] on a full disk. It
    /// is tried again.
    pub fn prepare(&mut self) -> Result<(), WalError> {
        self.take_in_spare();
        let failure = self.failure.take().or(self.reserve_failure.take());
        self.keep_spare();
        self.keep_reserve();
        failure.map_or(Ok(()), Err)
    }

    /// Returns the number of files that can be started now or once they are prepared.
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
        self.keep_spare();
        if self.preparing.is_some() {
            return Err(WalError::NotReady);
        }
        let full = WalError::Full { limit_bytes: self.options.limit_bytes };
        Err(self.failure.take().unwrap_or(full))
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
            Ok(segment) if self.blanks.len() >= self.options.segments_ahead() => {
                self.idle.push(segment.path.to_path_buf());
                self.spares.order(Order::LetGo(segment));
                self.has_failed = false;
            }
            Ok(segment) => {
                self.blanks.push_back(segment);
                self.has_failed = false;
                self.keep_spare();
            }
            Err(error) => {
                self.has_failed = true;
                match preparing {
                    Preparing::Reserve => {
                        // Appends do not need it: only `prepare` reports it.
                        self.slots -= 1;
                        self.reserve_failure = Some(error);
                        return;
                    }
                    Preparing::New => self.slots -= 1,
                    Preparing::Old(path) => self.idle.push(path),
                }
                self.failure = Some(error);
            }
        }
    }

    /// Orders a segment if too few are ready and the limit allows one.
    fn keep_spare(&mut self) {
        let enough = self.blanks.len() >= self.options.segments_ahead();
        if self.preparing.is_some() || enough {
            return;
        }
        if let Some(path) = self.idle.pop() {
            self.spares.order(Order::Recycle(path.clone()));
            self.preparing = Some(Preparing::Old(path));
        } else if self.failure.is_none() && self.slots < self.options.max_segments() {
            self.spares.order(Order::Create(slot_path(&self.dir, self.slots)));
            self.slots += 1;
            self.preparing = Some(Preparing::New);
        }
    }

    /// Orders a new file if fewer than those reserved are free, and the limit allows one.
    fn keep_reserve(&mut self) {
        let free = (self.blanks.len() + self.idle.len() + self.released.len()) as u64;
        let idle = self.preparing.is_none() && self.failure.is_none();
        if idle && free < self.reserved_files && self.slots < self.options.max_segments() {
            self.spares.order(Order::Create(slot_path(&self.dir, self.slots)));
            self.slots += 1;
            self.preparing = Some(Preparing::Reserve);
        }
    }
}
