//! Recovery: durable records come back, a torn tail is cut, and damage is refused.
#![allow(clippy::disallowed_methods, reason = "tests touch real files")]

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use palisade_wal::{
    Backend, Log, LogOptions, Record, RecordKind, SegmentRole, WalError, inspect, record_bytes,
};

const SEGMENT_BYTES: u64 = LogOptions::MIN_SEGMENT_BYTES;
const FIRST_RECORD: u64 = 4096;

fn options() -> LogOptions {
    LogOptions {
        cluster_id: 7,
        node: 1,
        shard: 0,
        segment_bytes: SEGMENT_BYTES,
        limit_bytes: 4 * SEGMENT_BYTES,
        ahead_bytes: 0,
        backend: Backend::Mapped,
    }
}

type Entry = (u32, u64, Vec<u8>);

fn open(dir: &Path) -> Result<(Log, Vec<Entry>), WalError> {
    let mut entries = Vec::new();
    let log = Log::open(dir, options(), &|_| {}, |record| {
        entries.push((record.group, record.index, record.payload.to_vec()));
    })?;
    Ok((log, entries))
}

fn payload(index: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (index as usize * 31 + at) as u8 | 1).collect()
}

fn append(log: &mut Log, index: u64, bytes: usize) -> Result<u64, WalError> {
    let payload = payload(index, bytes);
    log.append(&Record {
        kind: RecordKind::Entry,
        group: 3,
        term: 2,
        index,
        part: 0,
        payload: &payload,
    })
}

fn append_all(log: &mut Log, indexes: std::ops::RangeInclusive<u64>, bytes: usize) {
    for index in indexes {
        while let Err(error) = append(log, index, bytes) {
            assert!(matches!(error, WalError::NotReady), "{error}");
            std::thread::yield_now();
        }
    }
}

fn sync(log: &mut Log) {
    while let Some(plan) = log.sync_plan() {
        fs::File::open(&plan.path).unwrap().sync_data().unwrap();
        log.synced(&plan);
    }
}

fn expected(indexes: std::ops::RangeInclusive<u64>, bytes: usize) -> Vec<Entry> {
    indexes.map(|index| (3, index, payload(index, bytes))).collect()
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("00000000.seg")
}

fn damage(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

#[test]
fn recovery_returns_records_in_order_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, entries) = open(dir.path()).unwrap();
    assert_eq!(entries, []);
    append_all(&mut log, 1..=12, 1024 * 1024);
    sync(&mut log);
    let end = log.end();
    drop(log);
    let (mut log, entries) = open(dir.path()).unwrap();
    assert!(entries == expected(1..=12, 1024 * 1024));
    assert_eq!(log.end(), end);
    assert_eq!(log.durable(), end);
    append_all(&mut log, 13..=14, 1024 * 1024);
    drop(log);
    let (_, entries) = open(dir.path()).unwrap();
    assert!(entries == expected(1..=14, 1024 * 1024));
}

#[test]
fn append_at_limit_fails_before_writing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let mut written = 0;
    loop {
        match append(&mut log, written + 1, 1024 * 1024) {
            Ok(_) => written += 1,
            Err(WalError::NotReady) => std::thread::yield_now(),
            Err(WalError::Full { limit_bytes }) => {
                assert_eq!(limit_bytes, 4 * SEGMENT_BYTES);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(log.left_bytes() < 1024 * 1024 + 4096);
    // Smaller records still fit, and every record is recovered.
    append(&mut log, written + 1, 10).unwrap();
    drop(log);
    let (_, entries) = open(dir.path()).unwrap();
    assert_eq!(entries.len() as u64, written + 1);
}

#[test]
fn recovery_truncates_torn_tail_permanently() {
    const BYTES: usize = 40;
    let record = record_bytes(BYTES) as u64;
    for torn_at in 0..record {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path()).unwrap();
        append_all(&mut log, 1..=2, BYTES);
        sync(&mut log);
        append_all(&mut log, 3..=5, BYTES);
        drop(log);
        // Records 3 to 5 were never synced. Record 3 is torn; 4 and 5 are on disk.
        let padding = record - (48 + BYTES as u64);
        if torn_at >= record - padding {
            continue;
        }
        damage(&first_segment(dir.path()), FIRST_RECORD + 2 * record + torn_at);
        let (mut log, entries) = open(dir.path()).unwrap();
        assert_eq!(entries, expected(1..=2, BYTES), "torn at {torn_at}");
        // Appends the same record 3 again. The old records 4 and 5 must not reappear after it.
        append_all(&mut log, 3..=3, BYTES);
        drop(log);
        let (_, entries) = open(dir.path()).unwrap();
        assert_eq!(entries, expected(1..=3, BYTES), "torn at {torn_at}");
    }
}

#[test]
fn recovery_refuses_durable_damage_without_writing() {
    const BYTES: usize = 40;
    let record = record_bytes(BYTES) as u64;
    for at in 0..2 * record {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path()).unwrap();
        append_all(&mut log, 1..=2, BYTES);
        sync(&mut log);
        // Record 3 is the first to show that records 1 and 2 are durable.
        append_all(&mut log, 3..=3, BYTES);
        drop(log);
        let path = first_segment(dir.path());
        damage(&path, FIRST_RECORD + at);
        let before = fs::read(&path).unwrap();
        match open(dir.path()) {
            Err(WalError::Corrupt { path: named, offset, .. }) => {
                assert_eq!(named, path);
                assert!(offset <= FIRST_RECORD + at, "{offset} {at}");
            }
            other => panic!("damage at {at} went unnoticed: {:?}", other.map(|(_, e)| e)),
        }
        assert!(before == fs::read(&path).unwrap());
    }
}

