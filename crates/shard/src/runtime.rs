//! The runtime of a shard: the shard with its log, and the order in which a turn touches them.
//!
//! ```text
//! inputs ── turn ── write ── send, reply, install ── maintain     one turn of a driver
//!                     │
//!                     └── sync_plan ── the disk ── synced         an input of a later turn
//! ```
//!
//! The drivers of a node, of an embedded database and of the simulator differ in their sockets,
//! their disks and how they wait. The rest is here: how much a turn may append, when the log is
//! maintained, and when it is compacted. `log_room` decides what is refused as the log fills up.
//!
//! Invariants:
//! - Writes enter the log in the order of their turns. What depends on a write waits until it is
//!   durable, so a write that waits for a segment delays nothing else.
//! - A write counts as durable once a sync that covers it has returned.

use std::collections::VecDeque;

use palisade_clock::Now;
use palisade_control::RangeMap;
use palisade_replication::Append;
use palisade_wal::{Log, Position, Record, Retained, SyncPlan, WalError};
use palisade_wire::RangeId;
use thiserror::Error;

use crate::{
    config::{LogCounters, ShardConfig, ShardError},
    inbox::Inbox,
    log_room::{LOG_RESERVE_BYTES, LogReserve, LogRoom, LogSpace},
    replay::{ReplayError, Replayed, record_of},
    shard::Shard,
    turn::{Input, ShardEffects},
};

/// Bytes of log that are prepared ahead, so that an append does not wait for them.
pub const LOG_AHEAD_BYTES: u64 = LOG_RESERVE_BYTES + LogReserve(LOG_RESERVE_BYTES).turn_bytes();

/// Time between two ticks while a replica needs them, in microseconds.
pub const TICK_US: u64 = 10_000;

/// Time between two checks of the log's length and spare segments, in microseconds. The second is
/// for a log with little room.
const MAINTAIN_US: u64 = 1_000_000;
const MAINTAIN_SLOW_US: u64 = TICK_US;

/// Time after which the room of a log that has little is computed again, in microseconds.
const ROOM_US: u64 = TICK_US;

/// Interval at which the driver must call [`Runtime::write`] while writes wait, in microseconds.
const BACKLOG_US: u64 = 1_000;

/// The log of a shard.
pub trait ShardLog {
    /// A sync that is to be carried out.
    type Plan;

    /// Appends a record.
    ///
    /// # Errors
    ///
    /// [`WalError::NotReady`] (retryable after a short wait), or an error that ends the shard.
    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError>;

    /// Returns the extent of the log.
    fn space(&self) -> LogSpace;

    /// Returns the next sync, or `None` if everything is durable.
    fn sync_plan(&self) -> Option<Self::Plan>;

    /// Takes in that a sync was carried out. Returns how many records appended since the log was
    /// opened are durable.
    fn synced(&mut self, plan: &Self::Plan) -> u64;

    /// Prepares segments ahead.
    ///
    /// # Errors
    ///
    /// If no segment can be prepared. Retryable: writes are refused before the log is full.
    fn prepare(&mut self) -> Result<(), WalError>;

    /// Keeps at least `bytes` beyond the end of the log free on the disk.
    fn reserve(&mut self, bytes: u64);

    /// Returns true if the groups that pin the oldest segment should rewrite their state.
    /// `state_bytes` is what rewriting the state of all groups takes.
    fn is_long(&self, state_bytes: u64) -> bool;

    /// Returns what each group needs of the log. `applied` returns the index up to which a group
    /// has applied its entries.
    fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained>;

    /// Marks all records of a group as no longer needed.
    fn forget(&mut self, group: u32);
}

impl ShardLog for Log {
    type Plan = SyncPlan;

    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        Self::append(self, record).map(drop)
    }

    fn space(&self) -> LogSpace {
        LogSpace {
            first: self.first(),
            end: self.end(),
            left_bytes: self.left_bytes(),
            limit_bytes: self.limit_bytes(),
        }
    }

    fn sync_plan(&self) -> Option<SyncPlan> {
        self.sync_plan()
    }

    fn synced(&mut self, plan: &SyncPlan) -> u64 {
        Self::synced(self, plan);
        plan.appends
    }

    fn prepare(&mut self) -> Result<(), WalError> {
        self.prepare()
    }

    fn reserve(&mut self, bytes: u64) {
        self.reserve(bytes);
    }

    fn is_long(&self, state_bytes: u64) -> bool {
        self.is_long(state_bytes)
    }

    fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained> {
        self.retained(applied)
    }

    fn forget(&mut self, group: u32) {
        self.forget(group);
    }
}

/// Why a shard cannot start from its log.
#[derive(Debug, Error)]
pub enum RecoveryError<E> {
    /// The log cannot be opened. Retryable if the error of the log is.
    #[error(transparent)]
    Log(E),
    /// The log's records are inconsistent. Not retryable.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The shard cannot start with the contents of its log, or with this configuration. Not
    /// retryable.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// A shard with its log.
#[derive(Debug)]
pub struct Runtime<L> {
    shard: Shard,
    log: L,
    /// The end of the log at the start.
    log_start: Position,
    syncs: u64,
    maintain_due_us: u64,
    /// Writes that wait for the next segment, oldest first, and about how many bytes they take.
    backlog: VecDeque<(RangeId, Append)>,
    backlog_bytes: u64,
    /// The room that was computed last, at which end of the log, and until when it is used.
    room: Option<(LogRoom, Position, u64)>,
}

impl<L: ShardLog> Runtime<L> {
    /// Recovers a shard. `open` opens the log and passes its records to the replay. `ranges` is the
    /// cluster's first range map. `now` is called once the log is open: opening a long log takes
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`RecoveryError`]. No record was written.
    pub fn recover<E>(
        config: ShardConfig,
        ranges: RangeMap,
        now: impl FnOnce() -> Now,
        open: impl FnOnce(&mut Replayed) -> Result<L, E>,
    ) -> Result<Self, RecoveryError<E>> {
        let mut replayed = Replayed::default();
        let log = open(&mut replayed).map_err(RecoveryError::Log)?;
        let shard = Shard::new(config, ranges, replayed.finish()?, now())?;
        Ok(Self {
            shard,
            log_start: log.space().end,
            log,
            syncs: 0,
            maintain_due_us: 0,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            room: None,
        })
    }

