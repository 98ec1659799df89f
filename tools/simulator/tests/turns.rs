//! The work of a turn is bounded: no load keeps a shard from its heartbeats.

mod support;

use std::collections::BTreeMap;

use palisade_shard::TURN_WORK;
use palisade_simulator::{Parameters, Trace, World};
use palisade_wire::{
    Commit, CommitRequest, Mode, Operation, Outcome, RangeId, ReadKind, Rejection, ScanRequest,
    SessionId, TxnId,
};
use support::{RANGE, SECOND_US, at, holds};

const ROWS: usize = 1_000;
const SCANS: usize = 2_000;

/// Returns a cluster of slow machines with a range of [`ROWS`] rows.
fn slow_cluster(turn_work: u32) -> World {
    let parameters =
        Parameters { turn_work, slowness: 10, ..Parameters::quiet(7, 3, 1, 1, Some(Mode::Raft)) };
    let mut world = World::new(parameters, Trace::Off);
    world.run_for(2 * SECOND_US);
    for sequence in 0..4 {
        let rows = ROWS as u64 / 4;
        let mut commit = Commit::new();
        for row in sequence * rows..(sequence + 1) * rows {
            commit = commit.put(format!("\0row {row:04}"), vec![7; 8]);
        }
        let txn = TxnId { session: SessionId(9), sequence };
        let expires_ts = world.in_a_minute();
        let request = CommitRequest { txn, settled_below: 0, expires_ts, commit };
        let to = world.await_leader(RANGE);
        let operation = Operation::Commit { range: RANGE, request, claim: None };
        let answer = world.ask(to, operation, 5 * SECOND_US);
        assert!(matches!(answer, Some(Outcome::Committed { .. })), "{answer:?}");
    }
    world
}

fn scan(range: RangeId, kind: ReadKind) -> Operation {
    let (begin, end) = ("\0row".into(), Some("\0rox".into()));
    let scan = ScanRequest { range, begin, end, backward: false, max_rows: ROWS as u32 };
    Operation::Scan { scan, kind }
}

/// Sends many scans at once, and returns how many were answered how.
fn flood(world: &mut World, kind: ReadKind) -> BTreeMap<&'static str, usize> {
    let leader = world.await_leader(RANGE);
    let asked: Vec<_> = (0..SCANS).map(|_| world.send(leader, scan(RANGE, kind))).collect();
    world.run_for(10 * SECOND_US);
    let mut answers = BTreeMap::new();
    for connection in asked {
        let answer = match world.answer(connection, 1) {
            Some(Outcome::Page { page, .. }) => {
                assert_eq!(page.rows.len(), ROWS);
                "page"
            }
            Some(Outcome::Rejected(Rejection::Overloaded)) => "overloaded",
            _ => "other",
        };
        *answers.entry(answer).or_default() += 1;
    }
    answers
}

/// Each scan takes 2 ms on these machines, so all of them take 4 s.
#[test]
fn scenario_58_pipelined_scans_cause_no_election() {
    for kind in [ReadKind::Latest, ReadKind::Snapshot] {
        let mut world = slow_cluster(TURN_WORK);
        let elections = world.elections();
        let answers = flood(&mut world, kind);
        assert_eq!(world.elections(), elections, "{answers:?}");
        assert!(world.longest_turn_us() < 50_000, "{} us", world.longest_turn_us());
        let pages = answers.get("page").copied().unwrap_or(0);
        assert_eq!(answers.get("overloaded"), Some(&(SCANS - pages)), "{answers:?}");
        // Those of the first 100 ms, at least.
        assert!(pages >= 40, "{answers:?}");
        holds(world);
    }
}

/// The control: without a limit, one turn answers all scans, and other nodes take over.
#[test]
fn scenario_58_unlimited_turns_lose_leaderships() {
    let mut world = slow_cluster(u32::MAX);
    let elections = world.elections();
    flood(&mut world, ReadKind::Latest);
    assert!(world.elections() > elections);
    assert!(world.longest_turn_us() > SECOND_US, "{} us", world.longest_turn_us());
}

/// Lets a follower fall behind by 3,000 entries, and returns how long its longest turn is when it
/// catches up, in microseconds.
fn longest_turn_of_backlog_us(turn_work: u32) -> u64 {
    let mut world = slow_cluster(turn_work);
    let leader = world.await_leader(RANGE);
    let follower = (0..3).find(|node| *node != leader.node.0).expect("there are three");
    world.isolate(&[follower]);
    for _ in 0..30 {
        for _ in 0..100 {
            let operation = world.put_operation(RANGE, 1);
            world.send(leader, operation);
        }
        world.run_for(SECOND_US / 10);
    }
    world.mend();
    let caught_up = |world: &World| {
        let applied = |node| world.view(at(node), RANGE).unwrap().applied_index();
        applied(follower) + 20 > applied(leader.node.0)
    };
    assert!(!caught_up(&world));
    world.forget_longest_turn();
    assert!(world.wait_for(9 * SECOND_US, caught_up));
    let longest_us = world.longest_turn_us();
    holds(world);
    longest_us
}

#[test]
fn scenario_58_long_backlog_is_applied_in_slices() {
    let unlimited_us = longest_turn_of_backlog_us(u32::MAX);
    let sliced_us = longest_turn_of_backlog_us(TURN_WORK / 40);
    // What is left is the writing of one message's entries.
    assert!(3 * sliced_us < 2 * unlimited_us, "{sliced_us} of {unlimited_us} us");
}
