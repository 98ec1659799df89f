//! A log that fills up empties itself, and an idle one is not written to (FAULTS.md 52 and 55).

mod support;

use std::collections::BTreeMap;

use palisade_clock::{Interval, Now, Timestamp};
use palisade_control::Bootstrap;
use palisade_shard::{
    ConnectionId, Inbox, Input, LogSpace, Runtime, ShardEffects, ShardLog, TICK_US,
};
use palisade_wal::{LengthRule, MemoryLog, Position, Record, Retained, WalError};
use palisade_wire::{
    Commit, CommitRequest, Mode, Operation, Outcome, RangeId, Rejection, Request, SessionId, TxnId,
};
use support::{bootstrap, config};

const SEGMENT_BYTES: u64 = 64 << 10;
const RESERVE_BYTES: u64 = 256 << 10;
const LIMIT_BYTES: u64 = 16 << 20;
const VALUE_BYTES: usize = 4_000;

/// A log in memory with a limit.
struct BoundedLog {
    log: MemoryLog,
    appends: u64,
    reserved_bytes: u64,
    /// What the log can have: its limit, or what it had when the disk became full.
    capacity_bytes: u64,
}

impl ShardLog for BoundedLog {
    type Plan = (Position, u64);

    fn append(&mut self, record: &Record<'_>) -> Result<(), WalError> {
        if self.space().left_bytes < record.payload.len() as u64 + 64 {
            return Err(WalError::Full { limit_bytes: LIMIT_BYTES });
        }
        self.log.append(record);
        self.appends += 1;
        Ok(())
    }

    fn space(&self) -> LogSpace {
        let (first, end) = (self.log.first(), self.log.end());
        let left_bytes = self.capacity_bytes.saturating_sub(end - first);
        LogSpace { first, end, left_bytes, limit_bytes: LIMIT_BYTES }
    }

    fn sync_plan(&self) -> Option<(Position, u64)> {
        (self.log.end() > self.log.durable()).then_some((self.log.end(), self.appends))
    }

    fn synced(&mut self, plan: &(Position, u64)) -> u64 {
        self.log.synced(plan.0);
        plan.1
    }

    fn prepare(&mut self) -> Result<(), WalError> {
        Ok(())
    }

    fn reserve(&mut self, bytes: u64) {
        self.reserved_bytes = bytes;
    }

    fn is_long(&self, state_bytes: u64) -> bool {
        let capacity_segments = self.capacity_bytes / SEGMENT_BYTES;
        let rule = LengthRule { segment_bytes: SEGMENT_BYTES, capacity_segments };
        rule.is_long(self.log.live_segments(), state_bytes)
    }

    fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained> {
        self.log.retained(applied)
    }

    fn forget(&mut self, group: u32) {
        self.log.forget(group);
    }
}

/// A shard alone with its log, driven in virtual time.
struct Alone {
    runtime: Runtime<BoundedLog>,
    ranges: u16,
    now_us: u64,
    sequence: u64,
    answers: BTreeMap<u64, Outcome>,
}

impl Alone {
    fn new() -> Self {
        Self::with_ranges(1)
    }

    fn with_ranges(ranges: u16) -> Self {
        Self::start(ranges, 0, |_| BoundedLog {
            log: MemoryLog::new(1, SEGMENT_BYTES),
            appends: 0,
            reserved_bytes: 0,
            capacity_bytes: LIMIT_BYTES,
        })
    }

    fn start(
        ranges: u16,
        now_us: u64,
        open: impl FnOnce(&mut palisade_shard::Replayed) -> BoundedLog,
    ) -> Self {
        let bootstrap = Bootstrap { ranges_per_mode: ranges, ..bootstrap(Mode::Raft) };
        let config = palisade_shard::ShardConfig {
            log_reserve_bytes: RESERVE_BYTES,
            checkpoint_bytes: 1 << 20,
            snapshot_part_bytes: 8 << 10,
            ..config(&bootstrap)
        };
        let open = |replayed: &mut _| Ok::<_, WalError>(open(replayed));
        let runtime =
            Runtime::recover(config, bootstrap.range_map(), || now(now_us), open).unwrap();
        let (sequence, answers) = (now_us, BTreeMap::new());
        let mut alone = Self { runtime, ranges, now_us, sequence, answers };
        alone.run_for(1_000_000);
        alone
    }

