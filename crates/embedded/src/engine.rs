//! The shard's thread: it takes requests, appends to the log, and sends answers.

use std::{
    io,
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use palisade_client::InProcess;
use palisade_clock::Timestamp;
use palisade_control::{NodeAddress, Topology, range_map_of_one};
use palisade_replication::{Append, Planted, raft};
use palisade_shard::{
    ConnectionId, Input, LogCounters, Recovered, ReplayError, Replayed, SNAPSHOT_PART_BYTES, Shard,
    ShardConfig, ShardEffects, ShardError, record_of,
};
use palisade_wal::{
    Backend, DataDir, DataDirError, Log, LogOptions, Owner, Position, SyncPlan, WalError,
};
use palisade_wire::{NodeId, PeerAddress, RangeId, Request, Response, ShardId};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::{clock::Clock, storage::SyncedLog};

/// Cluster id of all embedded databases. Clusters do not use it, so a node's directory is not
/// opened as an embedded database.
const CLUSTER_ID: u64 = u64::from_be_bytes(*b"embedded");

/// Capacity of the queue of requests and of the queue of answers. A request that does not fit is
/// refused, and the client sends it again.
const MAX_REQUESTS: usize = 64 * 1024;

/// Limit on the requests of one turn.
const TURN_REQUESTS: usize = 1024;

/// Time between two ticks, while a replica needs ticks and while none does.
const TICK: Duration = Duration::from_millis(10);
const QUIET_TICK: Duration = Duration::from_secs(1);

/// Shorter waits spin, because a sleeping thread would wake too late. In microseconds.
const SPIN_US: u64 = 50;

const SEGMENT_BYTES: u64 = 32 << 20;
const LOG_LIMIT_BYTES: u64 = 4 << 30;
const CHECKPOINT_BYTES: u64 = 8 << 20;

/// Limit on the log that one turn appends, in bytes. This much is kept free.
const TURN_LOG_BYTES: u64 = 16 << 20;

/// Time between two checks of the log's length and spare segments.
const LOG_INTERVAL_US: u64 = 1_000_000;

/// Poll interval while an append waits for the next segment.
const SEGMENT_POLL: Duration = Duration::from_millis(1);

/// Why a database cannot be opened. No data was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log cannot be used.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log's records are inconsistent.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The shard cannot start with the contents of its log.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
}

/// An input of the shard's thread.
enum Event {
    Request(Request),
    Synced(SyncPlan, io::Result<()>),
    Close,
}

/// A running database. Dropping it stops its threads and releases its directory.
#[derive(Debug)]
pub struct Engine {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts a database in memory, which is lost when the engine is dropped.
    ///
    /// # Errors
    ///
    /// [`OpenError::Shard`] and [`OpenError::Thread`].
    pub fn in_memory() -> Result<(Self, InProcess), OpenError> {
        Self::start(None)
    }

    /// Opens the database in a directory, which is created if it does not exist. Only one engine,
    /// of all processes, can have the directory open.
    ///
    /// # Errors
    ///
    /// [`OpenError::DataDir`] if another process has the directory open (retryable), and every
    /// other [`OpenError`].
    pub fn in_directory(path: &Path) -> Result<(Self, InProcess), OpenError> {
        Self::start(Some(path))
    }

