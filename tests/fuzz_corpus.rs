//! Runs the checks of the fuzz targets on their corpus and on mutations of it, so that the targets
//! stay valid without a fuzzer.
#![allow(clippy::disallowed_methods, reason = "reads the corpus")]

#[path = "fuzz/src/client_messages.rs"]
pub mod client_messages;
#[path = "fuzz/src/frames.rs"]
pub mod frames;
#[path = "fuzz/src/log_payloads.rs"]
pub mod log_payloads;
#[path = "fuzz/src/peer_messages.rs"]
pub mod peer_messages;
#[path = "fuzz/src/round_trip.rs"]
mod round_trip;
#[path = "fuzz/src/wal_recovery.rs"]
pub mod wal_recovery;

use std::{fs, panic, path::Path};

/// Mutations of each file of the corpus.
const MUTATIONS: usize = 2_000;

/// Bytes at the limits of tags, flags and integers of variable length.
const EXTREMES: [u8; 6] = [0, 1, 2, 0x7f, 0x80, 0xff];

/// Returns the names and contents of the files in the corpus of a target, ordered by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    let entries = fs::read_dir(top.join(target)).expect("the target has a corpus");
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the directory can be read").path();
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            (name, fs::read(&path).expect("the file can be read"))
        })
        .collect();
    files.sort();
    files
}

/// Returns `seed` with one to three changes.
fn mutated(seed: &[u8], files: &[(String, Vec<u8>)], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..=3) {
        let at = random.usize(0..=bytes.len());
        match random.u8(0..8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 => {
                let (_, other) = &files[random.usize(0..files.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.usize(0..=other.len())..]);
            }
            3 | 4 if at < bytes.len() => bytes[at] = EXTREMES[random.usize(0..EXTREMES.len())],
            _ if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            _ => {}
        }
    }
    bytes
}

/// Runs a check on the corpus of a target and on mutations of it. The check returns true if the
/// input is valid. Every file is, unless its name begins with `invalid`.
fn replay(target: &str, check: fn(&[u8]) -> bool) {
    let run = |name: &str, input: &[u8]| {
        let result = panic::catch_unwind(|| check(input));
        result.unwrap_or_else(|_| panic!("{target}/{name} fails as {input:02x?}: see above"))
    };
    let files = corpus(target);
    let mut random = fastrand::Rng::with_seed(7);
    for (name, seed) in &files {
        let is_valid = run(name, seed);
        assert_eq!(is_valid, !name.starts_with("invalid"), "{target}/{name} has another format");
        for _ in 0..MUTATIONS {
            run(name, &mutated(seed, &files, &mut random));
        }
    }
}

#[test]
fn codec_frames_decode_from_chunks_of_any_size() {
    replay("frames", frames::check);
}

#[test]
fn codec_client_messages_round_trip() {
    replay("client_messages", client_messages::check);
}

#[test]
fn codec_peer_messages_round_trip() {
    replay("peer_messages", peer_messages::check);
}

#[test]
fn codec_log_payloads_round_trip() {
    replay("log_payloads", log_payloads::check);
}

#[test]
fn recovery_restores_or_refuses_damaged_log() {
    replay("wal_recovery", |input| {
        wal_recovery::check(input);
        true
    });
}
