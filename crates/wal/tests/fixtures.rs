//! Logs of the current format version, whole and damaged. Every build must read them the same way,
//! and must write the same bytes for the same records. A change of the format needs a new version,
//! and must keep these files.
//!
//! A fixture is a segment without its trailing zeros.
#![allow(clippy::disallowed_methods, reason = "tests touch real files")]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use palisade_wal::{Backend, Log, LogOptions, Record, RecordKind, WalError};

const SEGMENT_BYTES: u64 = LogOptions::MIN_SEGMENT_BYTES;

fn options() -> LogOptions {
    LogOptions {
        cluster_id: 0x1122_3344_5566_7788,
        node: 2,
        shard: 1,
        segment_bytes: SEGMENT_BYTES,
        limit_bytes: 4 * SEGMENT_BYTES,
        ahead_bytes: 0,
        backend: Backend::Mapped,
    }
}

/// At least one record of each kind except the seal, and entries of several sizes.
const RECORDS: [Record<'static>; 8] = [
    record(RecordKind::State, 1, 1, 0, 0, b"state"),
    record(RecordKind::Entry, 1, 1, 1, 0, b""),
    record(RecordKind::Entry, 1, 1, 2, 0, b"an entry of thirty-two bytes...."),
    record(RecordKind::Members, 1, 2, 3, 0, b"members"),
    record(RecordKind::Entry, u32::MAX, u64::MAX, u64::MAX, 0, b"the largest numbers"),
    record(RecordKind::Snapshot, 7, 3, 9, 0, b"part"),
    record(RecordKind::SnapshotEnd, 7, 3, 9, 1, b"last part"),
    record(RecordKind::Replacement, 8, 4, 5, 0, b"all at once"),
];

const fn record(
    kind: RecordKind,
    group: u32,
    term: u64,
    index: u64,
    part: u32,
    payload: &[u8],
) -> Record<'_> {
    Record { kind, group, term, index, part, payload }
}

/// Number of records that are synced before the others are written.
const SYNCED: usize = 5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v3")
}

fn fixture(name: &str) -> Vec<u8> {
    let path = fixtures().join(name).with_extension("seg");
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Opens a log of one segment. Returns its records, or the error.
fn open(bytes: &[u8]) -> Result<Vec<(RecordKind, u64, Vec<u8>)>, WalError> {
    let dir = tempfile::tempdir().unwrap();
    let mut padded = bytes.to_vec();
    padded.resize(SEGMENT_BYTES as usize, 0);
    fs::write(dir.path().join("00000000.seg"), &padded).unwrap();
    let mut found = Vec::new();
    let opened = Log::open(dir.path(), options(), &|_| {}, |r| {
        found.push((r.kind, r.index, r.payload.to_vec()));
    });
    if opened.is_err() {
        assert!(fs::read(dir.path().join("00000000.seg")).unwrap() == padded, "it was changed");
    }
    opened.map(|_| found)
}

/// Returns the bytes that this build writes for `RECORDS`.
fn written() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open(dir.path(), options(), &|_| {}, |_| {}).unwrap();
    let sync = |log: &mut Log| {
        let plan = log.sync_plan().unwrap();
        fs::File::open(&plan.path).unwrap().sync_data().unwrap();
        log.synced(&plan);
        plan.path
    };
    let mut path = None;
    for (at, record) in RECORDS.iter().enumerate() {
        while let Err(error) = log.append(record) {
            assert!(matches!(error, WalError::NotReady), "{error}");
            thread::yield_now();
        }
        if at + 1 == SYNCED {
            path = Some(sync(&mut log));
        }
    }
    sync(&mut log);
    let mut bytes = fs::read(path.unwrap()).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate(end + 1);
    bytes
}

#[test]
fn fixture_bytes_match_encoded_records() {
    assert!(written() == fixture("whole"), "the format has changed without a new version");
}

#[test]
fn fixture_logs_recover_expected_records() {
    let expected: Vec<_> = RECORDS.iter().map(|r| (r.kind, r.index, r.payload.to_vec())).collect();
    assert_eq!(open(&fixture("whole")).unwrap(), expected);
    // The last record may be torn: no record shows that it was durable.
    assert_eq!(open(&fixture("torn-tail")).unwrap(), expected[..7]);
    assert_eq!(open(&fixture("empty")).unwrap(), []);
}

#[test]
fn fixture_damage_is_refused_with_its_cause() {
    let table = [
        ("flipped-record", "a record does not verify"),
        ("lost-record", "a record does not verify"),
        ("misdirected-record", "a record does not verify"),
        ("flipped-header", "the segment header does not verify"),
        ("version-2", "its format version is not read by this build"),
        ("other-node", "it belongs to another node or shard"),
        ("not-a-segment", "it is not a log segment"),
    ];
    for (name, expected) in table {
        let error = open(&fixture(name)).expect_err(name).to_string();
        assert!(error.contains(expected) && error.contains("00000000.seg"), "{name}: {error}");
    }
}

/// Writes the fixtures of a new version: a new log, and copies with the damage that their names
/// describe.
#[test]
#[ignore = "writes files of the project"]
fn fixtures_generate_new_format_version() {
    let whole = written();
    let keep = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let path = fixtures().join(name).with_extension("seg");
        assert!(!path.exists(), "{} is kept already", path.display());
        fs::create_dir_all(fixtures()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let at = |nth: usize| {
        let before =
            RECORDS[..nth].iter().map(|record| palisade_wal::record_bytes(record.payload.len()));
        4096 + before.sum::<usize>()
    };
    keep("whole", &|_| {});
    keep("empty", &|bytes| bytes.truncate(4096));
    keep("torn-tail", &|bytes| bytes.truncate(at(7) + 20));
    keep("flipped-record", &|bytes| bytes[at(2) + 50] ^= 1);
    keep("lost-record", &|bytes| bytes[at(2)..at(3)].fill(0));
    keep("misdirected-record", &|bytes| bytes.copy_within(at(5)..at(6), at(1)));
    keep("flipped-header", &|bytes| bytes[16] ^= 1);
    keep("version-2", &|bytes| bytes[8] = 2);
    keep("other-node", &|bytes| {
        bytes[24] = 3;
        bytes[12..16].fill(0);
        let crc = crc32fast::hash(&bytes[..56]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    keep("not-a-segment", &|bytes| bytes[..8].copy_from_slice(b"NOTAWAL."));
}
