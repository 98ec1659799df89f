//! Puts and gets through a shard with one replica per range, without sockets or disk.
#![allow(missing_docs, reason = "a benchmark")]

#[path = "../crates/shard/tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use palisade_clock::{Interval, Now, Timestamp};
use palisade_shard::{ConnectionId, Input, Shard};
use palisade_wire::{
    Commit, CommitRequest, Mode, Operation, Outcome, RangeId, ReadKind, Request, SessionId, TxnId,
};
use support::shard_alone;

/// Requests in one turn.
const BATCH: u64 = 64;

struct Bench {
    shard: Shard,
    now: Now,
    appends: u64,
    sequence: u64,
}

impl Bench {
    fn new(mode: Mode) -> Self {
        let now = Now { monotonic_us: 1, wall: Interval::around(1_000_000, 10) };
        let shard = shard_alone(mode, u64::MAX, now);
        let mut bench = Self { shard, now, appends: 0, sequence: 0 };
        // A tick starts the election, one sync wins it, and another commits the first entry of the
        // term.
        for _ in 0..4 {
            bench.shard.step(Input::Tick, bench.now);
            bench.turn();
        }
        bench
    }

    /// Moves both clocks forward.
    fn advance(&mut self, us: u64) {
        self.now.monotonic_us += us;
        self.now.wall = Interval::around(1_000_000 + self.now.monotonic_us, 10);
    }

    /// Ends a turn, makes its writes durable, and returns the number of requests that were not
    /// rejected.
    fn turn(&mut self) -> usize {
        let mut answered = 0;
        for _ in 0..2 {
            // Timestamps pass, so that no reply waits for one.
            self.advance(30);
            let effects = self.shard.end_turn(self.now);
            self.appends += effects.appends.len() as u64;
            self.shard.step(Input::Durable { appends: self.appends }, self.now);
            answered += effects
                .replies
                .iter()
                .filter(|(_, reply)| !matches!(reply.outcome, Outcome::Rejected(_)))
                .count();
        }
        answered
    }

    fn request(&mut self, operation: Operation) {
        let request = Request::new(self.sequence, operation);
        self.shard.step(Input::Request { connection: ConnectionId(1), request }, self.now);
    }

    fn put_batch(&mut self) {
        self.advance(1_000);
        for _ in 0..BATCH {
            self.sequence += 1;
            let request = CommitRequest {
                txn: TxnId { session: SessionId(1), sequence: self.sequence },
                settled_below: self.sequence.saturating_sub(BATCH),
                expires_ts: Timestamp::from_physical_us(self.now.wall.latest_us + 1_000_000),
                commit: Commit::new().put(key(self.sequence), Bytes::from_static(&[7; 256])),
            };
            self.request(Operation::Commit { range: RangeId(1), request, claim: None });
        }
        assert_eq!(self.turn(), BATCH as usize);
    }

    fn get_batch(&mut self) {
        for _ in 0..BATCH {
            self.sequence += 1;
            let key = key(self.sequence);
            self.request(Operation::Get { range: RangeId(1), key, kind: ReadKind::Latest });
        }
        assert_eq!(black_box(self.turn()), BATCH as usize);
    }
}

fn key(number: u64) -> Bytes {
    format!("key{:010}", number % 10_000).into()
}

fn shard(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shard");
    group.throughput(Throughput::Elements(BATCH));
    for mode in [Mode::Raft, Mode::Chain] {
        let mut bench = Bench::new(mode);
        group.bench_function(format!("{BATCH} puts on {mode}"), |bencher| {
            bencher.iter(|| bench.put_batch());
        });
        group.bench_function(format!("{BATCH} gets on {mode}"), |bencher| {
            bencher.iter(|| bench.get_batch());
        });
    }
    group.finish();
}

criterion_group!(benches, shard);
criterion_main!(benches);
