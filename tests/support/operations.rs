//! Records histories of single-key operations and snapshots over all ranges of a cluster, in both
//! modes at once.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use palisade_client::{Bytes, Client, ClientError, ClientOptions, MAX_VALUE_BYTES, Versioned};
use palisade_cluster::Cluster;
use palisade_history::{
    TimestampedOperation,
    timestamps::{Order, Saw},
};
use tokio::task::{LocalSet, spawn_local};

use crate::support::pause;

const CLIENTS: u64 = 12;
const KEYS: u32 = 48;

/// One in so many keys has values of up to 1 MiB.
const LARGE_EVERY: u32 = 8;

/// The state that all clients share.
struct Recorder {
    start: Instant,
    /// Part of every key, so that histories do not share keys.
    round: u8,
    stopping: Cell<bool>,
    next_value: Cell<u64>,
    next_process: Cell<u32>,
    history: RefCell<Vec<TimestampedOperation>>,
}

struct Worker {
    recorder: Rc<Recorder>,
    client: Client,
    random: fastrand::Rng,
    process: u32,
}

fn saw(found: Option<&Versioned>) -> Saw {
    found.map_or(Saw::Absent, |found| Saw::Value {
        ts: found.version_ts.to_bits(),
        value: u64::from_le_bytes(*found.value.first_chunk().expect("values have eight bytes")),
    })
}

impl Recorder {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a test is short")
    }

    fn next(counter: &Cell<u64>) -> u64 {
        counter.replace(counter.get() + 1)
    }

    /// Returns the key of a number. Keys are spread over all ranges.
    fn key(&self, number: u32) -> Bytes {
        let prefix = u16::try_from((number << 16) / KEYS).expect("it is below 65,536");
        [&prefix.to_be_bytes()[..], &[self.round], &number.to_be_bytes()].concat().into()
    }

    fn process(&self) -> u32 {
        self.next_process.replace(self.next_process.get() + 1)
    }
}

impl Worker {
    fn record(
        &self,
        start_ns: u64,
        order: Order,
        reads: Vec<(u32, Saw)>,
        writes: Vec<(u32, Option<u64>)>,
    ) {
        let (process, end_ns) = (self.process, self.recorder.now_ns());
        let operation = TimestampedOperation { process, start_ns, end_ns, order, reads, writes };
        self.recorder.history.borrow_mut().push(operation);
    }

    async fn put(&mut self, number: u32, bytes: usize) {
        let value = Recorder::next(&self.recorder.next_value);
        let mut content = vec![value as u8; bytes.max(8)];
        content[..8].copy_from_slice(&value.to_le_bytes());
        let start_ns = self.recorder.now_ns();
        let order = match self.client.put(self.recorder.key(number), content).await {
            Ok(committed) => Order::Commit(committed.commit_ts.to_bits()),
            Err(error) if error.is_outcome_unknown() => Order::Unknown,
            Err(_) => Order::Failed,
        };
        self.record(start_ns, order, Vec::new(), vec![(number, Some(value))]);
        if order == Order::Unknown {
            self.process = self.recorder.process();
        }
    }

    async fn get(&self, number: u32, of_key: bool) {
        let start_ns = self.recorder.now_ns();
        let (found, order) = match of_key {
            false => (self.client.get(self.recorder.key(number)).await, Order::Latest),
            true => (
                self.client.get_linearizable_by_key(self.recorder.key(number)).await,
                Order::LatestOfKey,
            ),
        };
        if let Ok(found) = found {
            self.record(start_ns, order, vec![(number, saw(found.as_ref()))], Vec::new());
        }
    }

    /// Reads some keys of different ranges at one timestamp.
    async fn snapshot(&mut self, is_stale: bool) -> Result<(), ClientError> {
        let snapshot = match is_stale {
            false => self.client.snapshot(),
            true => self.client.stale_snapshot(Duration::from_millis(200)),
        };
        let start_ns = self.recorder.now_ns();
        for _ in 0..4 {
            let number = self.random.u32(0..KEYS);
            let found = snapshot.get(self.recorder.key(number)).await?;
            let at = snapshot.at_ts().expect("it was read").to_bits();
            let order = if is_stale { Order::AsOf(at) } else { Order::Fresh(at) };
            self.record(start_ns, order, vec![(number, saw(found.as_ref()))], Vec::new());
        }
        Ok(())
    }

    async fn work(mut self) {
        while !self.recorder.stopping.get() {
            let number = self.random.u32(0..KEYS);
            match self.random.u8(0..12) {
                0..4 if number.is_multiple_of(LARGE_EVERY) && self.random.u8(0..6) == 0 => {
                    let bytes = self.random.usize(MAX_VALUE_BYTES / 4..=MAX_VALUE_BYTES);
                    self.put(number, bytes).await;
                }
                0..4 => self.put(number, 64).await,
                4..7 => self.get(number, false).await,
                7 => self.get(number, true).await,
                // A range without a leader or head ends the snapshot early.
                8..11 => drop(self.snapshot(false).await),
                _ => drop(self.snapshot(true).await),
            }
            pause(Duration::from_micros(self.random.u64(0..4_000))).await;
        }
    }

    /// Repeats: a slow put of a large value, meanwhile a fast put of a small one, and then a get of
    /// the key of the slow put.
    async fn overtake(mut self) {
        while !self.recorder.stopping.get() {
            let [slow, fast] = [self.random.u32(0..KEYS), self.random.u32(0..KEYS)];
            let mut other = Worker {
                recorder: self.recorder.clone(),
                client: self.client.clone(),
                random: self.random.fork(),
                process: self.recorder.process(),
            };
            let slow_put = other.put(slow, MAX_VALUE_BYTES);
            let then = async {
                pause(Duration::from_micros(self.random.u64(0..5_000))).await;
                self.put(fast, 8).await;
                self.get(slow, false).await;
            };
            futures_lite::future::zip(slow_put, then).await;
            pause(Duration::from_millis(20)).await;
        }
    }
}

/// Returns the history of a load of some length, while `disturb` acts on the cluster.
pub(crate) async fn record(
    cluster: &mut Cluster,
    round: u8,
    length: Duration,
    disturb: impl AsyncFnOnce(&mut Cluster),
) -> Vec<TimestampedOperation> {
    let recorder = Rc::new(Recorder {
        start: Instant::now(),
        round,
        stopping: Cell::new(false),
        next_value: Cell::new(1),
        next_process: Cell::new(0),
        history: RefCell::default(),
    });
    let limits = ClientOptions { timeout: Duration::from_secs(5), ..cluster.client_options() };
    let local = LocalSet::new();
    let work = async {
        let mut workers = Vec::new();
        for number in 0..CLIENTS {
            let client = Client::connect_local(&cluster.addresses(), limits).await.unwrap();
            let process = recorder.process();
            let random = fastrand::Rng::with_seed(number);
            let worker = Worker { recorder: recorder.clone(), client, random, process };
            workers.push(match number {
                0..2 => spawn_local(worker.overtake()),
                _ => spawn_local(worker.work()),
            });
        }
        let end = Instant::now() + length;
        disturb(cluster).await;
        pause(end.saturating_duration_since(Instant::now())).await;
        recorder.stopping.set(true);
        // Operations in flight are answered, or reach their deadline.
        for worker in workers {
            worker.await.expect("a worker does not panic");
        }
    };
    local.run_until(work).await;
    Rc::into_inner(recorder).expect("all workers have ended").history.into_inner()
}
