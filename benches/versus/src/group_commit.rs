//! Group commit for threads. A thread that finds no sync in progress leads one, for all records
//! appended so far. A thread that finds one waits, and one of the waiting threads leads the next.

use std::sync::atomic::{AtomicU32, Ordering};

use atomic_wait::{wait, wake_all, wake_one};
use parking_lot::Mutex;

/// A log that many threads share.
pub(crate) trait GroupLog: Send {
    /// The records that one sync makes durable.
    type Batch;
    /// Appends a record.
    fn append(&mut self, payload: &[u8]) -> anyhow::Result<()>;
    /// Takes everything that was appended so far as a batch.
    fn begin(&mut self) -> anyhow::Result<Self::Batch>;
    /// Makes a batch durable, while other threads append.
    fn sync(batch: &Self::Batch) -> anyhow::Result<()>;
    /// Completes a batch that is durable.
    fn end(&mut self, batch: Self::Batch);
}

/// A log with its group commit.
pub(crate) struct GroupCommit<L> {
    state: Mutex<State<L>>,
    /// The latest batch with an even number and the latest with an odd one, each as
    /// `4 * number + stage`.
    stages: [AtomicU32; 2],
}

struct State<L> {
    log: L,
    /// Number of the batch that gathers records.
    batch: u32,
    /// Writers that wait for this batch.
    waiting: usize,
    is_syncing: bool,
}

const GATHERING: u32 = 0;
const LEADER_WANTED: u32 = 1;
const LED: u32 = 2;
const DURABLE: u32 = 3;

impl<L: GroupLog> GroupCommit<L> {
    pub(crate) fn new(log: L) -> Self {
        let state = State { log, batch: 0, waiting: 0, is_syncing: false };
        Self { state: Mutex::new(state), stages: [AtomicU32::new(0), AtomicU32::new(4)] }
    }

    /// Appends a record and returns once it is durable.
    pub(crate) fn commit(&self, payload: &[u8]) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        state.log.append(payload)?;
        let batch = state.batch;
        if !state.is_syncing {
            state.is_syncing = true;
            drop(state);
            return self.lead(batch);
        }
        state.waiting += 1;
        drop(state);
        let stage = &self.stages[batch as usize % 2];
        loop {
            let seen = stage.load(Ordering::Acquire);
            if seen >= batch * 4 + DURABLE {
                if seen % 4 == LEADER_WANTED {
                    // This thread may have taken the wake-up of a thread that should lead.
                    wake_one(stage);
                }
                return Ok(());
            }
            if seen == batch * 4 + LEADER_WANTED {
                let led = batch * 4 + LED;
                if stage.compare_exchange(seen, led, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return self.lead(batch);
                }
                continue;
            }
            wait(stage, seen);
        }
    }

    fn lead(&self, number: u32) -> anyhow::Result<()> {
        let (this, next) = (&self.stages[number as usize % 2], number + 1);
        let next_stage = &self.stages[next as usize % 2];
        let batch = {
            let mut state = self.state.lock();
            state.batch = next;
            state.waiting = 0;
            next_stage.store(next * 4 + GATHERING, Ordering::Release);
            state.log.begin()?
        };
        L::sync(&batch)?;
        let mut state = self.state.lock();
        state.log.end(batch);
        // Must come before another thread leads, which reuses this slot for batch `number + 2`.
        this.store(number * 4 + DURABLE, Ordering::Release);
        if state.waiting > 0 {
            next_stage.store(next * 4 + LEADER_WANTED, Ordering::Release);
            drop(state);
            wake_one(next_stage);
        } else {
            state.is_syncing = false;
            drop(state);
        }
        wake_all(this);
        Ok(())
    }
}
