//! Limits and correctness of the effects of single turns.
#![allow(missing_docs, reason = "a test")]

mod support;

use bytes::Bytes;
use palisade_clock::{Interval, Now, Timestamp};
use palisade_replication::Append;
use palisade_shard::{ConnectionId, Input, Shard, ShardEffects};
use palisade_wire::{
    Basis, Commit, CommitRequest, Expected, LockClaim, Locking, Mode, Operation, Outcome, RangeId,
    ReadKind, Rejection, Request, Response, SessionId, TxnId,
};
use support::shard_alone;

/// A cluster of one shard, whose writes are durable at once.
struct Alone {
    shard: Shard,
    now: Now,
    appends: u64,
}

impl Alone {
    fn new(mode: Mode, checkpoint_bytes: u64) -> Self {
        let now = Now { monotonic_us: 1, wall: Interval::around(1_000_000, 10) };
        let shard = shard_alone(mode, checkpoint_bytes, now);
        let mut alone = Self { shard, now, appends: 0 };
        for _ in 0..4 {
            alone.shard.step(Input::Tick, alone.now);
            alone.turn();
        }
        alone
    }

    fn turn(&mut self) -> ShardEffects {
        let effects = self.shard.end_turn(self.now);
        self.appends += effects.appends.len() as u64;
        self.shard.step(Input::Durable { appends: self.appends }, self.now);
        effects
    }

    fn put(&mut self, sequence: u64, value_bytes: usize) {
        let key = Bytes::from(format!("key{sequence}"));
        let commit = CommitRequest {
            txn: TxnId { session: SessionId(1), sequence },
            settled_below: sequence,
            expires_ts: Timestamp::from_physical_us(60_000_000),
            commit: Commit::new().put(key, vec![7; value_bytes]),
        };
        let operation = Operation::Commit { range: RangeId(1), request: commit, claim: None };
        self.request(sequence, operation);
    }

    /// Runs turns until all requests are answered, and returns the outcomes.
    fn replies(&mut self) -> Vec<Outcome> {
        let turns = (0..4).flat_map(|_| self.turn().replies);
        turns.map(|(_, Response { outcome, .. })| outcome).collect()
    }

    fn request(&mut self, request_id: u64, operation: Operation) {
        let request = Request::new(request_id, operation);
        self.shard.step(Input::Request { connection: ConnectionId(1), request }, self.now);
    }
}

/// Bug: a delayed driver had many ticks in its inbox, and each wrote a checkpoint part. One turn
/// wrote tens of megabytes of log, more than was prepared, and the node stopped.
#[test]
fn checkpoint_writes_one_part_per_turn_despite_late_ticks() {
    for mode in [Mode::Raft, Mode::Chain] {
        let mut alone = Alone::new(mode, 1 << 20);
        for sequence in 1..=8 {
            alone.put(sequence, 1 << 20);
            alone.turn();
            alone.turn();
        }
        let mut parts = 0;
        for _ in 0..100 {
            for _ in 0..20 {
                alone.shard.step(Input::Tick, alone.now);
            }
            let effects = alone.turn();
            let snapshots = effects.appends.iter().filter_map(|(_, append)| match append {
                Append::Snapshot { part, .. } => Some(part),
                _ => None,
            });
            let of_turn: Vec<_> = snapshots.collect();
            // The snapshot's head, part 0, is small and comes with the first part.
            assert!(of_turn.iter().filter(|part| part.part > 0).count() <= 1, "{of_turn:?}");
            parts += of_turn.len();
        }
        assert!(parts > 4, "{mode}: {parts} parts of a checkpoint were written");
    }
}

