//! Prepares new segments and closes old ones on a thread of its own.
//!
//! The shard's thread can't wait for any of this. Pre-writing takes tens of milliseconds of disk
//! time, and reading a reused file back into the page cache may take as long. Allocating memory
//! touches every page of it, and unmapping walks them.

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

/// The handle of the thread that prepares and closes segments.
#[derive(Debug)]
pub(crate) struct SpareSegments {
    /// `None` only during drop.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
    ready: Receiver<Result<Segment, WalError>>,
}

/// A task for the thread.
#[derive(Debug)]
pub(crate) enum Order {
    /// Create a new segment file.
    Create(PathBuf),
    /// Reuse a file that is no longer needed.
    Recycle(PathBuf),
    /// Close a segment that is sealed and durable.
    LetGo(Segment),
}

impl SpareSegments {
    /// Starts the thread. Drop waits until it ends, so that it can't create a file after another
    /// log has opened the directory.
    pub(crate) fn start(dir: &Path, options: &LogOptions) -> Result<Self, WalError> {
        // Unbounded but short: at most one segment is prepared at a time, and few are closed
        // meanwhile.
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

    /// Sends an order to the thread. At most one segment may be pending at a time.
    pub(crate) fn order(&self, order: Order) {
        let orders = self.orders.as_ref().expect("there until dropped");
        orders.send(order).expect("the thread lives as long as we");
    }

    /// Returns the segment that was ordered, or [`WalError::NotReady`] if it is still being
    /// prepared.
    pub(crate) fn try_take(&self) -> Result<Segment, WalError> {
        match self.ready.try_recv() {
            Ok(segment) => segment,
            Err(TryRecvError::Empty) => Err(WalError::NotReady),
            Err(TryRecvError::Disconnected) => unreachable!("the thread outlives the log"),
        }
    }

    /// Waits for the segment that was ordered. Blocks: used only while the log is being opened.
    pub(crate) fn take(&self) -> Result<Segment, WalError> {
        self.ready.recv().expect("the thread outlives the log")
    }
}

impl Drop for SpareSegments {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // Can't deadlock: the thread holds at most one finished segment, which fits the
            // channel.
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
    // Created under a temporary name. After a crash, the next start removes the unfinished file,
    // and finds no segment of the wrong length.
    let unfinished = path.with_extension("tmp");
    let mut segment = Segment::create(&unfinished, options, memory).inspect_err(|_| {
        // Frees space on a full disk. If this fails, the next start removes the file.
        let _ = std::fs::remove_file(&unfinished);
    })?;
    std::fs::rename(&unfinished, path).map_err(WalError::io("rename", &unfinished))?;
    let directory = File::open(dir).map_err(WalError::io("open", dir))?;
    directory.sync_all().map_err(WalError::io("sync", dir))?;
    segment.path = path.into();
    Ok(segment)
}
