//! The log of an embedded database, and the thread that syncs it.

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crossbeam::channel::{Receiver, Sender, bounded};
use palisade_shard::{LOG_AHEAD_BYTES, LogSpace, ShardLog};
use palisade_wal::{
    Backend, DataDir, DataDirError, Log, LogOptions, Owner, Position, Record, Retained, SyncPlan,
    WalError,
};
use thiserror::Error;

const SEGMENT_BYTES: u64 = 32 << 20;
const LOG_LIMIT_BYTES: u64 = 4 << 30;

/// Why the storage of a database cannot be opened. No data was changed.
#[derive(Debug, Error)]
pub(crate) enum StorageError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Wal(#[from] WalError),
}

/// The log of an embedded database.
#[derive(Debug)]
pub(crate) enum EmbeddedLog {
    /// No log: every write counts as durable at once, and is lost with the engine.
    Memory { appends: u64, durable: u64, end: Position },
    /// A log in a directory that no other process can open meanwhile.
    Directory { log: Box<Log>, _lock: DataDir },
}

/// A sync that is to be carried out.
#[derive(Debug)]
pub(crate) enum Sync {
    /// Nothing is to be done: the first `appends` writes count as durable.
    Memory {
        appends: u64,
    },
    Directory(SyncPlan),
}

impl EmbeddedLog {
    /// Returns the log of a database in memory.
    pub(crate) fn in_memory() -> Self {
        Self::Memory { appends: 0, durable: 0, end: 0 }
    }

    /// Opens the log in a directory, which is created if it does not exist.
    pub(crate) fn in_directory(
        path: &Path,
        owner: Owner,
        visit: impl FnMut(Record<'_>),
    ) -> Result<Self, StorageError> {
        let lock = DataDir::open(path, owner)?;
        let options = LogOptions {
            cluster_id: owner.cluster_id,
            node: owner.node,
            shard: 0,
            segment_bytes: SEGMENT_BYTES,
            limit_bytes: LOG_LIMIT_BYTES,
            ahead_bytes: LOG_AHEAD_BYTES,
            backend: Backend::Mapped,
        };
        let log = Box::new(Log::open(&lock.log_dir(0), options, &|_| {}, visit)?);
        Ok(Self::Directory { log, _lock: lock })
    }
}

impl ShardLog for EmbeddedLog {
    type Plan = Sync;

    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        match self {
            Self::Memory { appends, end, .. } => {
                *appends += 1;
                *end += record.payload.len() as u64;
                Ok(())
            }
            Self::Directory { log, .. } => log.append(record).map(drop),
        }
    }

    fn space(&self) -> LogSpace {
        match self {
            Self::Memory { end, .. } => {
                LogSpace { first: *end, end: *end, left_bytes: u64::MAX, limit_bytes: u64::MAX }
            }
            Self::Directory { log, .. } => ShardLog::space(&**log),
        }
    }

    fn sync_plan(&self) -> Option<Sync> {
        match self {
            Self::Memory { appends, durable, .. } => {
                (appends > durable).then_some(Sync::Memory { appends: *appends })
            }
            Self::Directory { log, .. } => log.sync_plan().map(Sync::Directory),
        }
    }

    fn synced(&mut self, sync: &Sync) -> u64 {
        match (self, sync) {
            (Self::Memory { durable, .. }, Sync::Memory { appends }) => {
                *durable = *appends;
                *appends
            }
            (Self::Directory { log, .. }, Sync::Directory(plan)) => {
                log.synced(plan);
                plan.appends
            }
            _ => unreachable!("a log carries out its own syncs"),
        }
    }

    fn prepare(&mut self) -> Result<(), WalError> {
        match self {
            Self::Memory { .. } => Ok(()),
            Self::Directory { log, .. } => log.prepare(),
        }
    }

    fn reserve(&mut self, bytes: u64) {
        if let Self::Directory { log, .. } = self {
            log.reserve(bytes);
        }
    }

    fn is_long(&self, state_bytes: u64) -> bool {
        match self {
            Self::Memory { .. } => false,
            Self::Directory { log, .. } => log.is_long(state_bytes),
        }
    }

    fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained> {
        let retained = match self {
            Self::Memory { .. } => None,
            Self::Directory { log, .. } => Some(log.retained(applied)),
        };
        retained.into_iter().flatten()
    }

    fn forget(&mut self, group: u32) {
        if let Self::Directory { log, .. } = self {
            log.forget(group);
        }
    }
}

/// A thread that syncs the files of a log. At most one sync runs at a time.
#[derive(Debug)]
pub(crate) struct Syncer {
    plans: Option<Sender<SyncPlan>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread. It calls `done` with each plan and the result of its sync.
    pub(crate) fn new(
        done: impl Fn(SyncPlan, io::Result<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let (plans, incoming) = bounded(1);
        let carry_out = move || sync_all(&incoming, done);
        let thread = thread::Builder::new().name("palisade-sync".to_owned()).spawn(carry_out)?;
        Ok(Self { plans: Some(plans), thread: Some(thread) })
    }

    /// Starts a sync. Returns false if the thread has ended.
    pub(crate) fn start(&self, plan: SyncPlan) -> bool {
        self.plans.as_ref().is_some_and(|plans| plans.send(plan).is_ok())
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.plans = None;
        if let Some(thread) = self.thread.take() {
            // Errors of syncs were reported with their plans.
            let _ = thread.join();
        }
    }
}

/// Carries out plans in order. Keeps the last file open, because the next plan is likely to name
/// it.
fn sync_all(plans: &Receiver<SyncPlan>, done: impl Fn(SyncPlan, io::Result<()>)) {
    let mut open: Option<(Arc<Path>, File)> = None;
    for plan in plans {
        let synced = (|| {
            if open.as_ref().is_none_or(|(path, _)| *path != plan.path) {
                open = Some((plan.path.clone(), File::options().write(true).open(&plan.path)?));
            }
            open.as_ref().expect("it was opened just now").1.sync_data()
        })();
        done(plan, synced);
    }
}
