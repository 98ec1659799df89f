//! The next segment, prepared on a thread of its own; and old ones, let go of there.
//!
//! Pre-writing takes tens of milliseconds of disk time, bringing a recycled file back into the page
//! cache may take as long, finding memory touches every page of it, and unmapping walks them: a
//! shard's thread can't wait for any of these.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};

use crate::{
    LogOptions, WalError,
    segment::{Memory, Segment},
};

/// Keeps one segment ahead.
#[derive(Debug)]
pub(crate) struct SpareSegments {
    /// `None` only while this is being dropped.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    ready: Receiver<Result<Segment, WalError>>,
}

/// What the thread does.
#[derive(Debug)]
pub(crate) enum Order {
    /// Make a new segment.
    Create(PathBuf),
    /// Make a segment out of a file that is not needed any more.
    Recycle(PathBuf),
    /// Close a segment that is sealed and durable.
    LetGo(Segment),
}

impl SpareSegments {
    /// Starts the preparing thread; dropping this waits for its end, so that no file appears in a
    /// directory that somebody else has opened since.
    pub(crate) fn start(dir: &Path, options: &LogOptions) -> Result<Self, WalError> {
        // At most one segment is prepared at a time, and few are let go of meanwhile.
        let (orders, incoming) = unbounded();
        let (outgoing, ready) = bounded(1);
        let (dir, options) = (dir.to_owned(), *options);
        let spawned_in = dir.clone();
        let thread = thread::Builder::new()
            .name("palisade-spare".to_owned())
            .spawn(move || {
                let mut memory = None;
                for order in incoming {
                    let prepared = match order {
                        Order::Create(path) => create(&dir, &path, &options, memory.take()),
                        Order::Recycle(path) => Segment::open(&path, &options, memory.take()),
                        Order::LetGo(segment) => {
                            memory = segment.let_go(&options);
                            continue;
                        }
                    };
                    if outgoing.send(prepared).is_err() {
                        return;
                    }
                }
            })
            .map_err(WalError::io("start the segment thread for", &spawned_in))?;
        Ok(Self { orders: Some(orders), thread: Some(thread), ready })
    }

    /// Has something done; at most one segment may be under way at a time.
    pub(crate) fn order(&self, order: Order) {
        let orders = self.orders.as_ref().expect("there until dropped");
        orders.send(order).expect("the thread lives as long as we");
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

fn create(
    dir: &Path,
    path: &Path,
    options: &LogOptions,
    memory: Option<Memory>,
) -> Result<Segment, WalError> {
    // Under another name until it is whole: a crash in the middle leaves a file that is removed at
    // the next start, not one of the wrong length.
    let unfinished = path.with_extension("tmp");
    let mut segment = Segment::create(&unfinished, options, memory).inspect_err(|_| {
        // On a full disk this makes room for somebody; if it fails, the next start removes it.
        let _ = std::fs::remove_file(&unfinished);
    })?;
    std::fs::rename(&unfinished, path).map_err(WalError::io("rename", &unfinished))?;
    let directory = File::open(dir).map_err(WalError::io("open", dir))?;
    directory.sync_all().map_err(WalError::io("sync", dir))?;
    segment.path = path.into();
    Ok(segment)
}
