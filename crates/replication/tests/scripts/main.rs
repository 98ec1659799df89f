//! Golden scripts: what Raft does, step by step, in files for people to read and review.
//!
//! A script is a file of commands, each after `> ` and followed by its results. A test runs the
//! commands and compares the results.
//! `PALISADE_REWRITE=1 cargo test -p palisade-replication --test scripts` rewrites the files, for
//! review as a diff.
//!
//! Messages stay in flight until they are delivered, writes stay in memory until they are synced,
//! and time passes only on command.

#![allow(clippy::disallowed_methods, reason = "reads and writes its files")]

mod cluster;

use std::{env, fs, path::Path};

use cluster::Cluster;

/// Runs a script's commands and returns the script with their current results.
fn replay(text: &str) -> String {
    let mut cluster = Cluster::default();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            out += &format!("> {command}\n");
            for told in cluster.run(command) {
                out += &format!("  {told}\n");
            }
        } else if line.starts_with('#') || line.is_empty() {
            out += line;
            out.push('\n');
        }
    }
    out
}

#[test]
fn scripts_say_what_follows() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let rewrite = env::var_os("PALISADE_REWRITE").is_some();
    let mut files: Vec<_> = fs::read_dir(&dir)
        .expect("the scripts are there")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "scripts are missing");
    for path in files {
        let text = fs::read_to_string(&path).expect("a script is text");
        let now = replay(&text);
        if rewrite {
            fs::write(&path, now).expect("it can be written");
        } else {
            assert_eq!(now, text, "{} says something else", path.display());
        }
    }
}
