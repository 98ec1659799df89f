//! Where the log is, and how it gets there.

use std::{
    fs::File,
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crossbeam::channel::{Receiver, Sender, bounded};
use palisade_wal::{Log, SyncPlan};

/// A log that is synced by a thread of its own.
#[derive(Debug)]
pub(crate) struct SyncedLog {
    pub(crate) log: Log,
    plans: Option<Sender<SyncPlan>>,
    syncs: Option<JoinHandle<()>>,
    is_syncing: bool,
}

impl SyncedLog {
    /// `done` gets every plan that is carried out, or why it could not be.
    pub(crate) fn new(
        log: Log,
        done: impl Fn(SyncPlan, io::Result<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let (plans, incoming) = bounded(1);
        let carry_out = move || sync_all(&incoming, done);
        let syncs = thread::Builder::new().name("palisade-sync".to_owned()).spawn(carry_out)?;
        Ok(Self { log, plans: Some(plans), syncs: Some(syncs), is_syncing: false })
    }

    /// Has what was appended synced, if nothing is being synced yet.
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
            // It has nothing to say: what failed was reported with its plan.
            let _ = syncs.join();
        }
    }
}

/// Syncs the data of one file after the other; the last stays open, for it comes again.
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
