//! Fills a real file system: a small tmpfs in a mount namespace of its own.
#![allow(clippy::disallowed_methods, reason = "tests touch real files")]

use std::{
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use palisade_wal::{Backend, Log, LogOptions, Record, RecordKind, WalError};

const INSIDE: &str = "PALISADE_TEST_INSIDE";

fn options() -> LogOptions {
    LogOptions {
        cluster_id: 1,
        node: 0,
        shard: 0,
        segment_bytes: LogOptions::MIN_SEGMENT_BYTES,
        limit_bytes: 16 * LogOptions::MIN_SEGMENT_BYTES,
        ahead_bytes: 0,
        backend: Backend::Mapped,
    }
}

/// Runs this test again in a mount namespace of its own.
fn enter(test: &str, dir: &Path) {
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, dir)
        .status()
        .unwrap();
    assert!(status.success(), "inside: {status} (a user namespace must be allowed for this test)");
}

fn append(log: &mut Log, index: u64) -> Result<u64, WalError> {
    let payload = vec![index as u8; 1024 * 1024];
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let kind = RecordKind::Entry;
        let appended =
            log.append(&Record { kind, group: 1, term: 1, index, part: 0, payload: &payload });
        match appended {
            Err(WalError::NotReady) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            appended => return appended,
        }
    }
}

/// Scenario 45: a full disk causes an error and no signal, and loses nothing. Appends continue once
/// there is space.
#[test]
fn full_disk_returns_error_and_loses_nothing() {
    let Some(dir) = env::var_os(INSIDE) else {
        let dir = tempfile::tempdir().unwrap();
        return enter("full_disk_returns_error_and_loses_nothing", dir.path());
    };
    let dir = Path::new(&dir);
    let mount = ["-t", "tmpfs", "-o", "size=37m", "tmpfs"];
    assert!(Command::new("mount").args(mount).arg(dir).status().unwrap().success());
    fs::write(dir.join("ballast"), vec![1; 12 << 20]).unwrap();
    let log_dir = dir.join("log");
    // 25 MiB are left: three segments of 8 MiB, and a part of the fourth.
    let mut log = Log::open(&log_dir, options(), &|_| {}, |_| {}).unwrap();
    let mut index = 0;
    let error = loop {
        match append(&mut log, index + 1) {
            Ok(_) => index += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, WalError::Io { .. }), "{error}");
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!((14..=24).contains(&index), "{index} records came before the end");
    assert!(log.left_bytes() < 2 << 20, "{} bytes are said to be left", log.left_bytes());

    fs::remove_file(dir.join("ballast")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while log.prepare().is_err() || log.left_bytes() < 8 << 20 {
        assert!(Instant::now() < deadline, "the room is not noticed");
        thread::sleep(Duration::from_millis(10));
    }
    append(&mut log, index + 1).unwrap();
    drop(log);
    let mut next = 1;
    Log::open(&log_dir, options(), &|_| {}, |record| {
        assert_eq!((record.index, record.payload[0]), (next, next as u8));
        next += 1;
    })
    .unwrap();
    assert_eq!(next, index + 2);
}
