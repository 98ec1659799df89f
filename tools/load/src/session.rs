//! One operation at a time: sent, timed, recorded.

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use palisade_client::{Client, ClientError};
use palisade_history::{Action, Operation, Outcome};

use crate::{
    keys::Keys,
    measure::{Backlog, Recorder},
};

/// Bytes of a value that tell it from all others.
pub(crate) const UNIQUE_BYTES: usize = 8;

/// What all clients of a load share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) keys: Keys,
    pub(crate) value_bytes: usize,
    pub(crate) record: bool,
    /// Whether gets are linearizable for their key alone.
    pub(crate) by_key: bool,
    pub(crate) recorder: RefCell<Recorder>,
    pub(crate) start: Instant,
    /// Operations that were sent, and those of them that have ended.
    pub(crate) sent: Cell<u64>,
    pub(crate) ended: Cell<u64>,
    /// Since when operations of an open loop fall due, and how many a second.
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

    /// Operations that have fallen due and were not sent, and those that were sent and not
    /// answered.
    pub(crate) fn backlog(&self) -> Backlog {
        let sent = self.sent.get();
        let due = self.due.get().map_or(sent, |(since_ns, rate)| {
            let elapsed_ns = u128::from(self.now_ns() - since_ns);
            u64::try_from(elapsed_ns * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX)
        });
        Backlog { unsent: due.saturating_sub(sent), unanswered: sent - self.ended.get() }
    }

    /// A number for a sequence of operations, of which one at a time is under way.
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
                Outcome::Ok
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
            Ok(None) => (Action::Read(None), Outcome::Ok),
            Ok(Some(found)) => (Action::Read(Some(unique(&found.value))), Outcome::Ok),
            // A read that failed had no effect, whatever the reason.
            Err(_) => (Action::Read(None), Outcome::Fail),
        };
        self.ended(process, key, action, outcome, start_ns, since_ns)
    }

    /// Records an operation, and tells under which number the client goes on: a new one if the
    /// outcome of the last is unknown.
    fn ended(
        &self,
        process: u32,
        key: u32,
        action: Action,
        outcome: Outcome,
        start_ns: u64,
        since_ns: Option<u64>,
    ) -> u32 {
        self.ended.set(self.ended.get() + 1);
        let end_ns = self.now_ns();
        let mut recorder = self.recorder.borrow_mut();
        let put = matches!(action, Action::Write(_));
        let ok = outcome == Outcome::Ok;
        let range = self.keys.range_of(key);
        recorder.ended(range, put, ok, since_ns.unwrap_or(start_ns), end_ns);
        if self.record {
            recorder.history.push(Operation { process, start_ns, end_ns, key, action, outcome });
        }
        drop(recorder);
        if outcome == Outcome::Info { self.process() } else { process }
    }

    fn value(&self, unique: u64) -> Bytes {
        let mut bytes = BytesMut::zeroed(self.value_bytes.max(UNIQUE_BYTES));
        bytes[..UNIQUE_BYTES].copy_from_slice(&unique.to_le_bytes());
        // Not all zero: a compressing disk should gain nothing.
        for (at, byte) in bytes[UNIQUE_BYTES..].iter_mut().enumerate() {
            *byte = (unique as u8).wrapping_mul(31).wrapping_add(at as u8);
        }
        bytes.freeze()
    }
}

fn failure(error: &ClientError) -> Outcome {
    if error.is_outcome_unknown() { Outcome::Info } else { Outcome::Fail }
}

/// What tells a value from all others. A value that no load wrote is none that was ever written.
pub(crate) fn unique(value: &[u8]) -> u64 {
    value.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}
