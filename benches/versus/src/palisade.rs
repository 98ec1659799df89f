//! Palisade's log, used by threads that block.

use std::{fs::File, path::Path, sync::Arc};

use palisade_wal::{Backend, Log, LogOptions, Record, RecordKind, SyncPlan, WalError};

use crate::{
    direct_file::{self, Pages},
    group_commit::GroupLog,
};

const MAX_BATCH_BYTES: usize = 2 << 20;

/// The log, with the file and the buffer for blocking syncs.
pub(crate) struct Palisade {
    log: Log,
    index: u64,
    /// True if checkpoints truncate the head of the log, so that segments are reused.
    is_cut: bool,
    backend: Backend,
    /// The file of the segment that was synced last.
    open: Option<(Arc<Path>, Arc<File>)>,
    pages: Option<Pages>,
}

pub(crate) fn options(backend: Backend) -> LogOptions {
    LogOptions {
        cluster_id: 1,
        node: 0,
        shard: 0,
        segment_bytes: 32 << 20,
        limit_bytes: 16 << 30,
        ahead_bytes: 0,
        backend,
    }
}

pub(crate) fn record(index: u64, payload: &[u8]) -> Record<'_> {
    Record { kind: RecordKind::Entry, group: 1, term: 1, index, part: 0, payload }
}

/// Records between two checkpoints. A checkpoint lets the log drop the records before it.
const CHECKPOINT_RECORDS: u64 = 50_000;

/// Returns the two records of a checkpoint of an empty state at `index`, or none if none is due.
pub(crate) fn checkpoint(index: u64) -> impl Iterator<Item = Record<'static>> {
    let kinds = [(RecordKind::Snapshot, 0), (RecordKind::SnapshotEnd, 1)];
    let record = move |(kind, part)| Record { kind, group: 1, term: 1, index, part, payload: &[] };
    kinds.into_iter().filter(move |_| index.is_multiple_of(CHECKPOINT_RECORDS)).map(record)
}

/// Appends a record. Waits while the next segment is being prepared.
fn append(log: &mut Log, record: &Record<'_>) -> anyhow::Result<u64> {
    loop {
        match log.append(record) {
            Err(WalError::NotReady) => std::thread::yield_now(),
            appended => return Ok(appended?),
        }
    }
}

impl Palisade {
    pub(crate) fn create(dir: &Path, backend: Backend, is_cut: bool) -> anyhow::Result<Self> {
        let log = Log::open(dir, options(backend), &|_| {}, |_| {})?;
        let pages = Some(Pages::new(MAX_BATCH_BYTES));
        Ok(Self { log, index: 0, is_cut, backend, open: None, pages })
    }

    pub(crate) fn into_log(self) -> Log {
        self.log
    }
}

/// A sync plan, with a copy of its pages if the backend writes them directly.
pub(crate) struct Batch {
    plan: SyncPlan,
    file: Arc<File>,
    pages: Option<Pages>,
}

impl Batch {
    pub(crate) fn plan(&self) -> &SyncPlan {
        &self.plan
    }
}

impl Palisade {
    fn batch(&mut self, plan: SyncPlan) -> anyhow::Result<Batch> {
        if self.open.as_ref().is_none_or(|(path, _)| *path != plan.path) {
            let file = match self.backend {
                Backend::Mapped => File::open(&plan.path)?,
                Backend::Direct => direct_file::open(&plan.path)?,
            };
            self.open = Some((plan.path.clone(), Arc::new(file)));
        }
        let (_, file) = self.open.as_ref().expect("it was just opened");
        let file = file.clone();
        let mut pages = None;
        if self.backend == Backend::Direct {
            let mut filled = self.pages.take().expect("one batch is written at a time");
            filled.clear();
            filled.push(self.log.pages(&plan));
            pages = Some(filled);
        }
        Ok(Batch { plan, file, pages })
    }
}

impl GroupLog for Palisade {
    type Batch = Batch;

    fn append(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.index += 1;
        append(&mut self.log, &record(self.index, payload))?;
        if self.is_cut {
            for record in checkpoint(self.index) {
                append(&mut self.log, &record)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> anyhow::Result<Batch> {
        loop {
            let plan = self.log.sync_plan().expect("something was appended");
            let seals = plan.seals;
            let batch = self.batch(plan)?;
            if !seals {
                return Ok(batch);
            }
            // A sealed segment is synced under the lock, once in about a hundred thousand records.
            Self::sync(&batch)?;
            self.end(batch);
        }
    }

    fn sync(batch: &Batch) -> anyhow::Result<()> {
        match &batch.pages {
            Some(pages) => pages.write_to(&batch.file, batch.plan.pages.start),
            None => Ok(batch.file.sync_data()?),
        }
    }

    fn end(&mut self, batch: Batch) {
        if batch.pages.is_some() {
            self.pages = batch.pages;
        }
        self.log.synced(&batch.plan);
    }
}