#[test]
fn open_refuses_log_of_other_cluster_or_segment_size() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let other = LogOptions { cluster_id: 8, ..options() };
    let error = Log::open(dir.path(), other, &|_| {}, |_| {}).unwrap_err();
    assert!(error.to_string().contains("another cluster"), "{error}");
    let other =
        LogOptions { segment_bytes: SEGMENT_BYTES + 16384, limit_bytes: 1 << 30, ..options() };
    let error = Log::open(dir.path(), other, &|_| {}, |_| {}).unwrap_err();
    assert!(error.to_string().contains("segment size"), "{error}");
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
}

#[test]
fn recovery_tolerates_any_subset_of_unsynced_pages() {
    const PAGE: usize = 4096;
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path()).unwrap();
        let durable = rng.u64(1..20);
        for index in 1..=durable {
            append_all(&mut log, index..=index, 700);
            if rng.bool() {
                sync(&mut log);
            }
        }
        sync(&mut log);
        let path = first_segment(dir.path());
        let synced = fs::read(&path).unwrap();
        append_all(&mut log, durable + 1..=durable + 30, 700);
        drop(log);
        // Power loss: any subset of the pages written since the last sync is on disk.
        let written = fs::read(&path).unwrap();
        let mut landed = synced.clone();
        for page in (0..written.len()).step_by(PAGE) {
            if rng.bool() {
                landed[page..page + PAGE].copy_from_slice(&written[page..page + PAGE]);
            }
        }
        fs::write(&path, &landed).unwrap();
        let (_, entries) = open(dir.path()).unwrap();
        let kept = entries.len() as u64;
        assert!(kept >= durable, "round {round}: {kept} of {durable} durable records are left");
        assert_eq!(entries, expected(1..=kept, 700));
    }
}

fn append_record(log: &mut Log, kind: RecordKind, group: u32, index: u64, part: u32, bytes: usize) {
    let payload = payload(index, bytes);
    let record = Record { kind, group, term: 1, index, part, payload: &payload };
    while let Err(error) = log.append(&record) {
        assert!(matches!(error, WalError::NotReady), "{error}");
        std::thread::yield_now();
    }
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Writes more than ten times the limit to a log whose group takes snapshots, with restarts.
#[test]
fn segments_are_reused_once_no_group_needs_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let mut index = 0;
    for round in 0..60 {
        for _ in 0..6 {
            index += 1;
            append_record(&mut log, RecordKind::Entry, 3, index, 0, 1024 * 1024);
        }
        sync(&mut log);
        append_record(&mut log, RecordKind::Snapshot, 3, index, 0, 10);
        append_record(&mut log, RecordKind::SnapshotEnd, 3, index, 1, 500_000);
        sync(&mut log);
        assert!(files(dir.path()) as u64 <= options().limit_bytes / SEGMENT_BYTES);
        if round % 10 == 9 {
            drop(log);
            let entries;
            (log, entries) = open(dir.path()).unwrap();
            let (_, last, payload_of_last) = entries.last().unwrap();
            assert_eq!((*last, payload_of_last.len()), (index, 500_000));
            assert!(entries.len() < 30, "{} records are left", entries.len());
        }
    }
}

