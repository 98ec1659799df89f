//! The log: appends into the mapping, and group commits to the disk. `benches/versus` compares the
//! log with others on the same work.
#![allow(missing_docs, clippy::disallowed_methods, reason = "a benchmark of the real disk")]

use std::{fs::File, hint::black_box, path::Path, sync::Arc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use palisade_wal::{Backend, Log, LogOptions, Record, RecordKind, WalError};
use tempfile::TempDir;

const PAYLOAD: [u8; 256] = [7; 256];

fn open(dir: &TempDir) -> Log {
    let options = LogOptions {
        cluster_id: 1,
        node: 0,
        shard: 0,
        segment_bytes: 64 << 20,
        limit_bytes: 16 << 30,
        ahead_bytes: 0,
        backend: Backend::Mapped,
    };
    Log::open(dir.path(), options, &|_| {}, |_| {}).expect("a fresh log opens")
}

fn append(log: &mut Log, index: u64) {
    let payload = black_box(&PAYLOAD);
    let record = Record { kind: RecordKind::Entry, group: 1, term: 1, index, part: 0, payload };
    loop {
        match log.append(&record) {
            Ok(_) => return,
            Err(WalError::NotReady) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A thousand appends without a sync, which is the cost on the shard's thread.
fn appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log/append");
    group.throughput(Throughput::Elements(1_000));
    group.sample_size(20);
    group.bench_function("256 bytes", |bencher| {
        bencher.iter_batched(
            || {
                let dir = TempDir::new().expect("a directory can be made");
                let log = open(&dir);
                (dir, log)
            },
            |(dir, mut log)| {
                for index in 1..=1_000 {
                    append(&mut log, index);
                }
                (dir, log)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Batches of 1, 16 and 64 records, with one sync for each batch.
fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log/commit");
    for records in [1, 16, 64] {
        let dir = TempDir::new().expect("a directory can be made");
        let mut log = open(&dir);
        let mut open: Option<(Arc<Path>, File)> = None;
        let mut index = 0;
        group.throughput(Throughput::Elements(records));
        group.bench_function(format!("{records} records of 256 bytes"), |bencher| {
            bencher.iter(|| {
                for _ in 0..records {
                    index += 1;
                    append(&mut log, index);
                }
                while let Some(plan) = log.sync_plan() {
                    if open.as_ref().is_none_or(|(path, _)| *path != plan.path) {
                        let file = File::open(&plan.path).expect("segments can be opened");
                        open = Some((plan.path.clone(), file));
                    }
                    let (_, file) = open.as_ref().expect("it was just opened");
                    file.sync_data().expect("the disk syncs");
                    log.synced(&plan);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, appends, commits);
criterion_main!(benches);
