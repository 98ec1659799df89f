//! Sends, times and records one operation at a time.

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use palisade_client::{Client, ClientError};
use palisade_history::{Action, Completion, Operation};

use crate::{
    keys::Keys,
    measure::{Backlog, Recorder},
};

/// Length of the prefix of a value that identifies its write, in bytes.
pub(crate) const UNIQUE_BYTES: usize = 8;

/// State that all clients of a load share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) value_bytes: usize,
    pub(crate) record: bool,
    /// True if gets are linearizable for their key alone.
    pub(crate) by_key: bool,
    pub(crate) recorder: RefCell<Recorder>,
    pub(crate) start: Instant,
    /// Number of operations that were sent.
    pub(crate) sent: Cell<u64>,
    /// Number of operations that have ended.
    pub(crate) ended: Cell<u64>,
    /// The start of an open loop in nanoseconds, and its operations per second.
    pub(crate) due: Cell<Option<(u64, u64)>>,
    pub(crate) next_value: Cell<u64>,
    pub(crate) next_process: Cell<u32>,
    pub(crate) idle_processes: RefCell<Vec<u32>>,
    pub(crate) stopping: Cell<bool>,
}

impl Shared {
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a load runs for less than a century")
    }

    /// Returns the number of operations that are due but not sent, and sent but not answered.
    pub(crate) fn backlog(&self) -> Backlog {
        let sent = self.sent.get();
        let due = self.due.get().map_or(sent, |(since_ns, rate)| {
            let elapsed_ns = u128::from(self.now_ns() - since_ns);
            u64::try_from(elapsed_ns * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
        });
        Backlog { unsent: due.saturating_sub(sent), unanswered: sent - self.ended.get() }
    }

    /// Returns a free process number. A process has at most one operation in flight.
    pub(crate) fn process(&self) -> u32 {
        if let Some(process) = self.idle_processes.borrow_mut().pop() {
            return process;
        }
        let process = self.next_process.get();
        self.next_process.set(process + 1);
        process
    }

    pub(crate) async fn put(&self, process: u32, key: u32, since_ns: Option<u64>) -> u32 {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        self.sent.set(self.sent.get() + 1);
        let start_ns = self.now_ns();
        let result = self.client.put(self.keys.key(key), self.value(value)).await;
        let outcome = match &result {
            Ok(committed) => {
                self.recorder.borrow_mut().waited(committed.waited);
                Completion::Ok
            }
            Err(error) => failure(error),
        };
        self.ended(process, key, Action::Write(value), outcome, start_ns, since_ns)
    }

    pub(crate) async fn get(&self, process: u32, key: u32, since_ns: Option<u64>) -> u32 {
        self.sent.set(self.sent.get() + 1);
        let start_ns = self.now_ns();
        let bytes = self.keys.key(key);
        let result = match self.by_key {
            false => self.client.get(bytes).await,
            true => self.client.get_linearizable_by_key(bytes).await,
        };
        let (action, outcome) = match result {
            Ok(None) => (Action::Read(None), Completion::Ok),
            Ok(Some(found)) => (Action::Read(Some(unique(&found.value))), Completion::Ok),
            // A read has no effect, so every error is a definite failure.
            Err(_) => (Action::Read(None), Completion::Fail),
        };
        self.ended(process, key, action, outcome, start_ns, since_ns)
    }

    /// Records an operation. Returns the process number for the next one, which is another if the
    /// outcome is unknown.
    fn ended(
        &self,
        process: u32,
        key: u32,
        action: Action,
        outcome: Completion,
        start_ns: u64,
        since_ns: Option<u64>,
    ) -> u32 {
        self.ended.set(self.ended.get() + 1);
        let end_ns = self.now_ns();
        let mut recorder = self.recorder.borrow_mut();
        let put = matches!(action, Action::Write(_));
        let ok = outcome == Completion::Ok;
        let range = self.keys.range_of(key);
        recorder.ended(range, put, ok, since_ns.unwrap_or(start_ns), end_ns);
        if self.record {
            recorder.history.push(Operation { process, start_ns, end_ns, key, action, outcome });
        }
        drop(recorder);
        if outcome == Completion::Info { self.process() } else { process }
    }

    fn value(&self, unique: u64) -> Bytes {
        let mut bytes = BytesMut::zeroed(self.value_bytes.max(UNIQUE_BYTES));
        bytes[..UNIQUE_BYTES].copy_from_slice(&unique.to_le_bytes());
        // Avoid a run of zeros, which a compressing disk would store for free.
        for (at, byte) in bytes[UNIQUE_BYTES..].iter_mut().enumerate() {
            *byte = (unique as u8).wrapping_mul(31).wrapping_add(at as u8);
        }
        bytes.freeze()
    }
}

fn failure(error: &ClientError) -> Completion {
    if error.is_outcome_unknown() { Completion::Info } else { Completion::Fail }
}

/// Returns the number that identifies a value. A value shorter than the prefix is from no load, and
/// gives `u64::MAX`, which no load writes.
pub(crate) fn unique(value: &[u8]) -> u64 {
    value.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
