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
use palisade_replication::{Planted, raft};
use palisade_shard::{
    ConnectionId, Inbox, Input, LOG_RESERVE_BYTES, RecoveryError, ReplayError, Runtime,
    SNAPSHOT_PART_BYTES, ShardConfig, ShardEffects, ShardError, TICK_US, TURN_WORK,
};
use palisade_wal::{DataDirError, Owner, SyncPlan, WalError};
use palisade_wire::{NodeId, PeerAddress, Request, Response, ShardId};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::{
    clock::Clock,
    storage::{EmbeddedLog, StorageError, Sync, Syncer},
};

/// Cluster id of all embedded databases. Clusters do not use it, so a node's directory is not
/// opened as an embedded database.
const CLUSTER_ID: u64 = u64::from_be_bytes(*b"embedded");

/// Capacity of the queue of requests and of the queue of answers. A request that does not fit is
/// refused, and the client sends it again.
const MAX_REQUESTS: usize = 64 * 1024;

/// Time between two ticks while no replica needs them, in microseconds.
const QUIET_TICK_US: u64 = 1_000_000;

/// Shorter waits spin, because a sleeping thread would wake too late. In microseconds.
const SPIN_US: u64 = 50;

const CHECKPOINT_BYTES: u64 = 8 << 20;

/// Why a database cannot be opened. No data was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
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
    Thread(#[source] io::Error),
}

impl From<RecoveryError<StorageError>> for OpenError {
    fn from(error: RecoveryError<StorageError>) -> Self {
        match error {
            RecoveryError::Log(StorageError::DataDir(error)) => Self::DataDir(error),
            RecoveryError::Log(StorageError::Wal(error)) => Self::Wal(error),
            RecoveryError::Replay(error) => Self::Replay(error),
            RecoveryError::Shard(error) => Self::Shard(error),
        }
    }
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
            log_reserve_bytes: LOG_RESERVE_BYTES,
            snapshot_part_bytes: SNAPSHOT_PART_BYTES,
            max_message_bytes: raft::DEFAULT_MESSAGE_BYTES,
            turn_work: TURN_WORK,
            planted: Planted::default(),
        };
        let mut clock = Clock::new();
        let runtime = Runtime::recover(
            config,
            ranges.clone(),
            || clock.now(),
            |replayed| {
                let owner = Owner { cluster_id: CLUSTER_ID, node: 0, shards: 1 };
                match directory {
                    None => Ok(EmbeddedLog::in_memory()),
                    Some(path) => EmbeddedLog::in_directory(path, owner, |r| replayed.visit(r)),
                }
            },
        )?;
        clock.move_beyond(runtime.shard().logged_ts());
        let now_ts = Some(Timestamp::from_physical_us(clock.now().wall.reading_us()));
        let syncer = directory.map(|_| {
            let events = events.clone();
            Syncer::new(move |plan, synced| {
                // Fails only if the shard's thread has ended.
                let _ = events.send(Event::Synced(plan, synced));
            })
        });
        let running = Running {
            syncer: syncer.transpose().map_err(OpenError::Thread)?,
            is_syncing: false,
            sync_began_us: 0,
            runtime,
            inbox: Inbox::default(),
            clock,
            answers,
            tick_due_us: 0,
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

/// State of the shard's thread.
struct Running {
    /// Syncs the log of a directory. Dropped before the log: its thread ends first.
    syncer: Option<Syncer>,
    is_syncing: bool,
    /// When the sync began, on the monotonic clock.
    sync_began_us: u64,
    runtime: Runtime<EmbeddedLog>,
    inbox: Inbox,
    clock: Clock,
    answers: mpsc::Sender<Response>,
    tick_due_us: u64,
}

/// The connection of the only client.
const CLIENT: ConnectionId = ConnectionId(0);

impl Running {
    #[allow(
        clippy::needless_pass_by_value,
        reason = "the queue closes before the thread of the syncs is joined"
    )]
    fn run(mut self, events: Receiver<Event>) {
        let mut wake_after_us = None;
        loop {
            let mut next = match self.wait(&events, wake_after_us) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while let Some(event) = next {
                match event {
                    Event::Request(request) => {
                        self.inbox.push(Input::Request { connection: CLIENT, request });
                    }
                    Event::Synced(plan, Ok(())) => {
                        self.is_syncing = false;
                        let now_us = self.clock.now().monotonic_us;
                        self.runtime.shard_mut().record_sync(now_us - self.sync_began_us);
                        self.inbox.push(self.runtime.synced(&Sync::Directory(plan)));
                    }
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
                let has_room = self.inbox.has_room_for_requests();
                next = if has_room { events.try_recv().ok() } else { None };
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
        loop {
            if let Ok(event) = events.try_recv() {
                return Ok(event);
            }
            if self.clock.now().monotonic_us >= until_us {
                return Err(RecvTimeoutError::Timeout);
            }
            std::hint::spin_loop();
        }
    }

    /// Runs a turn and carries out its effects. Returns the microseconds until the next turn is
    /// due, or `None` if the next tick is early enough.
    fn turn(&mut self) -> Result<Option<u64>, WalError> {
        let now_us = self.clock.now().monotonic_us;
        if now_us >= self.tick_due_us {
            self.inbox.push(Input::Tick);
            self.tick_due_us = now_us + QUIET_TICK_US;
        }
        loop {
            let effects = self.runtime.turn(&mut self.inbox, self.clock.now());
            let ShardEffects { appends, replies, wake_after_us, .. } = effects;
            self.runtime.write(appends)?;
            for (_, response) in replies {
                // The client's queue is full, so the answer is dropped. The call ends by its
                // deadline.
                let _ = self.answers.try_send(response);
            }
            if !self.is_syncing {
                match self.runtime.sync_plan() {
                    Some(sync @ Sync::Memory { .. }) => {
                        self.inbox.push(self.runtime.synced(&sync));
                        continue;
                    }
                    Some(Sync::Directory(plan)) => {
                        let syncer = self.syncer.as_ref();
                        self.sync_began_us = self.clock.now().monotonic_us;
                        self.is_syncing = syncer.is_some_and(|syncer| syncer.start(plan));
                    }
                    None => {}
                }
            }
            // An error is reported by the requests that are refused for it.
            let _ = self.runtime.maintain(self.clock.now().monotonic_us);
            // A replica may have become active in this turn, and then needs a tick soon.
            if self.runtime.shard().active_replicas() > 0 {
                let soon_us = self.clock.now().monotonic_us + TICK_US;
                self.tick_due_us = self.tick_due_us.min(soon_us);
            }
            let inputs_us = (!self.inbox.is_empty()).then_some(0);
            let due_us = [wake_after_us, self.runtime.backlog_due_us(), inputs_us];
            return Ok(due_us.into_iter().flatten().min());
        }
    }
}
