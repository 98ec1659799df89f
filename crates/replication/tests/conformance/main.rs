//! The conformance suite of both protocols. Groups run under a random adversary that loses,
//! repeats, delays and reorders messages, and crashes members, which may then lose unsynced writes.
//! Afterwards the group is healed and must make progress.
//!
//! `PALISADE_SEED=7 cargo test -p palisade-replication` runs one seed alone;
//! `PALISADE_SEEDS=100000` runs that many seeds.

#![allow(clippy::print_stdout, reason = "a failing test shows its seed")]

mod adversary;
mod chain;
mod group;
mod raft;
#[path = "../support/recover.rs"]
mod recover;

use std::{env, ops::Range};

/// Returns the seeds to run: one or a number of them from the environment, or `default_count`.
fn seeds(default_count: u64) -> Range<u64> {
    let number = |name| env::var(name).ok().map(|value| value.parse::<u64>().expect(name));
    match (number("PALISADE_SEED"), number("PALISADE_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(default_count),
    }
}
