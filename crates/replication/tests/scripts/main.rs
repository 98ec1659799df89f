//! Golden scripts: a specification of Raft and of chain replication in files for people to read.
//!
//! A script is a file of commands, each after `> ` and followed by its effects in the notation of
//! `notation.rs`. Messages stay in flight until they are delivered, writes stay in memory until a
//! sync, and time passes only on command. `harness.rs`, `raft.rs` and `chain.rs` list the commands.
//! The directory of a script chooses the protocol.
//!
//! A test runs the commands and compares the effects.
//! `PALISADE_REWRITE=1 cargo test -p palisade-replication --test scripts` rewrites the files, for
//! review as a diff.

#![allow(clippy::disallowed_methods, reason = "reads and writes its files")]

mod chain;
mod disk;
mod harness;
mod network;
mod node;
mod notation;
mod output;
mod raft;
#[path = "../support/recover.rs"]
mod recover;

use std::{env, fs, path::Path};

use harness::{Cluster, Mode};
use palisade_replication::{chain::Chain, raft::Raft};

/// Runs the commands of a script and returns the script with their current effects.
fn replay<R: Mode>(text: &str) -> String
where
    R::Message: Clone,
{
    let mut cluster = Cluster::<R>::new();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            out += &format!("> {command}\n");
            for effect in cluster.run(command) {
                out += &format!("  {effect}\n");
            }
        } else if line.starts_with('#') || line.is_empty() {
            out += line;
            out.push('\n');
        } else {
            let is_effect = line.starts_with("  ");
            assert!(is_effect, "neither a command, a comment nor an effect: {line}");
        }
    }
    out
}

/// Checks the scripts of a directory, or rewrites them. There must be at least `minimum` of them.
fn check(directory: &str, minimum: usize, replay: fn(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(directory);
    let rewrite = env::var_os("PALISADE_REWRITE").is_some();
    let mut files: Vec<_> = fs::read_dir(&path)
        .expect("the directory of the scripts exists")
        .map(|entry| entry.expect("a file of the directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= minimum, "{} of {minimum} scripts are in {directory}", files.len());
    for path in files {
        let expected = fs::read_to_string(&path).expect("a script is text");
        let actual = replay(&expected);
        if rewrite {
            fs::write(&path, actual).expect("the script can be written");
        } else {
            assert_eq!(
                actual,
                expected,
                "{} has other effects now: rewrite it with PALISADE_REWRITE=1 and review the diff",
                path.display()
            );
        }
    }
}

#[test]
fn raft_scripts_produce_expected_effects() {
    check("raft", 18, replay::<Raft>);
}

#[test]
fn chain_scripts_produce_expected_effects() {
    check("chain", 14, replay::<Chain>);
}
