//! What is durable comes back, what was torn is cut, what is damaged is refused.
#![allow(clippy::disallowed_methods, reason = "tests touch real files")]

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use palisade_wal::{Log, LogOptions, Record, RecordKind, WalError, record_bytes};

const SEGMENT_BYTES: u64 = LogOptions::MIN_SEGMENT_BYTES;
const FIRST_RECORD: u64 = 4096;

fn options() -> LogOptions {
    LogOptions {
        cluster_id: 7,
        node: 1,
        shard: 0,
        segment_bytes: SEGMENT_BYTES,
        limit_bytes: 4 * SEGMENT_BYTES,
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
    let Some(plan) = log.sync_plan() else { return };
    for path in &plan.files {
        fs::File::open(path).unwrap().sync_data().unwrap();
    }
    log.synced(plan.up_to);
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
fn records_come_back_in_order_over_segments_and_restarts() {
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
fn the_limit_is_an_error_before_anything_is_written() {
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
    // Smaller records still fit, and all is there afterwards.
    append(&mut log, written + 1, 10).unwrap();
    drop(log);
    let (_, entries) = open(dir.path()).unwrap();
    assert_eq!(entries.len() as u64, written + 1);
}

#[test]
fn a_torn_tail_is_cut_wherever_it_tears_and_does_not_come_back() {
    const BYTES: usize = 40;
    let record = record_bytes(BYTES) as u64;
    for torn_at in 0..record {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path()).unwrap();
        append_all(&mut log, 1..=2, BYTES);
        sync(&mut log);
        append_all(&mut log, 3..=5, BYTES);
        drop(log);
        // Of records 3 to 5, which were never synced, the third is torn while the others landed.
        let padding = record - (48 + BYTES as u64);
        if torn_at >= record - padding {
            continue;
        }
        damage(&first_segment(dir.path()), FIRST_RECORD + 2 * record + torn_at);
        let (mut log, entries) = open(dir.path()).unwrap();
        assert_eq!(entries, expected(1..=2, BYTES), "torn at {torn_at}");
        // The same third record again: the fourth and fifth must not be revived behind it.
        append_all(&mut log, 3..=3, BYTES);
        drop(log);
        let (_, entries) = open(dir.path()).unwrap();
        assert_eq!(entries, expected(1..=3, BYTES), "torn at {torn_at}");
    }
}

#[test]
fn damage_of_durable_records_is_refused_and_changes_nothing() {
    const BYTES: usize = 40;
    let record = record_bytes(BYTES) as u64;
    for at in 0..2 * record {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path()).unwrap();
        append_all(&mut log, 1..=2, BYTES);
        sync(&mut log);
        // The first record to know that the two before it are durable.
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
fn a_log_of_another_cluster_or_another_size_is_refused() {
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
fn any_subset_of_unsynced_pages_may_land() {
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
        // Power loss: of the pages written since the last sync, any subset is on the disk.
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