/// Bug: a commit that had waited for a lock was ordered although the clock had become uncertain. It
/// got a timestamp as far ahead as the error bound, and so did all later commits.
#[test]
fn commit_after_lock_wait_needs_certain_clock() {
    let mut alone = Alone::new(Mode::Raft, 1 << 20);
    let key = Bytes::from_static(b"key1");
    let owner = TxnId { session: SessionId(2), sequence: 1 };
    let claim = LockClaim { owner, start_ts: None, token: None };
    let kind = ReadKind::Locking(Locking { claim, exclusive: true });
    alone.request(2, Operation::Get { range: RangeId(1), key, kind });
    let mut replies = Vec::new();
    for _ in 0..3 {
        replies.extend(alone.turn().replies);
    }
    assert_eq!(replies.len(), 1, "{replies:?}");
    // Late enough that the commit still waits when the lock owner is idle for too long.
    alone.now.monotonic_us = 2_500_000;
    alone.put(1, 8);
    assert!(alone.turn().replies.is_empty());
    // The lock owner sends nothing more. Its locks expire while the clock is uncertain.
    let wall = Interval::around(1_000_000, 60_000_000);
    for monotonic_us in (3..20).map(|second| second * 1_000_000) {
        alone.now = Now { monotonic_us, wall };
        alone.shard.step(Input::Tick, alone.now);
        replies.extend(alone.turn().replies);
    }
    let (_, Response { outcome, .. }) = &replies[1];
    assert_eq!(*outcome, Outcome::Rejected(Rejection::ClockUncertain));
    // The clock is certain again: timestamps continue from where they were.
    alone.now.wall = Interval::around(1_000_100, 10);
    alone.put(2, 8);
    for _ in 0..3 {
        replies.extend(alone.turn().replies);
        alone.now.wall = Interval::around(1_000_200, 10);
    }
    let (_, Response { outcome, .. }) = &replies[2];
    let Outcome::Committed { commit_ts, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(commit_ts.physical_us(), 1_000_110);
}

/// A failed commit forgets outcomes up to its own timestamp. A forgotten commit must stay expired
/// for a later retry, even at a leader whose clock has a smaller error.
#[test]
fn outcome_forgotten_by_failed_commit_stays_expired() {
    for mode in [Mode::Raft, Mode::Chain] {
        let mut alone = Alone::new(mode, 1 << 20);
        alone.put(1, 8);
        alone.now.wall = Interval::around(1_001_000, 10);
        let first = alone.replies();
        assert!(matches!(first[..], [Outcome::Committed { .. }]), "{mode}: {first:?}");
        // With this error bound, the clock may be past the expiry of the first commit.
        alone.now.wall = Interval::around(59_999_500, 1_000);
        let failing = CommitRequest {
            txn: TxnId { session: SessionId(2), sequence: 1 },
            settled_below: 1,
            expires_ts: Timestamp::from_physical_us(90_000_000),
            commit: Commit::new().expect("key1", Expected::Absent).put("key1", vec![9]),
        };
        alone.request(2, Operation::Commit { range: RangeId(1), request: failing, claim: None });
        let failed = alone.replies();
        assert!(matches!(failed[..], [Outcome::ConditionFailed { .. }]), "{mode}: {failed:?}");
        alone.now.wall = Interval::around(59_999_600, 10);
        alone.put(1, 8);
        assert_eq!(alone.replies(), [Outcome::Rejected(Rejection::Expired)], "{mode}");
    }
}

/// The first copy of a commit with locks releases them when it is ordered. A second copy must not
/// be ordered without locks: other transactions may write its keys in between.
#[test]
fn commit_duplicate_is_not_sequenced_without_locks() {
    for mode in [Mode::Raft, Mode::Chain] {
        let mut alone = Alone::new(mode, 1 << 20);
        let key = Bytes::from_static(b"key1");
        let owner = TxnId { session: SessionId(2), sequence: 1 };
        let claim = LockClaim { owner, start_ts: None, token: None };
        let kind = ReadKind::Locking(Locking { claim, exclusive: true });
        alone.request(1, Operation::Get { range: RangeId(1), key: key.clone(), kind });
        let read = alone.replies();
        let [Outcome::Value { basis: Basis::Locked(grant), .. }] = read[..] else {
            panic!("{mode}: {read:?}")
        };
        let request = CommitRequest {
            txn: TxnId { session: SessionId(2), sequence: 2 },
            settled_below: 2,
            expires_ts: Timestamp::from_physical_us(60_000_000),
            commit: Commit::new().put(key, vec![9]),
        };
        let claim = Some(claim.granted(grant));
        let commit = Operation::Commit { range: RangeId(1), request, claim };
        alone.request(2, commit.clone());
        alone.request(3, commit.clone());
        assert_eq!(alone.turn().appends.len(), 1, "{mode}: one copy is ordered");
        alone.now.wall = Interval::around(1_001_000, 10);
        let outcomes = alone.replies();
        let is_committed = |outcome: &Outcome| matches!(outcome, Outcome::Committed { .. });
        assert!(outcomes.iter().any(is_committed), "{mode}: {outcomes:?}");
        // A retry returns the outcome of the first copy.
        alone.request(4, commit);
        assert!(is_committed(&alone.replies()[0]), "{mode}");
    }
}
