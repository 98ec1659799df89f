//! A log in a directory, with the thread that syncs it.

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crossbeam::channel::{Receiver, Sender, bounded};
use palisade_wal::{Log, SyncPlan};

/// A log with its own sync thread. At most one sync runs at a time.
#[derive(Debug)]
pub(crate) struct SyncedLog {
    pub(crate) log: Log,
    plans: Option<Sender<SyncPlan>>,
    syncs: Option<JoinHandle<()>>,
    is_syncing: bool,
}

impl SyncedLog {
    /// Starts the sync thread. It calls `done` with each plan and the result of its sync.
    pub(crate) fn new(
        log: Log,
        done: impl Fn(SyncPlan, io::Result<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let (plans, incoming) = bounded(1);
        let carry_out = move || sync_all(&incoming, done);
        let syncs = thread::Builder::new().name("palisade-sync".to_owned()).spawn(carry_out)?;
        Ok(Self { log, plans: Some(plans), syncs: Some(syncs), is_syncing: false })
    }

    /// Starts the next sync, unless one is running or everything is durable.
    pub(crate) fn sync(&mut self) {
        if !self.is_syncing
            && let Some(plan) = self.log.sync_plan()
        {
            let plans = self.plans.as_ref().expect("it lives as long as this");
            self.is_syncing = plans.send(plan).is_ok();
        }
    }

    pub(crate) fn synced(&mut self, plan: &SyncPlan) {
        self.is_syncing = false;
        self.log.synced(plan);
    }
}

impl Drop for SyncedLog {
    fn drop(&mut self) {
        self.plans = None;
        if let Some(syncs) = self.syncs.take() {
            // Errors of syncs were reported with their plans.
            let _ = syncs.join();
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
