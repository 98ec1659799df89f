//! Group commit for threads: who finds no sync under way leads one, for all that have gathered; who
//! finds one waits, and one of those that waited leads the next.

use std::sync::atomic::{AtomicU32, Ordering};

use atomic_wait::{wait, wake_all, wake_one};
use parking_lot::Mutex;

/// A log that many threads share.
pub(crate) trait GroupLog: Send {
    /// What a sync is about.
    type Batch;
    /// Appends a record.
    fn append(&mut self, payload: &[u8]) -> anyhow::Result<()>;
    /// Everything that was appended so far.
    fn begin(&mut self) -> anyhow::Result<Self::Batch>;
    /// Makes it durable, while others append.
    fn sync(batch: &Self::Batch) -> anyhow::Result<()>;
    /// It is durable.
    fn end(&mut self, batch: Self::Batch);
}

/// A log with its group commit.
pub(crate) struct GroupCommit<L> {
    state: Mutex<State<L>>,
    /// What is known of the batches of even and of odd numbers: four times the number, and a stage.
    stages: [AtomicU32; 2],
}

struct State<L> {
    log: L,
    /// The batch that is gathering.
    batch: u32,
    /// Writers of it that wait.
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
                    // This was woken in the place of one that should lead.
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
        // Before anybody else leads, who would set the stage of the batch after the next.
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