    /// Ends the process, and starts again from the log.
    fn restart(self) -> Self {
        let remains = self.runtime.log().log.remains().clone();
        let capacity_bytes = self.runtime.log().capacity_bytes;
        Self::start(self.ranges, self.now_us + 1_000_000, |replayed| {
            let visit = &mut |record: Record<'_>| replayed.visit(record);
            let log = MemoryLog::recover(1, SEGMENT_BYTES, remains, false, visit).unwrap();
            BoundedLog { log, appends: 0, reserved_bytes: 0, capacity_bytes }
        })
    }

    fn turn(&mut self, inputs: Vec<Input>) {
        let mut inbox = Inbox::default();
        inputs.into_iter().for_each(|input| inbox.push(input));
        let ShardEffects { appends, replies, .. } = self.runtime.turn(&mut inbox, now(self.now_us));
        self.runtime.write(appends).expect("the log is never full");
        self.answers
            .extend(replies.into_iter().map(|(_, reply)| (reply.request_id, reply.outcome)));
        let _ = self.runtime.maintain(self.now_us);
    }

    /// Lets the time of one tick pass, in which a sync ends.
    fn tick(&mut self, mut inputs: Vec<Input>) {
        self.turn(inputs.split_off(0));
        self.now_us += TICK_US;
        let mut inputs = vec![Input::Tick];
        if let Some(plan) = self.runtime.sync_plan() {
            inputs.push(self.runtime.synced(&plan));
        }
        self.turn(inputs);
    }

    fn run_for(&mut self, us: u64) {
        for _ in 0..us / TICK_US {
            self.tick(Vec::new());
        }
    }

    fn commit(&mut self, commit: Commit) -> Outcome {
        self.commit_in(RangeId(1), commit)
    }

    fn commit_in(&mut self, range: RangeId, commit: Commit) -> Outcome {
        self.sequence += 1;
        let txn = TxnId { session: SessionId(1), sequence: self.sequence };
        let expires_ts = Timestamp::from_physical_us(1_000_000_000 + self.now_us + 60_000_000);
        let request = CommitRequest { txn, settled_below: self.sequence, expires_ts, commit };
        let operation = Operation::Commit { range, request, claim: None };
        let request = Request::new(self.sequence, operation);
        self.tick(vec![Input::Request { connection: ConnectionId(1), request }]);
        for _ in 0..300 {
            if let Some(outcome) = self.answers.remove(&self.sequence) {
                return outcome;
            }
            self.tick(Vec::new());
        }
        panic!("a commit is not answered");
    }

    /// Writes `per_commit` values to the keys from `first` on.
    fn put(&mut self, first: u64, per_commit: u64) -> Outcome {
        let mut commit = Commit::new();
        for key in first..first + per_commit {
            commit = commit.put(format!("key {key:08}"), vec![key as u8; VALUE_BYTES]);
        }
        self.commit(commit)
    }

    fn delete(&mut self, key: u64) -> Outcome {
        self.commit(Commit::new().delete(format!("key {key:08}")))
    }

    fn end(&self) -> Position {
        self.runtime.log().log.end()
    }

    fn state_bytes(&self) -> u64 {
        self.runtime.shard().state_bytes()
    }

    /// Fills the state up to `bytes`. Returns the number of keys.
    fn fill(&mut self, bytes: u64) -> u64 {
        let mut keys = 0;
        while self.state_bytes() < bytes {
            match self.put(keys, 8) {
                Outcome::Committed { .. } => keys += 8,
                outcome => assert_eq!(outcome, Outcome::Rejected(Rejection::LogFull)),
            }
        }
        keys
    }
}

fn now(us: u64) -> Now {
    Now { monotonic_us: us + 1, wall: Interval::around(1_000_000_000 + us, 10) }
}

/// Returns a key of a range, of 24 ranges in all.
fn range_key(range: u32, number: u64) -> Vec<u8> {
    let start = (range - 1) * (1 << 16) / 24;
    let mut key = (start as u16 + 1).to_be_bytes().to_vec();
    key.extend(number.to_be_bytes());
    key
}

fn is_committed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Committed { .. })
}

/// State sizes from 64 KiB to nearly a quarter of the limit.
const STATES_BYTES: [u64; 5] = [64 << 10, 512 << 10, 1 << 20, 3 << 20, 7 << 19];

