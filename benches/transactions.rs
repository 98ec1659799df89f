//! The cost of a transaction on the shard's thread: locks, versions and timestamps, with the
//! allocations of each operation.
#![allow(missing_docs, clippy::print_stdout, reason = "a benchmark")]

use std::{alloc::System, hint::black_box, sync::OnceLock};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use palisade_clock::{Hlc, Interval, Timestamp};
use palisade_storage::Store;
use palisade_txn::{LockEvent, LockRequest, LockTable, Priority, Span, Strength};
use palisade_wire::{LockClaim, SessionId, TxnId};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KEYS: u64 = 100_000;

/// Operations whose allocations are counted.
const COUNTED: u64 = 10_000;

/// Measures the time and the allocations of an operation. Each call of `run` does `operations`.
fn measure(criterion: &mut Criterion, name: &str, operations: u64, mut run: impl FnMut(u64)) {
    let mut number = 0;
    let mut next = || {
        number += 1;
        run(number);
    };
    (0..COUNTED).for_each(|_| next());
    let region = Region::new(&INSTRUMENTED_SYSTEM);
    (0..COUNTED).for_each(|_| next());
    let change = region.change();
    let each = |count: usize| count as f64 / (COUNTED * operations) as f64;
    println!(
        "{name}: {:.2} allocations and {:.2} reallocations each",
        each(change.allocations),
        each(change.reallocations)
    );
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(operations));
    group.bench_function("each", |bencher| bencher.iter(&mut next));
    group.finish();
}

/// Returns a key. All keys are made beforehand, so that this is not measured.
fn key(number: u64) -> Bytes {
    static ALL: OnceLock<Vec<Bytes>> = OnceLock::new();
    let all = ALL.get_or_init(|| (0..KEYS).map(|at| format!("key{at:010}").into()).collect());
    all[(number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS) as usize].clone()
}

fn txn(number: u64) -> TxnId {
    TxnId { session: SessionId(1), sequence: number }
}

fn enter(table: &mut LockTable, number: u64) -> Priority {
    let claim = LockClaim { owner: txn(number), start_ts: None, token: None };
    let grant = table.enter(claim, Timestamp::from_physical_us(number), 0).expect("there is room");
    Priority { start_ts: grant.start_ts, txn: txn(number) }
}

fn lock(table: &mut LockTable, number: u64, span: Span, strength: Strength) -> bool {
    let priority = enter(table, number);
    let wants = vec![(span, strength)];
    let request =
        LockRequest { ticket: number, priority, keeps: true, wants, deadline_us: u64::MAX };
    table.request(request).expect("there is room")
}

fn locks(criterion: &mut Criterion) {
    let mut table = LockTable::new(0);
    measure(criterion, "locks/one key, free, taken and released", 1, |number| {
        assert!(lock(&mut table, number, Span::key(&key(number)), Strength::Exclusive));
        table.release(txn(number));
    });
    // A thousand transactions hold one key each. The span covers all of these keys.
    let mut table = LockTable::new(0);
    for number in 1..=1_000 {
        lock(&mut table, number, Span::key(&key(number)), Strength::Shared);
    }
    measure(criterion, "locks/one key among a thousand", 1, |number| {
        let number = number + 2_000;
        assert!(lock(&mut table, number, Span::key(&key(number)), Strength::Shared));
        table.release(txn(number));
    });
    measure(criterion, "locks/a span over a thousand keys", 1, |number| {
        let number = number + 2_000;
        let all = Span { begin: "key".into(), end: None };
        assert!(lock(&mut table, number, all, Strength::Shared));
        table.release(txn(number));
    });
    // 64 transactions lock the same key: one holds it, and each release grants it to the next.
    let mut table = LockTable::new(0);
    for number in 1..=64 {
        lock(&mut table, number, Span::key(b"hot"), Strength::Exclusive);
    }
    measure(criterion, "locks/a hot key that 64 wait for", 1, |number| {
        table.release(txn(number));
        assert_eq!(table.next_event(), Some((number + 1, LockEvent::Granted)));
        lock(&mut table, number + 64, Span::key(b"hot"), Strength::Exclusive);
    });
}

fn store(criterion: &mut Criterion) {
    let value = Bytes::from_static(&[7; 256]);
    let mut store = Store::new();
    for number in 0..KEYS {
        store.begin(Timestamp::from_physical_us(number + 1));
        store.write(format!("key{number:010}").as_bytes(), Some(value.clone()));
    }
    let mut now_us = KEYS;
    measure(criterion, "store/a write, and what it replaced collected", 1, |number| {
        now_us += 1;
        store.begin(Timestamp::from_physical_us(now_us));
        store.write(&key(number), Some(value.clone()));
        store.collect(Timestamp::from_physical_us(now_us - 1_000), 4);
    });
    measure(criterion, "store/a read of the newest", 1, |number| {
        assert!(black_box(store.newest(&key(number))).value.is_some());
    });
    let at_ts = store.horizon_ts();
    measure(criterion, "store/a read of the past", 1, |number| {
        assert!(black_box(store.get(&key(number), at_ts)).is_ok_and(|found| found.is_some()));
    });
    measure(criterion, "store/a page of 100 rows", 100, |number| {
        let mut rows = 0;
        let begin = &key(number % 1_000)[..9];
        let take = |_: &Bytes, _, value: &Bytes| {
            rows += usize::from(!black_box(value).is_empty());
            rows < 100
        };
        let page = store.page((begin, None), Timestamp::MAX, false, 4_096, take);
        assert!(page.is_ok() && rows == 100);
    });
}

fn clock(criterion: &mut Criterion) {
    let mut hlc = Hlc::new(1_000);
    let wall = |number| Interval::around(1_000_000 + number, 50);
    measure(criterion, "clock/a timestamp of an event", 1, |number| {
        black_box(hlc.tick(wall(number)));
    });
    let mut issued_ts = Timestamp::ZERO;
    measure(criterion, "clock/a timestamp of a commit", 1, |number| {
        issued_ts = hlc.commit_ts(wall(number), issued_ts).expect("the bound is small");
        black_box(issued_ts);
    });
    measure(criterion, "clock/a timestamp of a peer taken in", 1, |number| {
        let remote_ts = Timestamp::from_physical_us(1_000_000 + number);
        black_box(hlc.observe(remote_ts, wall(number))).expect("it is near");
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = locks, store, clock
}
criterion_main!(benches);
