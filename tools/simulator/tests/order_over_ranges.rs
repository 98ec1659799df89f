//! Scenarios about the order of operations over ranges, and about superseded leaders, each as a
//! script. `tests/FAULTS.md` lists them.

mod support;

use palisade_replication::Planted;
use palisade_shard::TestFault;
use palisade_simulator::{Parameters, Trace, World};
use palisade_wire::{Mode, Operation, Outcome, RangeId, ReadKind, Rejection, ReplicaChange};
use support::{RANGE, SECOND_US, at, claim, commit, holds, lock, locked_get, put, supersede};

/// A range in the log of another shard than [`RANGE`].
const OTHER: RangeId = RangeId(2);

fn value_of(outcome: Option<Outcome>) -> Option<u8> {
    match outcome {
        Some(Outcome::Value { value: Some(value), .. }) => value.first().copied(),
        _ => None,
    }
}

fn write(world: &mut World, range: RangeId, value: u8) {
    let operation = world.put_operation(range, value);
    let to = world.await_sequencer(range);
    let answer = world.ask(to, operation, SECOND_US);
    assert!(matches!(answer, Some(Outcome::Committed { .. })), "{answer:?}");
}

/// Starts a latest read while a write of its key is pending, after a write of another range was
/// acknowledged. Returns its answer before the pending write may commit, and its answer after that.
/// `None` is no answer.
fn read_beside_a_pending_write(mode: Mode, planted: Planted<TestFault>) -> [Option<u8>; 2] {
    let quiet = Parameters::quiet(7, 3, 2, 1, Some(mode));
    // Without clients, which would detect the planted fault too.
    let mut world = World::new(Parameters { callers: 0, planted, ..quiet }, Trace::Off);
    world.run_for(2 * SECOND_US);
    write(&mut world, RANGE, 1);
    let sequencer = world.await_sequencer(RANGE);
    (0..3).for_each(|node| world.hold_syncs_of_shard(node, 0, true));
    let pending = world.put_operation(RANGE, 2);
    let pending = world.send(sequencer, pending);
    world.run_for(SECOND_US / 20);
    write(&mut world, OTHER, 3);
    let get = world.get_operation(RANGE);
    let asked = world.send(sequencer, get);
    let before = value_of(world.answer(asked, SECOND_US / 20));
    // A read that is linearizable for its key alone does not wait for the pending write.
    let tail =
        world.view(sequencer, RANGE).expect("it runs").voters().pop().expect("it has a tail");
    let of_key =
        Operation::Get { range: RANGE, key: world.script_key(RANGE), kind: ReadKind::LatestOfKey };
    let at = if mode == Mode::Chain { tail } else { sequencer };
    assert_eq!(value_of(world.ask(at, of_key, SECOND_US / 20)), Some(1));
    (0..3).for_each(|node| world.hold_syncs_of_shard(node, 0, false));
    let after = value_of(world.answer(asked, SECOND_US));
    assert!(matches!(world.answer(pending, SECOND_US), Some(Outcome::Committed { .. })));
    holds(world);
    [before, after]
}

#[test]
fn scenario_49_latest_read_waits_for_pending_writes_of_its_key() {
    for mode in [Mode::Raft, Mode::Chain] {
        let answers = read_beside_a_pending_write(mode, Planted::default());
        assert_eq!(answers, [None, Some(2)], "{mode}");
    }
}

#[cfg(feature = "planted-faults")]
#[test]
fn scenario_49_check_detects_read_that_ignores_pending_writes() {
    for mode in [Mode::Raft, Mode::Chain] {
        let planted = Planted::new(TestFault::IgnorePendingWrites);
        assert_eq!(read_beside_a_pending_write(mode, planted), [Some(1), None], "{mode}");
    }
}

/// Seeds of the scripts in which a leader that was paused may handle requests before the messages
/// of its successor. Their order is random.
const SEEDS: std::ops::Range<u64> = 0..16;

/// Returns a cluster without clients, which would detect the planted fault too.
fn without_clients(seed: u64, planted: Planted<TestFault>) -> World {
    let quiet = Parameters::quiet(seed, 3, 1, 1, Some(Mode::Raft));
    let mut world = World::new(Parameters { callers: 0, planted, ..quiet }, Trace::Off);
    world.run_for(2 * SECOND_US);
    world
}

/// Returns the answers of a superseded leader to copies of a commit that its successor committed.
fn answers_of_a_superseded_leader(seed: u64, planted: Planted<TestFault>) -> Vec<Option<Outcome>> {
    let mut world = without_clients(seed, planted);
    put(&mut world, 1);
    let old = supersede(&mut world, 2 * SECOND_US);
    let claim = lock(&mut world, claim(1));
    let commit = commit(&world, claim, 1, 2);
    let new = world.await_leader(RANGE);
    let made = world.ask(new, commit.clone(), SECOND_US);
    assert!(matches!(made, Some(Outcome::Committed { .. })), "{made:?}");
    let copies: Vec<_> = (0..20).map(|_| world.send(old, commit.clone())).collect();
    let answers = copies.into_iter().map(|copy| world.answer(copy, 3 * SECOND_US)).collect();
    holds(world);
    answers
}

#[test]
fn scenario_60_superseded_leader_reports_no_false_abort() {
    for seed in SEEDS {
        let answers = answers_of_a_superseded_leader(seed, Planted::default());
        let aborted = Some(Outcome::Rejected(Rejection::Aborted));
        assert!(!answers.contains(&aborted), "seed {seed}: {answers:?}");
    }
}