    /// Returns the shard.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Returns the shard, for settings that are no inputs.
    pub fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// Returns the log.
    pub fn log(&self) -> &L {
        &self.log
    }

    /// Returns the log, for calls that only one driver makes.
    pub fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// Runs a turn with inputs of `inbox`. Inputs that the turn has no time for stay there. The
    /// driver must pass the effects' writes to [`Runtime::write`] before it carries out the others.
    pub fn turn(&mut self, inbox: &mut Inbox, now: Now) -> ShardEffects {
        let space = self.space();
        let room = self.room(space, now);
        let bytes = space.end - self.log_start;
        self.shard.set_log_counters(LogCounters { syncs: self.syncs, bytes, room });
        self.shard.take_inputs(inbox, now);
        self.shard.end_turn(now)
    }

    /// Returns the extent of the log, as if the backlog were written. With a long backlog, nothing
    /// is left: no turn may add to it.
    fn space(&self) -> LogSpace {
        let space = self.log.space();
        let is_long = self.backlog_bytes > self.shard.log_reserve().turn_bytes();
        let left_bytes = space.left_bytes.saturating_sub(self.backlog_bytes);
        LogSpace { left_bytes: if is_long { 0 } else { left_bytes }, ..space }
    }

    /// Returns what can still be written.
    fn room(&mut self, space: LogSpace, now: Now) -> LogRoom {
        let reserve = self.shard.log_reserve();
        let at_once = LogRoom::at_once(space, self.shard.state_size(), reserve);
        if !at_once.is_slow(reserve) {
            self.room = None;
            return at_once;
        }
        // As if the backlog were written.
        let end = space.end + self.backlog_bytes;
        let known = self.room.filter(|(_, _, until_us)| now.monotonic_us < *until_us);
        let known = known.unwrap_or_else(|| {
            let retained = self.log.retained(|group| self.shard.applied_index(group));
            let room = self.shard.log_room(space, retained);
            (room, end, now.monotonic_us + ROOM_US)
        });
        self.room = Some(known);
        let (room, known_end, _) = known;
        room.without(end.saturating_sub(known_end))
    }

    /// Appends the writes of a turn to the log. Writes for which no segment is ready wait in a
    /// backlog, as if they were written and not durable yet.
    ///
    /// # Errors
    ///
    /// An error must end the shard, which is like a crash just before the write.
    pub fn write(&mut self, appends: Vec<(RangeId, Append)>) -> Result<(), WalError> {
        self.backlog_bytes += appends.iter().map(|(_, append)| append.bytes()).sum::<u64>();
        self.backlog.extend(appends);
        self.write_backlog()
    }

    /// Appends the writes that wait for a segment, as far as one is ready.
    fn write_backlog(&mut self) -> Result<(), WalError> {
        while let Some((range, append)) = self.backlog.front() {
            match self.log.append(&record_of(*range, append)) {
                Ok(()) => {}
                Err(WalError::NotReady) => return Ok(()),
                Err(error) => return Err(error),
            }
            self.backlog_bytes -= append.bytes();
            self.backlog.pop_front();
        }
        Ok(())
    }

    /// Returns the microseconds after which [`Runtime::write`] is due again, with or without
    /// further writes, or `None` if everything is written.
    pub fn backlog_due_us(&self) -> Option<u64> {
        (!self.backlog.is_empty()).then_some(BACKLOG_US)
    }

    /// Returns the next sync, or `None` if everything is durable.
    pub fn sync_plan(&self) -> Option<L::Plan> {
        self.log.sync_plan()
    }

    /// Takes in that a sync was carried out. Returns an input for the next turn.
    pub fn synced(&mut self, plan: &L::Plan) -> Input {
        self.syncs += 1;
        Input::Durable { appends: self.log.synced(plan) }
    }

    /// Maintains the log, at most once per second unless it has little room: prepares segments. If
    /// the log is long, makes the groups that pin its oldest segment rewrite their state. Returns
    /// `None` if nothing was due.
    ///
    /// # Errors
    ///
    /// The inner result is an error if no segment can be prepared. Writes are refused before the
    /// log is full.
    pub fn maintain(&mut self, now_us: u64) -> Option<Result<(), WalError>> {
        if now_us < self.maintain_due_us {
            return None;
        }
        let is_slow = self.room.is_some();
        self.maintain_due_us = now_us + if is_slow { MAINTAIN_SLOW_US } else { MAINTAIN_US };
        self.shard.measure_largest();
        let (reserve, state) = (self.shard.log_reserve(), self.shard.state_size());
        self.log.reserve(state.needed_bytes() + reserve.0 + reserve.turn_bytes());
        let prepared = self.log.prepare();
        let gains = self.room.is_some_and(|(room, ..)| room.gains_by_rewrite(reserve));
        if gains || self.log.is_long(state.total_bytes) {
            let retained: Vec<_> =
                self.log.retained(|group| self.shard.applied_index(group)).collect();
            let unknown = self.shard.compact(&retained);
            unknown.into_iter().for_each(|group| self.log.forget(group));
        }
        Some(prepared)
    }
}
