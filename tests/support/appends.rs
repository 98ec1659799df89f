//! Records transactions that append to lists, so that their order can be checked.

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use palisade_client::{Bytes, Client, ClientError, Mode, Transaction};
use palisade_history::{AppendViolation, Completion, Step, Transaction as Recorded, check_appends};

use crate::support::keys;

const LISTS: u32 = 5;
const CLIENTS: u32 = 12;

/// The transactions of all clients, as the clients saw them.
pub(crate) struct Recorder {
    start: Instant,
    history: RefCell<Vec<Recorded>>,
    next_element: Cell<u64>,
}

/// The keys of the lists. They share a prefix, so they lie in one range.
pub(crate) struct Lists {
    prefix: Vec<u8>,
}

impl Lists {
    fn key(&self, list: u32) -> Vec<u8> {
        [&self.prefix[..], &list.to_be_bytes()].concat()
    }

    fn of(&self, key: &[u8]) -> u32 {
        u32::from_be_bytes(*key.last_chunk().expect("it is a list's"))
    }
}

fn elements(value: Option<&Bytes>) -> Vec<u64> {
    let (whole, _) = value.map_or(&[][..], |value| value).as_chunks();
    whole.iter().map(|element| u64::from_le_bytes(*element)).collect()
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), history: RefCell::default(), next_element: Cell::new(1) }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a test is short")
    }

    fn add(&self, process: u32, start_ns: u64, steps: Vec<Step>, outcome: Completion) {
        let end_ns = self.now_ns();
        self.history.borrow_mut().push(Recorded { process, start_ns, end_ns, steps, outcome });
    }

    fn element(&self) -> u64 {
        self.next_element.replace(self.next_element.get() + 1)
    }

    /// Runs a transaction of some steps and records it. Each failed try is recorded, too.
    async fn transact(&self, process: u32, client: &Client, lists: &Lists, seed: u64) {
        let tries = RefCell::new(Vec::new());
        let result = client
            .run(async |tx: &mut Transaction| {
                tries.borrow_mut().push((self.now_ns(), Vec::new()));
                let record = |step: Step| {
                    tries.borrow_mut().last_mut().expect("it was begun").1.push(step);
                };
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..random.usize(1..4) {
                    let key = random.u32(0..LISTS);
                    match random.u8(0..6) {
                        0 => {
                            let rows = tx.scan_prefix(lists.prefix.clone()).all().await?;
                            for key in 0..LISTS {
                                let row = rows.iter().find(|(of, _)| lists.of(of) == key);
                                let list = elements(row.map(|(_, value)| value));
                                record(Step::Read { key, list });
                            }
                        }
                        1 | 2 => {
                            let list = elements(tx.get(lists.key(key)).await?.as_ref());
                            record(Step::Read { key, list });
                        }
                        how => {
                            let value = match how {
                                3 => tx.get_for_update(lists.key(key)).await?,
                                _ => tx.get(lists.key(key)).await?,
                            };
                            let list = elements(value.as_ref());
                            let element = self.element();
                            let all = list.iter().chain([&element]);
                            let value = all.flat_map(|element| element.to_le_bytes());
                            tx.put(lists.key(key), value.collect::<Vec<_>>())?;
                            record(Step::Read { key, list });
                            record(Step::Append { key, element });
                        }
                    }
                }
                Ok::<_, ClientError>(())
            })
            .await;
        let mut tries = tries.into_inner();
        let (start_ns, steps) = tries.pop().expect("it was tried");
        for (start_ns, steps) in tries {
            self.add(process, start_ns, steps, Completion::Fail);
        }
        let outcome = match result {
            Ok(()) => Completion::Ok,
            Err(error) if error.is_outcome_unknown() => Completion::Info,
            Err(_) => Completion::Fail,
        };
        self.add(process, start_ns, steps, outcome);
    }

    /// Records a read of all lists in a snapshot, or of one list without a snapshot.
    async fn look(&self, process: u32, client: &Client, lists: &Lists, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let (start_ns, mut steps) = (self.now_ns(), Vec::new());
        let snapshot = (random.u8(0..3) > 0).then(|| client.snapshot());
        let all = if snapshot.is_some() { 0..LISTS } else { 2..3 };
        for key in all {
            let found = match &snapshot {
                Some(snapshot) => snapshot.get(lists.key(key)).await,
                None => client.get(lists.key(key)).await,
            };
            let Ok(found) = found else { return };
            let list = elements(found.map(|found| found.value).as_ref());
            steps.push(Step::Read { key, list });
        }
        self.add(process, start_ns, steps, Completion::Ok);
    }

    /// Runs all clients concurrently, until each has done `rounds` transactions or reads.
    pub(crate) async fn all(&self, client: &Client, lists: &Lists, rounds: u64) {
        let one = async |process: u32| {
            for round in 0..rounds {
                let seed = u64::from(process) << 32 | round;
                if process.is_multiple_of(4) {
                    self.look(process, client, lists, seed).await;
                } else {
                    self.transact(process, client, lists, seed).await;
                }
            }
        };
        let mut clients: Vec<_> = (0..CLIENTS).map(|process| Box::pin(one(process))).collect();
        std::future::poll_fn(|cx| {
            clients.retain_mut(|client| client.as_mut().poll(cx).is_pending());
            if clients.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    pub(crate) fn check(&self) -> Result<usize, AppendViolation> {
        check_appends(&self.history.borrow())
    }
}

pub(crate) async fn lists(client: &Client, mode: Mode) -> Lists {
    let key = keys(client, mode).await.key(0).to_vec();
    Lists { prefix: [&key[..], b"/lists/"].concat() }
}