#[cfg(feature = "planted-faults")]
#[test]
fn scenario_60_check_detects_unconfirmed_abort() {
    let planted = Planted::new(TestFault::UnconfirmedAborts);
    let mut answers = SEEDS.flat_map(|seed| answers_of_a_superseded_leader(seed, planted));
    let is_aborted = |answer| answer == Some(Outcome::Rejected(Rejection::Aborted));
    assert!(answers.any(is_aborted), "the scripts do not see the fault");
}

/// Returns the answers of a superseded leader to locked reads of a key that its successor wrote.
fn locked_reads_at_a_superseded_leader(
    seed: u64,
    planted: Planted<TestFault>,
) -> Vec<Option<Outcome>> {
    let mut world = without_clients(seed, planted);
    put(&mut world, 1);
    let old = supersede(&mut world, 2 * SECOND_US);
    put(&mut world, 2);
    let reads: Vec<_> = (0..20)
        .map(|number| {
            let get = locked_get(&world, claim(number));
            world.send(old, get)
        })
        .collect();
    reads.into_iter().map(|asked| world.answer(asked, 3 * SECOND_US)).collect()
}

#[test]
fn scenario_61_superseded_leader_serves_no_stale_locked_read() {
    let read = |seed| locked_reads_at_a_superseded_leader(seed, Planted::default());
    for answer in SEEDS.flat_map(read) {
        let refused =
            matches!(answer, Some(Outcome::Rejected(Rejection::NotServing { .. })) | None);
        assert!(refused || value_of(answer.clone()) == Some(2), "{answer:?}");
    }
}

#[cfg(feature = "planted-faults")]
#[test]
fn scenario_61_check_detects_unconfirmed_locked_read() {
    let planted = Planted::new(TestFault::UnconfirmedLockedReads);
    let mut answers = SEEDS.flat_map(|seed| locked_reads_at_a_superseded_leader(seed, planted));
    let is_stale = |answer| value_of(answer) == Some(1);
    assert!(answers.any(is_stale), "the scripts do not see the fault");
}

/// Returns the answer of a leader to the second locked read of a transaction. The leader has been
/// asked to transfer leadership, and is paused `stopped_after_us` later, while it waits for a
/// confirmation. When it continues, its inbox may hold that confirmation and its successor's
/// entries. The first read saw 1, and the successor wrote 2. `None` if leadership did not move, or
/// no answer came.
fn second_locked_read(seed: u64, stopped_after_us: u64) -> Option<Outcome> {
    let quiet = Parameters::quiet(seed, 3, 1, 1, Some(Mode::Raft));
    let mut world = World::new(Parameters { callers: 0, ..quiet }, Trace::Off);
    world.run_for(2 * SECOND_US);
    put(&mut world, 1);
    let old = world.await_leader(RANGE);
    let held = lock(&mut world, claim(1));
    let to = at((old.node.0 + 1) % 3);
    world.cut(to.node.0, old.node.0);
    world.send(old, Operation::Replicas { range: RANGE, change: ReplicaChange::Transfer { to } });
    let get = locked_get(&world, held);
    let asked = world.send(old, get);
    world.run_for(stopped_after_us);
    // So short that no heartbeat arrives meanwhile in some runs. A turn takes heartbeats first, and
    // they would end the leadership.
    world.pause(usize::from(old.node.0), 8_000);
    world.mend();
    if !world.wait_for(6_000, |world| world.leader(RANGE) == Some(to)) {
        return None;
    }
    put(&mut world, 2);
    let answer = world.answer(asked, 3 * SECOND_US);
    holds(world);
    answer
}

#[test]
fn locked_read_never_returns_writes_of_next_leader() {
    let mut aborted = 0;
    for seed in 0..40 {
        for stopped_after_us in (200..2_000).step_by(100) {
            let answer = second_locked_read(seed, stopped_after_us);
            assert_ne!(value_of(answer.clone()), Some(2), "seed {seed}, {stopped_after_us} us");
            aborted += u32::from(answer == Some(Outcome::Rejected(Rejection::Aborted)));
        }
    }
    assert!(aborted > 0, "no turn held both the confirmation and the successor's entries");
}

/// Returns the longest time in microseconds that a put waited for its timestamp to pass, of `puts`
/// puts to each of the two ranges.
fn waits_us(world: &mut World, puts: u32) -> u32 {
    let mut longest = 0;
    for value in 0..puts {
        for range in [RANGE, OTHER] {
            let operation = world.put_operation(range, value as u8);
            let to = world.await_sequencer(range);
            match world.ask(to, operation, 2 * SECOND_US) {
                Some(Outcome::Committed { waited_us, .. }) => longest = longest.max(waited_us),
                other => panic!("{other:?}"),
            }
        }
    }
    longest
}

#[test]
fn scenario_62_uncertain_clock_delays_only_its_own_commits() {
    let quiet = Parameters::quiet(7, 3, 2, 1, Some(Mode::Raft));
    let mut world = World::new(Parameters { callers: 0, ..quiet }, Trace::Off);
    world.run_for(2 * SECOND_US);
    let leaders = [RANGE, OTHER].map(|range| usize::from(world.await_sequencer(range).node.0));
    let sure = waits_us(&mut world, 20);
    let follower = (0..3).find(|node| !leaders.contains(node)).expect("two lead at most");
    // An error bound of 250 ms, which is below `max_offset_us`.
    world.unsure_clock(follower, 250);
    world.run_for(SECOND_US);
    let beside_unsure = waits_us(&mut world, 20);
    assert!(beside_unsure <= sure + 1_000, "{beside_unsure} us instead of {sure}");
    world.unsure_clock(leaders[0], 250);
    world.run_for(SECOND_US);
    assert!(waits_us(&mut world, 5) > 400_000, "its own commits wait for it");
    holds(world);
}
