//! The log itself: append, what to sync, and how much room is left.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use crate::{
    Position, Record, RecordKind, WalError,
    open::{End, Opened, open_directory, slot_path},
    record::{MAX_PAYLOAD_BYTES, Place, RECORD_HEADER_BYTES, encode, record_bytes},
    segment::{PREWRITE_STEP_BYTES, SEGMENT_HEADER_BYTES, Segment, SegmentStart, segment_position},
    spare::SpareSegments,
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
    /// Bytes of a segment: a multiple of 16 KiB with room for at least two of the longest records.
    pub segment_bytes: u64,
    /// Bytes that all segments together may take.
    pub limit_bytes: u64,
}

impl LogOptions {
    /// The smallest segment that can be configured, in bytes: room for a few of the longest records.
    pub const MIN_SEGMENT_BYTES: u64 = 4 * MAX_PAYLOAD_BYTES as u64;

    /// Fails, with what to change, if the sizes don't fit together.
    pub fn check(&self) -> Result<(), String> {
        if self.segment_bytes < Self::MIN_SEGMENT_BYTES
            || !self.segment_bytes.is_multiple_of(PREWRITE_STEP_BYTES as u64)
        {
            return Err(format!(
                "a log segment of {} bytes is not possible: use a multiple of 16 KiB, at least {}",
                self.segment_bytes,
                Self::MIN_SEGMENT_BYTES
            ));
        }
        if self.limit_bytes < 2 * self.segment_bytes {
            return Err(format!(
                "a log limit of {} bytes does not hold two segments of {} bytes",
                self.limit_bytes, self.segment_bytes
            ));
        }
        Ok(())
    }

    fn max_segments(&self) -> u64 {
        self.limit_bytes / self.segment_bytes
    }
}

/// What must be synced so that the log is durable up to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncPlan {
    /// The files, in log order. Usually one; two right after a segment was sealed.
    pub files: Vec<PathBuf>,
    /// What to hand to [`Log::synced`] once all of them were synced.
    pub up_to: Position,
}

/// A shard's log.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    dir: PathBuf,
    /// Sealed segments not known to be durable yet, with the position of their end.
    sealing: VecDeque<(Segment, Position)>,
    active: Segment,
    /// Whether the active segment has its seal, because the log was closed right after sealing.
    sealed: bool,
    sequence: u64,
    /// Offset in the active segment of the next record.
    offset: usize,
    last_crc: u32,
    durable: Position,
    /// Segments ready to be started.
    blank: Vec<Segment>,
    spares: SpareSegments,
    /// Whether a spare is being prepared.
    ordered: bool,
    /// Files that the directory holds or that are ordered; also names the next one.
    slots: u64,
}

impl Log {
    /// Opens the log in a directory, creating it if need be, and hands every record to `visit` in
    /// order. Blocks: meant for the start of a shard, before it serves.
    ///
    /// A tail that no sync had covered is cut. Damage of anything that had been durable is an
    /// error, and then nothing in the directory is changed.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        visit: impl FnMut(Record<'_>),
    ) -> Result<Self, WalError> {
        let Opened { end, mut blank, mut slots } = open_directory(dir, &options, visit)?;
        let spares = SpareSegments::start(dir, options.segment_bytes)?;
        let end = match end {
            Some(end) => end,
            None => {
                let mut active = match blank.pop() {
                    Some(segment) => segment,
                    None => {
                        spares.order(slot_path(dir, slots));
                        slots += 1;
                        spares.take()?
                    }
                };
                active.start(&options, SegmentStart { sequence: 0, previous_crc: 0 });
                active.file.sync_data().map_err(WalError::io("sync", &active.path))?;
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
            sealing: VecDeque::new(),
            active: end.active,
            sealed: end.sealed,
            sequence: end.sequence,
            offset: end.offset,
            last_crc: end.last_crc,
            durable: base + end.offset as u64,
            blank,
            spares,
            ordered: false,
            slots,
        };
        log.keep_spare();
        Ok(log)
    }

    /// Appends a record and returns the position of its end. It is durable once
    /// [`Log::durable`] has reached that.
    ///
    /// Never blocks. Fails, having written nothing, with [`WalError::NotReady`] while
    /// the next segment is being prepared, or [`WalError::Full`] if there will be none.
    pub fn append(&mut self, record: &Record<'_>) -> Result<Position, WalError> {
        assert!(record.payload.len() <= MAX_PAYLOAD_BYTES, "a payload over the limit was appended");
        let bytes = record_bytes(record.payload.len());
        if !self.fits(bytes) {
            self.start_next_segment()?;
        }
        assert!(self.fits(bytes), "a fresh segment holds at least two of the longest records");
        self.write(record);
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
        if self.durable == self.end() {
            return None;
        }
        let sealed = self.sealing.iter().map(|(segment, _)| segment.path.clone());
        let files = sealed.chain([self.active.path.clone()]).collect();
        Some(SyncPlan { files, up_to: self.end() })
    }

    /// Takes note that a plan was carried out.
    pub fn synced(&mut self, up_to: Position) {
        assert!(up_to <= self.end(), "a sync was reported beyond the end of the log");
        assert!(up_to >= self.durable, "the durable position went back");
        self.durable = up_to;
        while self.sealing.front().is_some_and(|(_, end)| *end <= up_to) {
            self.sealing.pop_front();
        }
    }

    /// Bytes that can still be appended before the limit.
    pub fn left_bytes(&self) -> u64 {
        let usable = self.options.segment_bytes - SEGMENT_HEADER_BYTES as u64;
        let unused = self.options.max_segments() - (self.sequence + 1);
        self.options.segment_bytes - self.offset as u64 + unused * usable
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
        let mut next = match self.blank.pop() {
            Some(segment) => segment,
            None => self.take_spare()?,
        };
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
        next.start(
            &self.options,
            SegmentStart { sequence: self.sequence, previous_crc: self.last_crc },
        );
        let sealed = std::mem::replace(&mut self.active, next);
        self.sealing.push_back((sealed, end));
        self.sealed = false;
        self.offset = SEGMENT_HEADER_BYTES;
        self.keep_spare();
        Ok(())
    }

    fn take_spare(&mut self) -> Result<Segment, WalError> {
        if self.ordered {
            let segment = self.spares.try_take();
            // A failed order may be placed again: a full disk can be emptied.
            self.ordered = matches!(segment, Err(WalError::NotReady));
            return segment;
        }
        self.keep_spare();
        if self.ordered {
            return Err(WalError::NotReady);
        }
        Err(WalError::Full { limit_bytes: self.options.limit_bytes })
    }

    fn keep_spare(&mut self) {
        if self.blank.is_empty() && !self.ordered && self.sequence + 1 < self.options.max_segments()
        {
            self.spares.order(slot_path(&self.dir, self.slots));
            self.slots += 1;
            self.ordered = true;
        }
    }
}
