//! A shard's log on a simulated disk: synced bytes survive a crash, unsynced bytes may be lost or
//! torn.

use std::collections::VecDeque;

use palisade_shard::{LOG_AHEAD_BYTES, LOG_RESERVE_BYTES, ShardLog};
use palisade_wal::{LengthRule, MemoryLog, MemoryLogDamage, Position, Record, Remains, WalError};

/// The unit that the disk writes atomically.
const SECTOR_BYTES: usize = 512;

/// Free bytes of a log whose disk is not filling up.
const ROOM_BYTES: u64 = 1 << 40;

/// Properties of a log that stay the same over restarts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSettings {
    pub(crate) owner: u64,
    pub(crate) rule: LengthRule,
    /// Fault: recovery truncates the log at the first damage instead of refusing it.
    pub(crate) trust_damage: bool,
    /// Fault: the oldest segment of a long log is released although groups need it.
    pub(crate) cut_early: bool,
}

#[derive(Debug)]
pub(crate) struct SimulatedLog {
    log: MemoryLog,
    rule: LengthRule,
    cut_early: bool,
    /// Records appended since the start.
    appends: u64,
    /// The ends of segments that are full and not durable: each is synced on its own.
    sealed: VecDeque<Sync>,
    /// The next segment is not ready after so many further appends.
    ready_appends: Option<usize>,
    /// Bytes that the shard may still write while the disk is filling up, or `None`.
    room_bytes: Option<u64>,
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
}

impl CrashedLog {
    /// Returns a log without records.
    pub(crate) fn blank() -> Self {
        Self { remains: Remains::blank(), first: 0, known_durable: 0 }
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
        let LogSettings { owner, rule, trust_damage, cut_early } = settings;
        let remains = crashed.remains;
        let log = MemoryLog::recover(owner, rule.segment_bytes, remains, trust_damage, &mut visit)?;
        let (sealed, ready_appends, room_bytes) = (VecDeque::new(), None, None);
        Ok(Self { log, rule, cut_early, appends: 0, sealed, ready_appends, room_bytes })
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
        CrashedLog { remains, first, known_durable }
    }

    /// Makes the append after the next `appends` ones wait for a segment.
    pub(crate) fn interrupt(&mut self, appends: usize) {
        self.ready_appends = Some(appends);
    }

    fn segment(&self) -> u64 {
        self.log.end() / self.rule.segment_bytes
    }

    /// Sets how many bytes the shard may still write, or `None` while the disk has room.
    pub(crate) fn set_room(&mut self, room_bytes: Option<u64>) {
        self.room_bytes = room_bytes;
    }
}

impl ShardLog for SimulatedLog {
    type Plan = Sync;

    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        match &mut self.ready_appends {
            Some(0) => {
                self.ready_appends = None;
                return Err(WalError::NotReady);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let before = (self.segment(), Sync { end: self.log.end(), appends: self.appends });
        self.log.append(record);
        self.appends += 1;
        if self.segment() > before.0 && before.1.end > self.log.durable() {
            self.sealed.push_back(before.1);
        }
        Ok(())
    }

    fn end(&self) -> Position {
        self.log.end()
    }

    fn left_bytes(&self) -> u64 {
        // The runtime keeps this much free for the turn itself.
        self.room_bytes.unwrap_or(ROOM_BYTES) + LOG_AHEAD_BYTES - LOG_RESERVE_BYTES
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
        match self.room_bytes {
            None => Ok(()),
            Some(limit_bytes) => Err(WalError::Full { limit_bytes }),
        }
    }

    fn is_long(&self, state_bytes: u64) -> bool {
        self.rule.is_long(self.log.live_segments(), state_bytes)
    }

    fn pinning(&self) -> impl Iterator<Item = u32> {
        self.log.pinning()
    }

    fn forget(&mut self, group: u32) {
        self.log.forget(group);
    }
}
