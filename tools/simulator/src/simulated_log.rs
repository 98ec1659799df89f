//! A shard's log on a simulated disk: synced bytes survive a crash, unsynced bytes may be lost or
//! torn.

use std::collections::VecDeque;

use palisade_shard::{LogSpace, ShardLog};
use palisade_wal::{
    LengthRule, MemoryLog, MemoryLogDamage, Position, Record, Remains, Retained, WalError,
};

/// Bytes that a record takes beside its payload, at most.
const RECORD_BYTES: u64 = 64;

/// The unit that the disk writes atomically.
const SECTOR_BYTES: usize = 512;

/// Properties of a log that stay the same over restarts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSettings {
    pub(crate) owner: u64,
    /// Size of a segment.
    pub(crate) segment_bytes: u64,
    /// Limit on the bytes of all segments.
    pub(crate) limit_bytes: u64,
    /// Bytes beyond the end of the log for which files are made before it is used.
    pub(crate) ahead_bytes: u64,
    /// Fault: recovery truncates the log at the first damage instead of refusing it.
    pub(crate) trust_damage: bool,
    /// Fault: the oldest segment of a long log is released although groups need it.
    pub(crate) cut_early: bool,
}

#[derive(Debug)]
pub(crate) struct SimulatedLog {
    log: MemoryLog,
    segment_bytes: u64,
    limit_bytes: u64,
    /// Bytes for which there are files, the log's own included. They outlive a crash.
    file_bytes: u64,
    /// Bytes beyond the end of the log for which the shard has requested files.
    reserved_bytes: u64,
    /// While the disk is full, no files can be made.
    is_full: bool,
    cut_early: bool,
    /// Records appended since the start.
    appends: u64,
    /// The ends of segments that are full and not durable: each is synced on its own.
    sealed: VecDeque<Sync>,
    /// The next segment is not ready after so many further appends, for so many tries.
    not_ready: Option<(usize, u8)>,
}

/// The log position and the number of appends that a sync covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sync {
    end: Position,
    appends: u64,
}

/// What a crash leaves of a log.
#[derive(Clone, Debug)]
pub(crate) struct CrashedLog {
    remains: Remains,
    first: Position,
    /// Recovery must detect any damage below this position.
    known_durable: Position,
    file_bytes: u64,
}

impl CrashedLog {
    /// Returns a log without records.
    pub(crate) fn blank() -> Self {
        Self { remains: Remains::blank(), first: 0, known_durable: 0, file_bytes: 0 }
    }

    /// Flips a random bit in the part of the log that a durable record shows to be durable, so that
    /// recovery must detect it. Returns false if that part is empty.
    pub(crate) fn flip_bit(&mut self, random: &mut fastrand::Rng) -> bool {
        if self.known_durable <= self.first {
            return false;
        }
        let at = self.remains.offset(random.u64(self.first..self.known_durable));
        self.remains.bytes[at] ^= 1 << random.u8(0..8);
        true
    }
}

