//! Proves that the simulator's checks can fail: for each rule that is broken on purpose, some seed
//! reports a violation.
// These are thousands of runs: `.ci/run` runs them in an optimised build.
#![cfg(not(debug_assertions))]
#![allow(clippy::print_stdout, reason = "tells which seed it was")]

use palisade_replication::ProtocolFault;
use palisade_shard::TestFault;
use palisade_simulator::{FaultKind, Parameters, Trace, simulate};
use palisade_wire::Mode;

/// Every planted fault must be caught within this many seeds.
const MAX_SEEDS: u64 = 2_000;

fn is_caught(name: &str, plant: impl Fn(&mut Parameters)) {
    is_caught_as(name, "", plant);
}

/// Asserts that a seed reports a violation of an invariant whose name contains `invariant`.
fn is_caught_as(name: &str, invariant: &str, plant: impl Fn(&mut Parameters)) {
    for seed in 0..MAX_SEEDS {
        let mut parameters = Parameters::draw(seed);
        plant(&mut parameters);
        if let Err(failure) = simulate(&parameters, Trace::Off) {
            // Printed first, because the simulator's panic hook would hide a failed assertion.
            println!("{name}: seed {seed}: {}", failure.violation);
            assert!(failure.violation.invariant.contains(invariant), "{failure}");
            return;
        }
    }
    panic!("{name}: not caught within {MAX_SEEDS} seeds");
}

/// Part of the name of the invariant `external_consistency`.
const ORDER: &str = "commits are ordered";

fn fault_is_caught(fault: TestFault) {
    is_caught(&format!("{fault:?}"), |parameters| parameters.planted = Some(fault));
}

fn protocol_fault_is_caught(fault: ProtocolFault) {
    fault_is_caught(TestFault::Protocol(fault));
}

#[test]
fn learners_that_are_counted() {
    protocol_fault_is_caught(ProtocolFault::CountLearners);
}

#[test]
fn a_vote_that_is_not_synced() {
    protocol_fault_is_caught(ProtocolFault::UnsyncedVote);
}

#[test]
fn a_confirmation_that_is_not_synced() {
    protocol_fault_is_caught(ProtocolFault::UnsyncedConfirmation);
}

#[test]
fn an_entry_of_an_earlier_term_committed_by_counting() {
    protocol_fault_is_caught(ProtocolFault::CommitByCounting);
}

#[test]
fn a_lease_that_never_ends() {
    protocol_fault_is_caught(ProtocolFault::EndlessLease);
}

#[test]
fn promises_that_are_broken() {
    protocol_fault_is_caught(ProtocolFault::BreakPromises);
}

const LEASES: &str = "a lease excludes later leaders";

/// Nodes are silenced for about as long as a promise lasts, with long delays and turns. In other
/// runs, a promise that is broken by a few milliseconds is rarely seen.
#[test]
fn a_stand_without_a_look_at_the_promise() {
    is_caught_as("stand without a look", LEASES, |parameters| {
        parameters.planted = Some(TestFault::Protocol(ProtocolFault::StandUnlooked));
        parameters.nodes = 3;
        parameters.only = Some(Mode::Raft);
        parameters.faults = vec![FaultKind::Silence];
        parameters.fault_interval_us = 700_000;
        parameters.delay_us = 25_000;
        parameters.turn_us = 40_000;
    });
}

/// A turn must receive a vote request, a heartbeat of the old leader and a tick. Nodes are paused
/// for about as long as a promise lasts, and threads are stopped often, so that turns are long.
#[test]
fn a_heartbeat_ahead_of_its_revocation() {
    is_caught_as("early heartbeats", LEASES, |parameters| {
        parameters.planted = Some(TestFault::EarlyHeartbeats);
        parameters.nodes = 3;
        parameters.only = Some(Mode::Raft);
        parameters.ranges_per_mode = 3;
        parameters.clients = 1;
        parameters.faults = vec![FaultKind::Pause];
        parameters.fault_us = 180_000_000;
        parameters.fault_interval_us = 400_000;
        parameters.fault_length_us = 300_000;
        parameters.stopped_turns = 1_024;
        parameters.turn_us = 40_000;
    });
}

/// Half of the wait would be enough only if clocks were right to within half of their bound.
#[test]
fn a_commit_wait_that_is_half_as_long() {
    is_caught_as("half a commit wait", ORDER, |parameters| {
        parameters.planted = Some(TestFault::HalfCommitWait);
        // Snapshot reads detect this too, under the name of another invariant.
        parameters.snapshot_percent = 0;
    });
}

#[test]
fn a_read_before_the_term_has_begun() {
    protocol_fault_is_caught(ProtocolFault::EarlyReads);
}

#[test]
fn voters_that_change_at_once() {
    protocol_fault_is_caught(ProtocolFault::NoJointConsensus);
}

#[test]
fn a_vote_for_an_incomplete_log() {
    protocol_fault_is_caught(ProtocolFault::IncompleteLeader);
}