#[test]
fn scenario_52_idle_log_is_not_written_to() {
    for state_bytes in STATES_BYTES {
        let mut alone = Alone::new();
        let keys = alone.fill(state_bytes);
        for key in 0..keys {
            // A client retries a put that is refused, until its deadline.
            let written = (0..10).any(|_| is_committed(&alone.put(key, 1)));
            assert!(written, "{state_bytes}: {key}");
        }
        alone.run_for(10_000_000);
        let end = alone.end();
        alone.run_for(60_000_000);
        assert_eq!(alone.end(), end, "{state_bytes} bytes of state are rewritten while idle");
        let mut alone = alone.restart();
        alone.run_for(10_000_000);
        let end = alone.end();
        alone.run_for(60_000_000);
        assert_eq!(alone.end(), end, "{state_bytes} bytes are rewritten after a restart");
    }
}

#[test]
fn scenario_55_log_empties_itself_under_writes_of_many_times_its_limit() {
    for state_bytes in STATES_BYTES {
        let mut alone = Alone::new();
        let keys = alone.fill(state_bytes);
        let (begin, mut refused, mut commits) = (alone.end(), 0, 0);
        while alone.end() < begin + 5 * LIMIT_BYTES {
            match alone.put(commits * 8 % keys, 8) {
                Outcome::Committed { .. } => commits += 1,
                outcome => {
                    assert_eq!(outcome, Outcome::Rejected(Rejection::LogFull));
                    refused += 1;
                }
            }
            assert!(refused < 1_000, "{state_bytes}: the log stays full");
        }
        assert!(refused * 10 < commits, "{state_bytes}: {refused} refused, {commits} committed");
    }
}

#[test]
fn state_of_a_quarter_of_the_limit_takes_deletes_only() {
    let mut alone = Alone::new();
    let mut keys = 0;
    let refusal = loop {
        match alone.put(keys, 8) {
            Outcome::Committed { .. } => keys += 8,
            Outcome::Rejected(Rejection::LogFull) => {}
            outcome => break outcome,
        }
    };
    assert_eq!(refusal, Outcome::Rejected(Rejection::StateTooLarge));
    let state_bytes = alone.state_bytes();
    assert!((15 << 18..LIMIT_BYTES / 4).contains(&state_bytes), "{state_bytes}");
    let mut alone = alone.restart();
    assert_eq!(alone.put(keys, 1), refusal, "after a restart");
    // Deletes work, and make room for values at once.
    for key in 0..keys / 4 {
        let outcome = alone.delete(key);
        assert!(is_committed(&outcome), "{outcome:?}");
    }
    let outcome = alone.put(keys, 8);
    assert!(is_committed(&outcome), "{outcome:?}");
}

#[test]
fn full_disk_takes_deletes_and_then_writes_in_what_they_release() {
    let mut alone = Alone::new();
    let keys = alone.fill(2 << 20);
    alone.run_for(5_000_000);
    let log = alone.runtime.log_mut();
    let space = log.space();
    // The disk is full: the log has the files that were reserved for it.
    log.capacity_bytes = space.end - space.first + log.reserved_bytes;
    let mut refused = 0;
    for key in 0..4 * keys {
        if !is_committed(&alone.put(key % keys, 1)) {
            refused += 1;
        }
    }
    for key in 0..keys {
        // A client retries a delete that is refused, until its deadline.
        let deleted = (0..1_000).any(|_| is_committed(&alone.delete(key)));
        assert!(deleted, "{key} of {keys}, {refused} puts were refused");
    }
    alone.run_for(5_000_000);
    for key in 0..keys / 8 {
        let outcome = alone.put(key, 1);
        assert!(is_committed(&outcome), "{key}: {outcome:?}");
    }
    alone.restart();
}

/// Many ranges of the same size, written evenly: their checkpoints must not use up the room that
/// each of them alone would leave.
#[test]
fn log_of_many_ranges_empties_itself_and_survives_crashes() {
    let mut alone = Alone::with_ranges(12);
    let mut commits = 0;
    for round in 0..6 {
        let begin = alone.end();
        let mut refused = 0;
        while alone.end() < begin + LIMIT_BYTES {
            let range = 1 + (commits % 12) as u32;
            let key = range_key(range, commits / 12 % 20);
            let commit = Commit::new().put(key, vec![7; 4 * VALUE_BYTES]);
            match alone.commit_in(RangeId(range), commit) {
                Outcome::Committed { .. } => commits += 1,
                outcome => {
                    assert_eq!(outcome, Outcome::Rejected(Rejection::LogFull), "round {round}");
                    refused += 1;
                    assert!(refused < 1_000, "round {round}: the log stays full");
                }
            }
        }
        // Usually in the middle of a checkpoint.
        alone = alone.restart();
    }
}
