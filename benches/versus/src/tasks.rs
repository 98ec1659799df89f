//! Writers that are tasks of one executor and sync through its io_uring ring, as a shard does.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    path::PathBuf,
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use glommio::{LocalExecutorBuilder, Placement};
use palisade_server::LogFile;
use palisade_wal::{Backend, Log, Position, Record, WalError};

use crate::{PAYLOAD, commits::WARM_UP, palisade};

struct Shared {
    log: RefCell<Log>,
    waiting: RefCell<VecDeque<(Position, Waker)>>,
    /// Waker of the sync task, while there is nothing to sync.
    idle: RefCell<Option<Waker>>,
    commits: Cell<u64>,
    index: Cell<u64>,
    stopped: Cell<bool>,
}

/// Returns the durable records per second of so many tasks.
pub(crate) fn run(
    dir: PathBuf,
    backend: Backend,
    writers: usize,
    duration: Duration,
) -> anyhow::Result<f64> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(Duration::from_secs(3600))
        .io_memory(4 << 20)
        .spawn(move || measure(dir, backend, writers, duration));
    let executor = executor.map_err(|error| anyhow::anyhow!("no executor: {error}"))?;
    executor.join().map_err(|error| anyhow::anyhow!("the executor ended: {error}"))?
}

async fn measure(
    dir: PathBuf,
    backend: Backend,
    writers: usize,
    duration: Duration,
) -> anyhow::Result<f64> {
    let mut index = 0;
    let log = Log::open(&dir, palisade::options(backend), &|_| {}, |found| index = found.index)?;
    let shared = Rc::new(Shared {
        log: RefCell::new(log),
        waiting: RefCell::default(),
        idle: RefCell::default(),
        commits: Cell::new(0),
        index: Cell::new(index),
        stopped: Cell::new(false),
    });
    let syncing = glommio::spawn_local(sync(shared.clone(), backend));
    let tasks: Vec<_> = (0..writers).map(|_| glommio::spawn_local(write(shared.clone()))).collect();
    glommio::timer::sleep(WARM_UP).await;
    let (start, before) = (Instant::now(), shared.commits.get());
    glommio::timer::sleep(duration).await;
    let rate = (shared.commits.get() - before) as f64 / start.elapsed().as_secs_f64();
    shared.stopped.set(true);
    for task in tasks {
        task.await?;
    }
    syncing.cancel().await.unwrap_or(Ok(()))?;
    Ok(rate)
}

async fn append(shared: &Shared, record: &Record<'_>) -> anyhow::Result<Position> {
    loop {
        let appended = shared.log.borrow_mut().append(record);
        match appended {
            Err(WalError::NotReady) => glommio::timer::sleep(Duration::from_millis(1)).await,
            appended => return Ok(appended?),
        }
    }
}

async fn write(shared: Rc<Shared>) -> anyhow::Result<()> {
    while !shared.stopped.get() {
        let index = shared.index.get() + 1;
        shared.index.set(index);
        let mut end = append(&shared, &palisade::record(index, &PAYLOAD)).await?;
        for record in palisade::checkpoint(index) {
            end = append(&shared, &record).await?;
        }
        if let Some(waker) = shared.idle.take() {
            waker.wake();
        }
        poll_fn(|context| {
            if shared.log.borrow().durable() >= end {
                return Poll::Ready(());
            }
            shared.waiting.borrow_mut().push_back((end, context.waker().clone()));
            Poll::Pending
        })
        .await;
        shared.commits.set(shared.commits.get() + 1);
    }
    Ok(())
}

async fn sync(shared: Rc<Shared>, backend: Backend) -> anyhow::Result<()> {
    let mut file = LogFile::new(backend);
    loop {
        let plan = poll_fn(|context| {
            let plan = shared.log.borrow().sync_plan();
            plan.map_or_else(
                || {
                    *shared.idle.borrow_mut() = Some(context.waker().clone());
                    Poll::Pending
                },
                Poll::Ready,
            )
        })
        .await;
        let pages = |at: usize, out: &mut [u8]| {
            out.copy_from_slice(&shared.log.borrow().pages(&plan)[at..at + out.len()]);
        };
        let carried_out = file.carry_out(&plan, pages).await;
        carried_out.map_err(|error| anyhow::anyhow!("a sync failed: {error}"))?;
        shared.log.borrow_mut().synced(&plan);
        let mut waiting = shared.waiting.borrow_mut();
        while let Some((_, waker)) = waiting.pop_front_if(|(end, _)| *end <= plan.up_to) {
            waker.wake();
        }
    }
}