#[test]
fn a_tail_that_commits_alone() {
    protocol_fault_is_caught(ProtocolFault::EagerTail);
}

#[test]
fn votes_that_are_forgotten() {
    fault_is_caught(TestFault::ForgetVotes);
}

#[test]
fn outcomes_that_a_snapshot_leaves_out() {
    fault_is_caught(TestFault::ForgetOutcomes);
}

#[test]
fn a_lost_log_that_is_trusted() {
    fault_is_caught(TestFault::TrustEmptyLog);
}

#[test]
fn reads_that_are_stale() {
    fault_is_caught(TestFault::StaleReads);
}

#[test]
fn entries_that_are_forgotten() {
    fault_is_caught(TestFault::ForgetOnRestart { entries: 1 });
}

#[test]
fn answers_that_do_not_wait() {
    is_caught_as("no commit wait", ORDER, |parameters| {
        parameters.planted = Some(TestFault::NoCommitWait);
        // Snapshot reads detect this too, under the name of another invariant.
        parameters.snapshot_percent = 0;
    });
}

#[test]
fn conditions_that_are_ignored() {
    let plant =
        |parameters: &mut Parameters| parameters.planted = Some(TestFault::IgnoreConditions);
    is_caught_as("ignored conditions", "commits of several keys", plant);
}

fn transactions_break(fault: TestFault) {
    let plant = |parameters: &mut Parameters| parameters.planted = Some(fault);
    is_caught_as(&format!("{fault:?}"), "transactions are strictly", plant);
}

#[test]
fn locks_that_do_not_exclude() {
    transactions_break(TestFault::IgnoreLocks);
}

#[test]
fn locks_that_outlive_their_leader() {
    transactions_break(TestFault::TrustLostLocks);
}

#[test]
fn locked_reads_that_overtake_writes() {
    transactions_break(TestFault::EarlyLockedReads);
}

#[test]
fn snapshots_that_are_read_too_soon() {
    transactions_break(TestFault::HastySnapshots);
}

#[test]
fn replicas_that_think_they_know_everything() {
    transactions_break(TestFault::EagerSafeTime);
}

fn latest_reads_break(only: Mode) {
    is_caught(&format!("latest reads, {only}"), |parameters| {
        parameters.planted = Some(TestFault::IgnorePendingWrites);
        parameters.only = Some(only);
    });
}

#[test]
fn latest_reads_that_ignore_pending_writes_in_raft() {
    latest_reads_break(Mode::Raft);
}

#[test]
fn latest_reads_that_ignore_pending_writes_in_chains() {
    latest_reads_break(Mode::Chain);
}

#[test]
fn a_retry_that_runs_after_it_was_forgotten() {
    fault_is_caught(TestFault::RunExpired);
}

/// Pauses nodes often, and lets clients retry at another replica soon.
#[test]
fn a_superseded_leader_that_calls_a_transaction_aborted() {
    is_caught("unconfirmed aborts", |parameters| {
        parameters.planted = Some(TestFault::UnconfirmedAborts);
        parameters.nodes = 3;
        parameters.only = Some(Mode::Raft);
        parameters.faults = vec![FaultKind::Pause, FaultKind::Silence];
        parameters.fault_interval_us = 800_000;
        parameters.fault_length_us = 500_000;
        parameters.attempt_us = 30_000;
        parameters.transaction_percent = 80;
    });
}

#[test]
fn a_clock_bound_that_is_a_lie() {
    is_caught_as("clocks beyond their bound", ORDER, |parameters| {
        parameters.clock_lie_us = 50_000;
        // Snapshot reads detect this too, under the name of another invariant.
        parameters.snapshot_percent = 0;
    });
}

/// Reads the clocks in the wrong order. If the thread is stopped between the monotonic and the wall
/// clock, the turn has an old monotonic reading, and a lease that has ended seems to hold.
#[test]
fn a_monotonic_clock_that_is_read_before_the_wall_clock() {
    is_caught("clocks in the wrong order", |parameters| {
        parameters.monotonic_first = true;
        parameters.nodes = 3;
        parameters.only = Some(Mode::Raft);
        parameters.faults = vec![FaultKind::Pause];
        parameters.stopped_turns = 256;
        parameters.snapshot_percent = 30;
    });
}

#[test]
fn a_log_that_is_cut_at_the_first_damage() {
    is_caught("trusted damage", |parameters| parameters.trust_damage = true);
}

#[test]
fn a_log_that_is_cut_too_early() {
    is_caught("cut early", |parameters| parameters.cut_early = true);
}

/// `docs/assumptions.md` excludes this case. The simulator shows which invariant breaks.
#[test]
fn machines_that_are_stopped_with_their_clocks() {
    is_caught("suspended machines", |parameters| {
        parameters.suspends = true;
        parameters.faults = vec![FaultKind::Pause];
    });
}