impl SimulatedLog {
    /// Recovers a log from what a crash left, and visits its records.
    ///
    /// # Errors
    ///
    /// If durable bytes are damaged.
    pub(crate) fn recover(
        settings: LogSettings,
        crashed: CrashedLog,
        mut visit: impl FnMut(Record<'_>),
    ) -> Result<Self, MemoryLogDamage> {
        let LogSettings { owner, segment_bytes, limit_bytes, .. } = settings;
        let LogSettings { ahead_bytes, trust_damage, cut_early, .. } = settings;
        let CrashedLog { remains, file_bytes, .. } = crashed;
        let log = MemoryLog::recover(owner, segment_bytes, remains, trust_damage, &mut visit)?;
        let mut log = Self {
            log,
            segment_bytes,
            limit_bytes,
            file_bytes,
            reserved_bytes: ahead_bytes,
            is_full: false,
            cut_early,
            appends: 0,
            sealed: VecDeque::new(),
            not_ready: None,
        };
        log.make_files();
        Ok(log)
    }

    /// Returns what a power loss leaves: a random part of the unsynced tail has reached the disk.
    pub(crate) fn crash(&self, random: &mut fastrand::Rng) -> CrashedLog {
        let mut remains = self.log.remains().clone();
        let durable = remains.offset(self.log.durable());
        let tail = &mut remains.bytes[durable..];
        match random.u8(0..5) {
            0 => tail.fill(0),
            1 => {}
            2 => {
                let kept = random.usize(0..=tail.len());
                tail[kept..].fill(0);
            }
            _ => {
                for sector in tail.chunks_mut(SECTOR_BYTES) {
                    if random.bool() {
                        sector.fill(0);
                    }
                }
            }
        }
        let (first, known_durable) = (self.log.first(), self.log.known_durable());
        CrashedLog { remains, first, known_durable, file_bytes: self.file_bytes }
    }

    /// Makes the append after the next `appends` ones wait for a segment, for a number of tries.
    pub(crate) fn interrupt(&mut self, appends: usize, tries: u8) {
        self.not_ready = Some((appends, tries));
    }

    fn segment(&self) -> u64 {
        self.log.end() / self.segment_bytes
    }

    /// Fills the disk, or makes room on it again. While it is full, the log has the files that it
    /// had before, and reuses what it releases of them.
    pub(crate) fn set_disk_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    fn make_files(&mut self) {
        let wanted_bytes = self.log.end() - self.log.first() + self.reserved_bytes;
        self.file_bytes = self.file_bytes.max(wanted_bytes.min(self.limit_bytes));
    }

    /// Returns how many bytes the log can have: by its limit, or on a full disk.
    fn capacity_bytes(&self) -> u64 {
        if self.is_full { self.file_bytes } else { self.limit_bytes }
    }
}

impl ShardLog for SimulatedLog {
    type Plan = Sync;

    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        match &mut self.not_ready {
            None => {}
            Some((0, 0)) => self.not_ready = None,
            Some((0, tries)) => {
                *tries -= 1;
                return Err(WalError::NotReady);
            }
            Some((appends, _)) => *appends -= 1,
        }
        let space = self.space();
        if space.left_bytes < record.payload.len() as u64 + RECORD_BYTES {
            return Err(WalError::Full { limit_bytes: space.limit_bytes });
        }
        let before = (self.segment(), Sync { end: self.log.end(), appends: self.appends });
        self.log.append(record);
        self.appends += 1;
        if self.segment() > before.0 && before.1.end > self.log.durable() {
            self.sealed.push_back(before.1);
        }
        Ok(())
    }

    fn space(&self) -> LogSpace {
        let (first, end) = (self.log.first(), self.log.end());
        let left_bytes = self.capacity_bytes().saturating_sub(end - first);
        LogSpace { first, end, left_bytes, limit_bytes: self.limit_bytes }
    }

    fn sync_plan(&self) -> Option<Sync> {
        let all = Sync { end: self.log.end(), appends: self.appends };
        let next = self.sealed.front().copied().unwrap_or(all);
        (next.end > self.log.durable()).then_some(next)
    }

    fn synced(&mut self, sync: &Sync) -> u64 {
        self.log.synced(sync.end);
        while self.sealed.pop_front_if(|sealed| sealed.end <= sync.end).is_some() {}
        sync.appends
    }

    fn prepare(&mut self) -> Result<(), WalError> {
        if self.cut_early && self.is_long(0) {
            let pinning: Vec<_> = self.log.pinning().collect();
            pinning.into_iter().for_each(|group| self.log.forget(group));
        }
        if self.is_full {
            return Err(WalError::Full { limit_bytes: self.file_bytes });
        }
        self.make_files();
        Ok(())
    }

    fn reserve(&mut self, bytes: u64) {
        self.reserved_bytes = bytes;
    }

    fn is_long(&self, state_bytes: u64) -> bool {
        let capacity_segments = self.capacity_bytes() / self.segment_bytes;
        let rule = LengthRule { segment_bytes: self.segment_bytes, capacity_segments };
        rule.is_long(self.log.live_segments(), state_bytes)
    }

    fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained> {
        self.log.retained(applied)
    }

    fn forget(&mut self, group: u32) {
        self.log.forget(group);
    }
}
