//! The backend that writes past the page cache: only the pages that a plan names need to be
//! written, and each backend opens logs written by the other.
#![allow(clippy::disallowed_methods, reason = "tests touch real files")]

use std::{fs::OpenOptions, os::unix::fs::FileExt, path::Path, thread};

use palisade_wal::{Backend, Log, LogOptions, Record, RecordKind, SyncPlan, WalError};

const SEGMENT_BYTES: u64 = LogOptions::MIN_SEGMENT_BYTES;
const PAGE: usize = 4096;

fn options(backend: Backend) -> LogOptions {
    LogOptions {
        cluster_id: 7,
        node: 1,
        shard: 0,
        segment_bytes: SEGMENT_BYTES,
        limit_bytes: 5 * SEGMENT_BYTES,
        ahead_bytes: 0,
        backend,
    }
}

fn open(dir: &Path, backend: Backend) -> (Log, Vec<(RecordKind, u64)>) {
    let mut found = Vec::new();
    let log = Log::open(dir, options(backend), &|_| {}, |record| {
        assert!(record.payload == payload(record.index, record.payload.len()));
        found.push((record.kind, record.index));
    });
    (log.unwrap(), found)
}

fn payload(index: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (index as usize * 31 + at) as u8 | 1).collect()
}

fn append(log: &mut Log, kind: RecordKind, index: u64, bytes: usize) {
    append_part(log, kind, index, 0, bytes);
}

fn append_part(log: &mut Log, kind: RecordKind, index: u64, part: u32, bytes: usize) {
    let payload = payload(index, bytes);
    let record = Record { kind, group: 3, term: 2, index, part, payload: &payload };
    while let Err(error) = log.append(&record) {
        assert!(matches!(error, WalError::NotReady), "{error}");
        thread::yield_now();
    }
}

/// Writes the pages of a plan for which `lands` returns true, and syncs the file.
fn write(log: &Log, plan: &SyncPlan, backend: Backend, mut lands: impl FnMut() -> bool) {
    let file = OpenOptions::new().write(true).open(&plan.path).unwrap();
    if backend == Backend::Direct {
        for (at, page) in log.pages(plan).chunks(PAGE).enumerate() {
            if lands() {
                file.write_all_at(page, plan.pages.start + (at * PAGE) as u64).unwrap();
            }
        }
    }
    file.sync_data().unwrap();
}

fn sync(log: &mut Log, backend: Backend) {
    while let Some(plan) = log.sync_plan() {
        assert!(plan.pages.start.is_multiple_of(PAGE as u64) && !plan.pages.is_empty());
        write(log, &plan, backend, || true);
        log.synced(&plan);
    }
}

/// Random appends and syncs over reused segments. Each round ends with a crash in the middle of a
/// write, and picks a random backend.
#[test]
fn plan_covers_all_unsynced_pages() {
    let seed = 11;
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut backend, mut index, mut durable) = (Backend::Direct, 0, 0);
    let (mut log, _) = open(dir.path(), backend);
    let mut torn = 0;
    for round in 0..60 {
        for _ in 0..rng.usize(1..8) {
            for _ in 0..rng.usize(1..6) {
                index += 1;
                let large = rng.u8(..) < 100;
                let bytes = rng.usize(if large { 1..1_500_000 } else { 0..300 });
                append(&mut log, RecordKind::Entry, index, bytes);
                if index % 16 == 0 {
                    append(&mut log, RecordKind::Snapshot, index, 10);
                    append_part(&mut log, RecordKind::SnapshotEnd, index, 1, 0);
                }
            }
            sync(&mut log, backend);
            durable = index;
        }
        // A crash: any subset of the pages appended since may be on disk.
        for _ in 0..rng.usize(0..4) {
            index += 1;
            append(&mut log, RecordKind::Entry, index, rng.usize(0..20_000));
        }
        if let Some(plan) = log.sync_plan() {
            write(&log, &plan, backend, || rng.bool());
        }
        drop(log);
        backend = if rng.bool() { Backend::Direct } else { Backend::Mapped };
        let found;
        (log, found) = open(dir.path(), backend);
        let last = found.iter().map(|(_, index)| *index).max().unwrap();
        assert!((durable..=index).contains(&last), "round {round}: {last} of {durable}..={index}");
        assert_eq!(log.sync_plan(), None, "what was found is durable");
        torn += u32::from(last < index);
        index = last;
    }
    assert!(torn > 3, "only {torn} crashes lost something");
    assert!(log.end() > 8 * SEGMENT_BYTES, "no segment was used again");
}

/// A page that both plans cover is written again by the second.
#[test]
fn plan_excludes_appends_made_during_write() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), Backend::Direct);
    append(&mut log, RecordKind::Entry, 1, 100);
    let first = log.sync_plan().unwrap();
    assert_eq!((first.pages.clone(), first.appends, first.seals), (4096..8192, 1, false));
    append(&mut log, RecordKind::Entry, 2, 5000);
    write(&log, &first, Backend::Direct, || true);
    log.synced(&first);
    assert_eq!(log.durable(), first.up_to);
    let second = log.sync_plan().unwrap();
    assert_eq!((second.pages.clone(), second.appends), (4096..12288, 2));
}

/// A plan covers one segment only. The next plan starts with the new segment's header.
#[test]
fn plan_covers_one_segment_only() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), Backend::Direct);
    for index in 1..=9 {
        append(&mut log, RecordKind::Entry, index, 1_000_000);
    }
    let sealed = log.sync_plan().unwrap();
    assert!(sealed.seals && sealed.appends == 8 && sealed.up_to < SEGMENT_BYTES, "{sealed:?}");
    write(&log, &sealed, Backend::Direct, || true);
    log.synced(&sealed);
    let active = log.sync_plan().unwrap();
    assert!(!active.seals && active.appends == 9 && active.pages.start == 0, "{active:?}");
    assert_ne!(active.path, sealed.path);
}
