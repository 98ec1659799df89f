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
//! - A write is in the log before a message or a reply of its turn leaves.
//! - A write counts as durable once a sync that covers it has returned.

use palisade_clock::Now;
use palisade_control::RangeMap;
use palisade_replication::Append;
use palisade_wal::{Log, Position, Record, SyncPlan, WalError};
use palisade_wire::RangeId;
use thiserror::Error;

use crate::{
    config::{LogCounters, ShardConfig, ShardError},
    log_room::LOG_RESERVE_BYTES,
    replay::{ReplayError, Replayed, record_of},
    shard::Shard,
    turn::{Input, ShardEffects},
};

/// Limit on the inputs of one turn, in bytes. The last input may exceed it, by at most one frame of
/// the largest size.
pub const TURN_INPUT_BYTES: usize = 1024 * 1024;

/// Limit on the log that one turn appends, in bytes. This much is kept free. It covers the inputs,
/// of which small ones take about twice their size with their headers, one last input of two
/// megabytes, one part of a checkpoint, and the protocols' own records.
const TURN_LOG_BYTES: u64 = 7 * 1024 * 1024;

/// Bytes of log that are prepared ahead, so that an append does not wait for them.
pub const LOG_AHEAD_BYTES: u64 = LOG_RESERVE_BYTES + TURN_LOG_BYTES;

/// Time between two ticks while a replica needs them, in microseconds.
pub const TICK_US: u64 = 10_000;

/// Time between two checks of the log's length and spare segments, in microseconds.
const MAINTAIN_US: u64 = 1_000_000;

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

    /// Returns the position of the end of the last record.
    fn end(&self) -> Position;

    /// Returns the bytes that can still be appended before the log is full.
    fn left_bytes(&self) -> u64;

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

    /// Returns true if the groups that pin the oldest segment should rewrite their state.
    /// `state_bytes` is what rewriting the state of all groups takes.
    fn is_long(&self, state_bytes: u64) -> bool;

    /// Returns the groups that pin the oldest segment.
    fn pinning(&self) -> impl Iterator<Item = u32>;

    /// Marks all records of a group as no longer needed.
    fn forget(&mut self, group: u32);
}

impl ShardLog for Log {
    type Plan = SyncPlan;

    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        Self::append(self, record).map(drop)
    }

    fn end(&self) -> Position {
        self.end()
    }

    fn left_bytes(&self) -> u64 {
        self.left_bytes()
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

    fn is_long(&self, state_bytes: u64) -> bool {
        self.is_long(state_bytes)
    }

    fn pinning(&self) -> impl Iterator<Item = u32> {
        self.pinning()
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
        Ok(Self { shard, log_start: log.end(), log, syncs: 0, maintain_due_us: 0 })
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

    /// Runs a turn. The driver must pass the effects' writes to [`Runtime::write`] before it
    /// carries out the others.
    pub fn turn(&mut self, inputs: impl Iterator<Item = Input>, now: Now) -> ShardEffects {
        self.shard.set_log_counters(LogCounters {
            syncs: self.syncs,
            bytes: self.log.end() - self.log_start,
            left_bytes: self.log.left_bytes().saturating_sub(TURN_LOG_BYTES),
        });
        for input in inputs {
            self.shard.step(input, now);
        }
        self.shard.end_turn(now)
    }

    /// Appends the writes of a turn to the log, and removes them from the list.
    ///
    /// # Errors
    ///
    /// [`WalError::NotReady`] if the next segment is not ready: call this again after a short wait.
    /// Nothing that depends on the writes has left, so waiting is safe. Any other error must end
    /// the shard, which is like a crash just before the write.
    pub fn write(&mut self, appends: &mut Vec<(RangeId, Append)>) -> Result<(), WalError> {
        let mut written = 0;
        let mut result = Ok(());
        for (range, append) in &*appends {
            result = self.log.append(&record_of(*range, append));
            if result.is_err() {
                break;
            }
            written += 1;
        }
        appends.drain(..written);
        result
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

    /// Maintains the log, at most once per second: prepares segments. If the log is long or cannot
    /// grow, makes the groups that pin its oldest segment rewrite their state. Returns `None` if
    /// nothing was due.
    ///
    /// # Errors
    ///
    /// The inner result is an error if no segment can be prepared. Writes are refused before the
    /// log is full.
    pub fn maintain(&mut self, now_us: u64) -> Option<Result<(), WalError>> {
        if now_us < self.maintain_due_us {
            return None;
        }
        self.maintain_due_us = now_us + MAINTAIN_US;
        let prepared = self.log.prepare();
        if prepared.is_err() || self.log.is_long(self.shard.state_bytes()) {
            let unknown = self.shard.compact(self.log.pinning());
            unknown.into_iter().for_each(|group| self.log.forget(group));
        }
        Some(prepared)
    }

    /// Returns true if the shard has drained, and everything is durable.
    pub fn is_drained(&self) -> bool {
        self.shard.is_drained() && self.log.sync_plan().is_none()
    }
}
