//! Closed and open loops.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use palisade_client::{Client, ClientError};
use palisade_history::Operation;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet, spawn_local},
    time::sleep,
};

use crate::{
    keys::Keys,
    measure::{Measured, Moment, Recorder},
    pacer::Pacer,
    session::Shared,
};

/// Operations that an open loop has under way at most; what falls due beyond that waits, and its
/// latency counts on.
const MAX_OPEN_LOOP: usize = 8 * 1024;

/// Between two looks at what has fallen due, at least.
const OPEN_LOOP_STEP: Duration = Duration::from_micros(100);

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Puts alone.
    Put,
    /// Gets alone, of keys that were written before.
    Get,
    /// Puts, and so many percent of gets.
    Mixed {
        /// The share of gets.
        read_percent: u32,
    },
}

impl Workload {
    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed { .. } => "mixed",
        }
    }

    fn reads(self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Put => false,
            Self::Get => true,
            Self::Mixed { read_percent } => random.u32(0..100) < read_percent,
        }
    }
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What the clients do.
    pub workload: Workload,
    /// How many clients a closed loop has.
    pub clients: u32,
    /// Operations per second of an open loop; `None` for a closed one.
    pub rate: Option<u64>,
    /// Size of the values.
    pub value_bytes: usize,
    /// How long to run before measuring.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
    /// Decides which keys are used.
    pub seed: u64,
    /// Whether to keep the history.
    pub record: bool,
}

/// Why a load can't run.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The keys could not be written before the load.
    #[error("the keys could not be written before the load: {0}")]
    Preload(ClientError),
}

/// Writes every key once. Returns the history of that; its times begin at `start`.
pub async fn preload(
    client: &Client,
    keys: &Keys,
    value_bytes: usize,
    start: Instant,
) -> Result<Vec<Operation>, LoadError> {
    const WRITERS: u32 = 128;
    let shared = shared(client, keys, value_bytes, true, start, Vec::new());
    let local = LocalSet::new();
    let run = async {
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let shared = shared.clone();
            writers.spawn_local(async move {
                let process = shared.process();
                for key in (writer..shared.keys.count()).step_by(WRITERS as usize) {
                    shared.put(process, key, None).await;
                }
            });
        }
        writers.join_all().await;
    };
    local.run_until(run).await;
    let history = std::mem::take(&mut shared.recorder.borrow_mut().history);
    let failed = history.iter().find(|o| o.outcome != palisade_history::Outcome::Ok);
    if failed.is_some() {
        // One plain call tells what is wrong.
        client.put(keys.key(0), vec![0; 8]).await.map_err(LoadError::Preload)?;
    }
    Ok(history)
}

/// Runs a load to its end. `history` is what was recorded before, with times from the same `start`.
/// `on` is called at the moments of the run. To be polled on one thread.
pub async fn run(
    client: &Client,
    keys: &Keys,
    options: LoadOptions,
    start: Instant,
    history: Vec<Operation>,
    on: impl Fn(Moment),
) -> Measured {
    let shared = shared(client, keys, options.value_bytes, options.record, start, history);
    let local = LocalSet::new();
    let measuring = async {
        match options.rate {
            None => closed_loop(&shared, options),
            Some(rate) => {
                spawn_local(open_loop(shared.clone(), options, rate));
            }
        }
        sleep(options.warm_up).await;
        on(Moment::MeasuringBegins);
        shared.recorder.borrow_mut().begin(shared.now_ns());
        sleep(options.duration).await;
        shared.recorder.borrow_mut().end(shared.now_ns());
        on(Moment::MeasuringEnds);
        shared.stopping.set(true);
    };
    local.run_until(measuring).await;
    // What is under way is answered, or its deadline passes.
    local.await;
    let shared = Rc::into_inner(shared).expect("every client has ended");
    shared.recorder.into_inner().finish()
}

fn shared(
    client: &Client,
    keys: &Keys,
    value_bytes: usize,
    record: bool,
    start: Instant,
    history: Vec<Operation>,
) -> Rc<Shared> {
    Rc::new(Shared {
        client: client.clone(),
        next_value: Cell::new(history.len() as u64 + 1),
        next_process: Cell::new(history.iter().map(|o| o.process + 1).max().unwrap_or(0)),
        recorder: RefCell::new(Recorder::new(keys.ranges(), history)),
        keys: keys.clone(),
        value_bytes,
        record,
        start,
        idle_processes: RefCell::default(),
        stopping: Cell::new(false),
    })
}

fn closed_loop(shared: &Rc<Shared>, options: LoadOptions) {
    for client in 0..options.clients {
        let shared = shared.clone();
        spawn_local(async move {
            let mut random = fastrand::Rng::with_seed(options.seed ^ (u64::from(client) << 32));
            let mut process = shared.process();
            while !shared.stopping.get() {
                let key = random.u32(0..shared.keys.count());
                process = if options.workload.reads(&mut random) {
                    shared.get(process, key, None).await
                } else {
                    shared.put(process, key, None).await
                };
            }
        });
    }
}

async fn open_loop(shared: Rc<Shared>, options: LoadOptions, rate: u64) {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let room = Arc::new(Semaphore::new(MAX_OPEN_LOOP));
    let step = Duration::from_nanos(1_000_000_000 / rate.max(1)).max(OPEN_LOOP_STEP);
    let pacer = Pacer::start(step).expect("a process may start one more thread");
    let begin_ns = shared.now_ns();
    let mut sent = 0_u64;
    while !shared.stopping.get() {
        let elapsed_ns = u128::from(shared.now_ns() - begin_ns);
        let due = u64::try_from(elapsed_ns * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        while sent < due && !shared.stopping.get() {
            let due_ns = begin_ns + (u128::from(sent) * 1_000_000_000 / u128::from(rate)) as u64;
            sent += 1;
            let key = random.u32(0..shared.keys.count());
            let reads = options.workload.reads(&mut random);
            let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
            let shared = shared.clone();
            spawn_local(async move {
                let process = shared.process();
                let process = if reads {
                    shared.get(process, key, Some(due_ns)).await
                } else {
                    shared.put(process, key, Some(due_ns)).await
                };
                shared.idle_processes.borrow_mut().push(process);
                drop(permit);
            });
        }
        pacer.tick().await;
    }
}
