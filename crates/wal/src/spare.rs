//! The next segment, prepared on a thread of its own.
//!
//! Pre-writing takes tens of milliseconds of disk time, which a shard's thread can't wait for.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded};

use crate::{WalError, segment::Segment};

/// Keeps one segment ahead.
#[derive(Debug)]
pub(crate) struct SpareSegments {
    /// `None` only while this is being dropped.
    orders: Option<Sender<PathBuf>>,
    thread: Option<JoinHandle<()>>,
    ready: Receiver<Result<Segment, WalError>>,
}

impl SpareSegments {
    /// Starts the preparing thread; dropping this waits for its end, so that no file appears in a
    /// directory that somebody else has opened since.
    pub(crate) fn start(dir: &Path, segment_bytes: u64) -> Result<Self, WalError> {
        let (orders, incoming) = bounded::<PathBuf>(1);
        let (outgoing, ready) = bounded(1);
        let dir = dir.to_owned();
        let spawned_in = dir.clone();
        let thread = thread::Builder::new()
            .name("palisade-spare".to_owned())
            .spawn(move || {
                for path in incoming {
                    if outgoing.send(prepare(&dir, &path, segment_bytes)).is_err() {
                        return;
                    }
                }
            })
            .map_err(WalError::io("start the segment thread for", &spawned_in))?;
        Ok(Self { orders: Some(orders), thread: Some(thread), ready })
    }

    /// Asks for the next spare; at most one order is open at a time.
    pub(crate) fn order(&self, path: PathBuf) {
        let orders = self.orders.as_ref().expect("there until dropped");
        orders.try_send(path).expect("one order at a time, and the thread lives as long as we");
    }

    /// The spare that was ordered, if it is ready.
    pub(crate) fn try_take(&self) -> Result<Segment, WalError> {
        match self.ready.try_recv() {
            Ok(segment) => segment,
            Err(TryRecvError::Empty) => Err(WalError::NotReady),
            Err(TryRecvError::Disconnected) => unreachable!("the thread outlives the log"),
        }
    }

    /// The spare that was ordered, however long it takes: for the start, before anything is served.
    pub(crate) fn take(&self) -> Result<Segment, WalError> {
        self.ready.recv().expect("the thread outlives the log")
    }
}

impl Drop for SpareSegments {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // The thread holds at most one finished segment, for which the channel has room.
            let _ = thread.join();
        }
    }
}

fn prepare(dir: &Path, path: &Path, segment_bytes: u64) -> Result<Segment, WalError> {
    // Under another name until it is whole: a crash in the middle leaves a file that is removed at
    // the next start, not one of the wrong length.
    let unfinished = path.with_extension("tmp");
    let mut segment = Segment::create(&unfinished, segment_bytes)?;
    std::fs::rename(&unfinished, path).map_err(WalError::io("rename", &unfinished))?;
    let directory = File::open(dir).map_err(WalError::io("open", dir))?;
    directory.sync_all().map_err(WalError::io("sync", dir))?;
    segment.path = path.to_owned();
    Ok(segment)
}