    fn start(directory: Option<&Path>) -> Result<(Self, InProcess), OpenError> {
        let (events, incoming) = bounded(MAX_REQUESTS);
        let (answers, answered) = mpsc::channel(MAX_REQUESTS);
        let (recovered, storage) = match directory {
            None => (Recovered::default(), Storage::Memory { bytes: 0 }),
            Some(path) => open(path, events.clone())?,
        };
        let at = PeerAddress { node: NodeId(0), shard: ShardId(0) };
        let ranges = range_map_of_one(at);
        // The client derives the number of shards from the addresses. It does not connect to this
        // one.
        let nowhere = ([127, 0, 0, 1], 0).into();
        let nodes = vec![NodeAddress { node: at.node, client: vec![nowhere] }];
        let config = ShardConfig {
            at,
            cluster_id: CLUSTER_ID,
            nodes: nodes.clone(),
            shape: None,
            max_offset_us: 1,
            random_seed: fastrand::u64(..),
            checkpoint_bytes: CHECKPOINT_BYTES,
            snapshot_part_bytes: SNAPSHOT_PART_BYTES,
            max_message_bytes: raft::DEFAULT_MESSAGE_BYTES,
            planted: Planted::default(),
        };
        let mut clock = Clock::new();
        let shard = Shard::new(config, ranges.clone(), recovered, clock.now())?;
        clock.move_beyond(shard.logged_ts());
        let now_ts = Some(Timestamp::from_physical_us(clock.now().wall.reading_us()));
        let running = Running {
            shard,
            clock,
            storage,
            answers,
            appends: 0,
            syncs: 0,
            tick_due_us: 0,
            log_due_us: 0,
        };
        let thread = thread::Builder::new()
            .name("palisade-shard".to_owned())
            .spawn(move || running.run(incoming))
            .map_err(OpenError::Thread)?;
        let submit = {
            let events = events.clone();
            move |request| match events.try_send(Event::Request(request)) {
                Ok(()) => true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
            }
        };
        let topology = Topology { cluster_id: CLUSTER_ID, nodes, ranges, now_ts };
        let in_process = InProcess::new(topology, submit, answered);
        Ok((Self { events, thread: Some(thread) }, in_process))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Fails only if the thread has ended already.
        let _ = self.events.send(Event::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The storage of the log.
#[derive(Debug)]
enum Storage {
    /// No log: every write counts as durable at once, and is lost with the engine.
    Memory {
        bytes: u64,
    },
    Directory {
        log: Box<SyncedLog>,
        start: Position,
        _lock: DataDir,
    },
}

fn open(path: &Path, events: Sender<Event>) -> Result<(Recovered, Storage), OpenError> {
    let owner = Owner { cluster_id: CLUSTER_ID, node: 0, shards: 1 };
    let lock = DataDir::open(path, owner)?;
    let options = LogOptions {
        cluster_id: CLUSTER_ID,
        node: 0,
        shard: 0,
        segment_bytes: SEGMENT_BYTES,
        limit_bytes: LOG_LIMIT_BYTES,
        ahead_bytes: palisade_shard::LOG_RESERVE_BYTES + TURN_LOG_BYTES,
        backend: Backend::Mapped,
    };
    let mut replayed = Replayed::default();
    let log = Log::open(&lock.log_dir(0), options, &|_| {}, |record| replayed.visit(record))?;
    let recovered = replayed.finish()?;
    let start = log.end();
    let done = move |plan, synced| {
        // Fails only if the shard's thread has ended.
        let _ = events.send(Event::Synced(plan, synced));
    };
    let log = Box::new(SyncedLog::new(log, done).map_err(OpenError::Thread)?);
    Ok((recovered, Storage::Directory { log, start, _lock: lock }))
}

/// State of the shard's thread.
struct Running {
    shard: Shard,
    clock: Clock,
    storage: Storage,
    answers: mpsc::Sender<Response>,
    appends: u64,
    syncs: u64,
    tick_due_us: u64,
    log_due_us: u64,
}

/// The connection of the only client.
const CLIENT: ConnectionId = ConnectionId(0);

impl Running {
    #[allow(
        clippy::needless_pass_by_value,
        reason = "the queue closes before the log waits for its syncs"
    )]
    fn run(mut self, events: Receiver<Event>) {
        let mut wake_after_us = None;
        loop {
            let mut batch = Vec::new();
            match self.wait(&events, wake_after_us) {
                Ok(event) => batch.push(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            batch.extend(events.try_iter().take(TURN_REQUESTS));
            for event in batch {
                match event {
                    Event::Request(request) => {
                        let input = Input::Request { connection: CLIENT, request };
                        self.shard.step(input, self.clock.now());
                    }
                    Event::Synced(plan, Ok(())) => self.synced(&plan),
                    Event::Synced(plan, Err(error)) => {
                        tracing::error!(
                            "a sync of {} failed: {error}. Nothing more is acknowledged: close the \
                             database, check the disk, and open it again",
                            plan.path.display()
                        );
                        return;
                    }
                    Event::Close => return,
                }
            }
            match self.turn() {
                Ok(wake) => wake_after_us = wake,
                Err(error) => {
                    tracing::error!("{error}; the database closes to keep its promises");
                    return;
                }
            }
        }
    }

    /// Waits for the next event. Times out when a turn is due without one.
    fn wait(
        &self,
        events: &Receiver<Event>,
        wake_after_us: Option<u64>,
    ) -> Result<Event, RecvTimeoutError> {
        let until_tick_us = self.tick_due_us.saturating_sub(self.clock.now().monotonic_us);
        let wait_us = wake_after_us.map_or(until_tick_us, |us| us.min(until_tick_us));
        if wait_us > SPIN_US {
            return events.recv_timeout(Duration::from_micros(wait_us));
        }
        let until_us = self.clock.now().monotonic_us + wait_us;
        while self.clock.now().monotonic_us < until_us {
            if let Ok(event) = events.try_recv() {
                return Ok(event);
            }
            std::hint::spin_loop();
        }
        Err(RecvTimeoutError::Timeout)
    }

    /// Ends a turn and performs its effects. Returns the microseconds until the next turn is due,
    /// or `None` if the next tick is early enough.
    fn turn(&mut self) -> Result<Option<u64>, WalError> {
        let now = self.clock.now();
        self.shard.set_log_counters(self.counters());
        if now.monotonic_us >= self.tick_due_us {
            self.shard.step(Input::Tick, now);
            let quiet = self.shard.active_replicas() == 0;
            let pause = if quiet { QUIET_TICK } else { TICK };
            self.tick_due_us = now.monotonic_us + pause.as_micros() as u64;
        }
        loop {
            let effects = self.shard.end_turn(self.clock.now());
            let ShardEffects { appends, replies, wake_after_us, .. } = effects;
            for (_, response) in replies {
                // The client's queue is full, so the answer is dropped. The call ends by its
                // deadline.
                let _ = self.answers.try_send(response);
            }
            let appended = !appends.is_empty();
            for (range, append) in &appends {
                self.append(*range, append)?;
            }
            match &mut self.storage {
                Storage::Memory { .. } if appended => {
                    let durable = Input::Durable { appends: self.appends };
                    self.shard.step(durable, self.clock.now());
                    continue;
                }
                Storage::Memory { .. } => {}
                Storage::Directory { log, .. } => log.sync(),
            }
            self.look_after_log();
            // A replica may have become active in this turn, and then needs a tick soon.
            if self.shard.active_replicas() > 0 {
                let soon_us = self.clock.now().monotonic_us + TICK.as_micros() as u64;
                self.tick_due_us = self.tick_due_us.min(soon_us);
            }
            return Ok(wake_after_us);
        }
    }

    fn append(&mut self, range: RangeId, append: &Append) -> Result<(), WalError> {
        self.appends += 1;
        let record = record_of(range, append);
        match &mut self.storage {
            Storage::Memory { bytes } => *bytes += record.payload.len() as u64,
            Storage::Directory { log, .. } => loop {
                match log.log.append(&record) {
                    Ok(_) => break,
                    // No message or answer that depends on the write has left, so waiting is safe.
                    Err(WalError::NotReady) => thread::sleep(SEGMENT_POLL),
                    Err(error) => return Err(error),
                }
            },
        }
        Ok(())
    }

    fn synced(&mut self, plan: &SyncPlan) {
        self.syncs += 1;
        if let Storage::Directory { log, .. } = &mut self.storage {
            log.synced(plan);
        }
        self.shard.step(Input::Durable { appends: plan.appends }, self.clock.now());
    }

    /// Maintains the log once per [`LOG_INTERVAL_US`]: prepares segments. If the log is long or
    /// cannot grow, makes the groups that pin its oldest segment rewrite their state.
    fn look_after_log(&mut self) {
        let Storage::Directory { log, .. } = &mut self.storage else { return };
        let now_us = self.clock.now().monotonic_us;
        if now_us < self.log_due_us {
            return;
        }
        self.log_due_us = now_us + LOG_INTERVAL_US;
        let is_short = log.log.prepare().is_err();
        if is_short || log.log.is_long(self.shard.state_bytes()) {
            let unknown = self.shard.compact(log.log.pinning());
            unknown.into_iter().for_each(|group| log.log.forget(group));
        }
    }

    fn counters(&self) -> LogCounters {
        let (bytes, left_bytes) = match &self.storage {
            Storage::Memory { bytes } => (*bytes, u64::MAX),
            Storage::Directory { log, start, .. } => {
                (log.log.end() - start, log.log.left_bytes().saturating_sub(TURN_LOG_BYTES))
            }
        };
        LogCounters { syncs: self.syncs, bytes, left_bytes }
    }
}
