//! Scenarios about leases, clocks and locks, each as a script. `tests/FAULTS.md` lists them.

mod support;

use palisade_clock::Timestamp;
use palisade_wire::{Basis, Operation, Outcome, ReadKind, Rejection, ReplicaChange};
use support::{RANGE, SECOND_US, at, claim, commit, holds, lock, put, raft};

#[test]
fn scenario_20_leader_paused_past_lease_serves_no_stale_reads() {
    for pause_us in [SECOND_US, 2 * SECOND_US, 5 * SECOND_US] {
        let mut world = raft(3);
        put(&mut world, 1);
        let old = world.await_leader(RANGE);
        world.pause(usize::from(old.node.0), pause_us);
        let gets: Vec<_> = (0..20)
            .map(|_| {
                let get = world.get_operation(RANGE);
                world.run_for(pause_us / 40);
                world.send(old, get)
            })
            .collect();
        let moved = world.wait_for(pause_us, |world| world.leader(RANGE).is_some_and(|l| l != old));
        if moved {
            put(&mut world, 2);
        }
        for asked in gets {
            match world.answer(asked, pause_us + SECOND_US) {
                Some(Outcome::Value { value: Some(value), .. }) => {
                    assert_eq!(value[0], if moved { 2 } else { 1 }, "a stale read");
                }
                Some(Outcome::Rejected(Rejection::NotServing { .. })) | None => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(moved || pause_us == SECOND_US, "no node took over in {pause_us} us");
        holds(world);
    }
}

/// A commit is acknowledged only after its timestamp has passed in true time. So after a restart,
/// every clock reading within its bound leads to a later timestamp.
#[test]
fn scenario_23_timestamps_increase_across_restart() {
    for nodes in [1, 3] {
        let mut world = raft(nodes);
        let mut last_ts = Timestamp::ZERO;
        for round in 0..6 {
            for node in 0..usize::from(nodes) {
                world.set_wall_clock(node, round % 2 == 0);
            }
            let commit_ts = put(&mut world, round);
            assert!(commit_ts > last_ts, "round {round}: {commit_ts} after {last_ts}");
            last_ts = commit_ts;
            for node in 0..usize::from(nodes) {
                world.crash(node);
                world.set_wall_clock(node, round % 2 == 1);
                world.start(node);
            }
        }
        holds(world);
    }
}

#[test]
fn scenario_26_lagging_follower_refuses_read_of_missing_commit() {
    let mut world = raft(3);
    put(&mut world, 1);
    let leader = world.await_leader(RANGE);
    let follower = (0..3).find(|node| *node != leader.node.0).expect("there are two");
    for node in (0..3).filter(|node| *node != follower) {
        world.cut(node, follower);
    }
    let commit_ts = put(&mut world, 2);
    let key = world.script_key(RANGE);
    let read =
        |at_ts| Operation::Get { range: RANGE, key: key.clone(), kind: ReadKind::AsOf(at_ts) };
    // The follower lacks the commit: it must not return the older value, but may redirect.
    match world.ask(at(follower), read(commit_ts), SECOND_US) {
        Some(Outcome::Rejected(Rejection::NotServing { .. })) => {}
        other => panic!("{other:?}"),
    }
    world.mend();
    let found = world.ask(at(follower), read(commit_ts), SECOND_US);
    let Some(Outcome::Value { value: Some(value), .. }) = found else { panic!("{found:?}") };
    assert_eq!(value[0], 2);
    holds(world);
}

#[test]
fn follower_serves_stale_reads_of_idle_range() {
    let mut world = raft(3);
    put(&mut world, 1);
    let leader = world.await_leader(RANGE);
    let follower = (0..3).find(|node| *node != leader.node.0).expect("there are two");
    world.run_for(3 * SECOND_US);
    let get = Operation::Get {
        range: RANGE,
        key: world.script_key(RANGE),
        kind: ReadKind::Stale { max_us: SECOND_US / 2, at_least: Timestamp::ZERO },
    };
    let first = world.ask(at(follower), get.clone(), SECOND_US / 10);
    let Some(Outcome::Value { basis: Basis::AsOf(at_ts), value: Some(value), .. }) = first else {
        panic!("{first:?}")
    };
    assert_eq!(value[0], 1);
    // The follower has fetched the safe time once, and can answer for a while, even isolated.
    world.isolate(&[follower]);
    let again = world.ask(at(follower), get, SECOND_US / 10);
    assert!(matches!(again, Some(Outcome::Value { .. })), "{again:?}");
    let same =
        Operation::Get { range: RANGE, key: world.script_key(RANGE), kind: ReadKind::AsOf(at_ts) };
    assert!(matches!(world.ask(at(follower), same, SECOND_US / 10), Some(Outcome::Value { .. })));
    holds(world);
}

#[test]
fn scenario_32_locks_end_when_granting_leader_loses_leadership() {
    let mut world = raft(3);
    put(&mut world, 1);
    let old = world.await_leader(RANGE);
    let before = lock(&mut world, claim(1));
    let to = at((old.node.0 + 1) % 3);
    let transfer = Operation::Replicas { range: RANGE, change: ReplicaChange::Transfer { to } };
    assert_eq!(world.ask(old, transfer, SECOND_US), Some(Outcome::ControlDone));
    assert!(world.wait_for(5 * SECOND_US, |world| world.leader(RANGE) == Some(to)));
    // Another transaction gets the lock at the new leader, and commits.
    let after = lock(&mut world, claim(2));
    let late = commit(&world, before, 1, 9);
    let refused = world.ask(to, late.clone(), SECOND_US);
    assert_eq!(refused, Some(Outcome::Rejected(Rejection::Aborted)));
    let made = world.ask(to, commit(&world, after, 2, 2), SECOND_US);
    assert!(matches!(made, Some(Outcome::Committed { .. })), "{made:?}");
    // The old locks stay lost when leadership returns to the replica that granted them.
    let back = Operation::Replicas { range: RANGE, change: ReplicaChange::Transfer { to: old } };
    assert_eq!(world.ask(to, back, SECOND_US), Some(Outcome::ControlDone));
    assert!(world.wait_for(5 * SECOND_US, |world| world.leader(RANGE) == Some(old)));
    let refused = world.ask(old, late, SECOND_US);
    assert_eq!(refused, Some(Outcome::Rejected(Rejection::Aborted)));
    holds(world);
}

/// A client retries a commit after its leader has crashed. The next leader returns the first
/// outcome, and does not report the transaction as aborted because its locks are lost.
#[test]
fn scenario_01_next_leader_returns_first_outcome_of_locked_commit() {
    let mut world = raft(3);
    put(&mut world, 1);
    let old = world.await_leader(RANGE);
    let claim = lock(&mut world, claim(1));
    let operation = commit(&world, claim, 1, 2);
    let first = world.ask(old, operation.clone(), SECOND_US);
    let Some(Outcome::Committed { commit_ts, .. }) = first else { panic!("{first:?}") };
    world.crash(usize::from(old.node.0));
    let new = world.await_leader(RANGE);
    let mut again = None;
    for _ in 0..20 {
        again = world.ask(new, operation.clone(), SECOND_US);
        match &again {
            Some(Outcome::Committed { .. }) => break,
            Some(Outcome::Rejected(Rejection::NotServing { .. })) | None => {}
            other => panic!("{other:?}"),
        }
    }
    let Some(Outcome::Committed { commit_ts: told, .. }) = again else { panic!("{again:?}") };
    assert_eq!(told, commit_ts);
    holds(world);
}
