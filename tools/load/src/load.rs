//! Closed and open loops.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use palisade_client::{Client, ClientError};
use palisade_history::{Action, Completion, Operation};
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
    session::{Shared, unique},
};

/// Maximum number of operations that an open loop has in flight. Operations that fall due beyond it
/// wait, and the wait counts as latency.
const MAX_OPEN_LOOP: usize = 128 * 1024;

/// Minimum time between two checks for operations that have fallen due.
const OPEN_LOOP_STEP: Duration = Duration::from_micros(100);

/// The operations that the clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Only puts.
    Put,
    /// Only gets, of keys that were written before.
    Get,
    /// Only gets that are linearizable for their key alone; a chain's tail serves them.
    GetByKey,
    /// Puts and gets.
    Mixed {
        /// The share of gets, in percent.
        read_percent: u32,
    },
}

impl Workload {
    /// Returns the name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::GetByKey => "get-by-key",
            Self::Mixed { .. } => "mixed",
        }
    }

    fn reads(self, random: &mut fastrand::Rng) -> bool {
        match self {
            Self::Put => false,
            Self::Get | Self::GetByKey => true,
            Self::Mixed { read_percent } => random.u32(0..100) < read_percent,
        }
    }
}

/// The parameters of a load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// The operations that the clients send.
    pub workload: Workload,
    /// Number of clients of a closed loop.
    pub clients: u32,
    /// Operations per second of an open loop; `None` for a closed loop.
    pub rate: Option<u64>,
    /// Time limit of an operation, from when it was due. Those that take longer count as errors.
    /// `None` for the limit of the client, from when an operation was sent.
    pub timeout: Option<Duration>,
    /// Size of a value, in bytes, but at least 8.
    pub value_bytes: usize,
    /// How long to run before measuring begins.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
    /// Seeds the choice of keys and of puts or gets.
    pub seed: u64,
    /// Whether to keep the history.
    pub record: bool,
}

/// Why a load failed.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The keys could not be written before the load.
    #[error("the keys could not be written before the load: {0}")]
    Preload(ClientError),
    /// A key could not be read after the load.
    #[error("key {key} could not be read back after the load: {source}")]
    ReadBack {
        /// The number of the key.
        key: u32,
        /// The error of the get.
        source: ClientError,
    },
}

/// Writes every key once, and returns the history. Its times count from `start`.
///
/// # Errors
///
/// Returns [`LoadError::Preload`] if a put did not succeed and one more put fails as well.
pub async fn preload(
    client: &Client,
    keys: &Keys,
    value_bytes: usize,
    start: Instant,
) -> Result<Vec<Operation>, LoadError> {
    const WRITERS: u32 = 128;
    let shared = shared(client, keys, value_bytes, true, false, start, Vec::new());
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
    let failed = history.iter().find(|o| o.outcome != Completion::Ok);
    if failed.is_some() {
        // The history does not have the cause. A read returns it, and changes nothing.
        client.get(keys.key(0)).await.map_err(LoadError::Preload)?;
    }
    Ok(history)
}

/// Reads every key once after a load, and adds the reads to its history. Only such reads show the
/// writes that a load of puts alone has lost.
///
/// # Errors
///
/// Returns [`LoadError::ReadBack`] if a key cannot be read.
pub async fn read_back(
    client: &Client,
    keys: &Keys,
    start: Instant,
    history: &mut Vec<Operation>,
) -> Result<(), LoadError> {
    const READERS: u32 = 128;
    let first = history.iter().map(|operation| operation.process + 1).max().unwrap_or(0);
    let run = async {
        let mut readers = JoinSet::new();
        for reader in 0..READERS {
            let (client, keys) = (client.clone(), keys.clone());
            readers.spawn_local(async move {
                let mut read = Vec::new();
                for key in (reader..keys.count()).step_by(READERS as usize) {
                    read.push(read_one(&client, &keys, key, first + reader, start).await?);
                }
                Ok::<_, LoadError>(read)
            });
        }
        readers.join_all().await
    };
    for read in LocalSet::new().run_until(run).await {
        history.extend(read?);
    }
    Ok(())
}

async fn read_one(
    client: &Client,
    keys: &Keys,
    key: u32,
    process: u32,
    start: Instant,
) -> Result<Operation, LoadError> {
    let now_ns = || u64::try_from(start.elapsed().as_nanos()).expect("a load is short");
    let start_ns = now_ns();
    let found = client.get(keys.key(key)).await;
    let found = found.map_err(|source| LoadError::ReadBack { key, source })?;
    let action = Action::Read(found.map(|found| unique(&found.value)));
    Ok(Operation { process, start_ns, end_ns: now_ns(), key, action, outcome: Completion::Ok })
}

/// Runs a load to its end, on the thread that polls it. `history` holds the operations recorded
/// before, with times from the same `start`. `on` is awaited just before measuring begins and just
/// after it ends, so that its own readings cover the measured time.
pub async fn run(
    client: &Client,
    keys: &Keys,
    options: LoadOptions,
    start: Instant,
    history: Vec<Operation>,
    on: impl AsyncFn(Moment),
) -> Measured {
    let by_key = options.workload == Workload::GetByKey;
    let client = options.timeout.map_or(client.clone(), |timeout| client.with_timeout(timeout));
    let shared = shared(&client, keys, options.value_bytes, options.record, by_key, start, history);
    if let Some(timeout) = options.timeout {
        shared.recorder.borrow_mut().limit(timeout);
    }
    let local = LocalSet::new();
    let measuring = async {
        match options.rate {
            None => closed_loop(&shared, options),
            Some(rate) => {
                spawn_local(open_loop(shared.clone(), options, rate));
            }
        }
        sleep(options.warm_up).await;
        on(Moment::MeasuringBegins).await;
        shared.recorder.borrow_mut().begin(shared.now_ns());
        sleep(options.duration).await;
        shared.recorder.borrow_mut().end(shared.now_ns(), shared.backlog());
        on(Moment::MeasuringEnds).await;
        shared.stopping.set(true);
    };
    local.run_until(measuring).await;
    // Wait until each operation in flight is answered or its deadline passes.
    local.await;
    let shared = Rc::into_inner(shared).expect("every client has ended");
    shared.recorder.into_inner().finish()
}

fn shared(
    client: &Client,
    keys: &Keys,
    value_bytes: usize,
    record: bool,
    by_key: bool,
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
        by_key,
        start,
        sent: Cell::new(0),
        ended: Cell::new(0),
        due: Cell::new(None),
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
    shared.due.set(Some((begin_ns, rate)));
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