#[test]
fn pinning_names_idle_group_of_full_log() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    append_record(&mut log, RecordKind::State, 9, 0, 0, 20);
    for index in 1..=40 {
        let payload = payload(index, 1024 * 1024);
        let kind = RecordKind::Entry;
        let record = Record { kind, group: 3, term: 1, index, part: 0, payload: &payload };
        loop {
            match log.append(&record) {
                Ok(_) => break,
                Err(WalError::NotReady) => std::thread::yield_now(),
                Err(WalError::Full { .. }) => {
                    assert_eq!(log.pinning().collect::<Vec<_>>(), [9]);
                    // A small record still fits. Once it is durable, large ones fit again.
                    append_record(&mut log, RecordKind::State, 9, 0, 0, 20);
                    sync(&mut log);
                    assert_ne!(log.pinning().collect::<Vec<_>>(), [9]);
                    append_record(&mut log, RecordKind::Entry, 3, index, 0, 1024 * 1024);
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
        append_record(&mut log, RecordKind::Snapshot, 3, index, 0, 1);
        append_record(&mut log, RecordKind::SnapshotEnd, 3, index, 1, 1);
        sync(&mut log);
    }
    panic!("the log never filled up");
}

/// Like `recovery_tolerates_any_subset_of_unsynced_pages`, but over several segments, most of them
/// reused.
#[test]
fn recovery_tolerates_unsynced_pages_in_recycled_segments() {
    const PAGE: usize = 4096;
    let mut rng = fastrand::Rng::with_seed(12);
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let mut index = 0;
    for round in 0..15 {
        // Appends enough for every file to be reused.
        for _ in 0..rng.u64(1..4) {
            for _ in 0..rng.u64(4..14) {
                index += 1;
                append_record(&mut log, RecordKind::Entry, 3, index, 0, rng.usize(1..1_500_000));
                if rng.bool() {
                    sync(&mut log);
                }
            }
            append_record(&mut log, RecordKind::Snapshot, 3, index, 0, 10);
            append_record(&mut log, RecordKind::SnapshotEnd, 3, index, 1, 10);
            sync(&mut log);
        }
        let durable = index;
        let synced = contents(dir.path());
        for _ in 0..rng.u64(1..10) {
            index += 1;
            append_record(&mut log, RecordKind::Entry, 3, index, 0, rng.usize(1..1_500_000));
        }
        drop(log);
        for (path, mut written) in contents(dir.path()) {
            if let Some((_, before)) = synced.iter().find(|(other, _)| *other == path) {
                for page in (0..written.len()).step_by(PAGE) {
                    if rng.bool() {
                        written[page..page + PAGE].copy_from_slice(&before[page..page + PAGE]);
                    }
                }
                fs::write(&path, written).unwrap();
            }
        }
        let entries;
        (log, entries) = open(dir.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let last = entries.iter().map(|(_, index, _)| *index).max().unwrap();
        assert!((durable..=index).contains(&last), "round {round}: {last} of {durable}");
        for (_, index, found) in entries.iter().filter(|(_, index, _)| *index > durable) {
            assert!(*found == payload(*index, found.len()));
        }
        index = last;
    }
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

#[test]
fn append_after_failed_sync_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    append_all(&mut log, 1..=2, 40);
    log.sync_failed();
    assert!(matches!(append(&mut log, 3, 40), Err(WalError::Poisoned)));
    assert!(log.sync_plan().is_none());
}

#[test]
fn inspection_is_read_only_and_reports_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    append_all(&mut log, 1..=12, 1024 * 1024);
    sync(&mut log);
    append_all(&mut log, 13..=13, 10);
    let end = log.end();
    drop(log);
    fs::write(dir.path().join("00000009.tmp"), "unfinished").unwrap();
    let before = contents(dir.path());
    let mut indexes = Vec::new();
    let inspection = inspect(dir.path(), |_, found| indexes.push(found.record.index)).unwrap();
    assert_eq!(indexes, (1..=13).collect::<Vec<_>>());
    assert_eq!(inspection.end.unwrap(), end);
    let live = inspection.segments.iter().filter(|segment| segment.role == SegmentRole::Live);
    assert_eq!(live.clone().map(|segment| segment.records).sum::<u64>(), 13);
    assert_eq!(live.map(|segment| segment.sequence).collect::<Vec<_>>(), [Some(0), Some(1)]);
    damage(&first_segment(dir.path()), FIRST_RECORD + 100);
    let inspection = inspect(dir.path(), |_, _| {}).unwrap();
    let error = inspection.end.unwrap_err().to_string();
    assert!(error.contains("00000000.seg") && error.contains("damaged at byte 4096"), "{error}");
    damage(&first_segment(dir.path()), FIRST_RECORD + 100);
    assert!(before == contents(dir.path()));
}
