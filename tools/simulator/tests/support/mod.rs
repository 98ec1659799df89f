//! Helpers for scripts.
#![allow(dead_code, reason = "each test uses a part of this")]

use palisade_clock::Timestamp;
use palisade_simulator::{Parameters, Trace, World};
use palisade_wire::{
    Basis, Commit, CommitRequest, LockClaim, Locking, Mode, NodeId, Operation, Outcome,
    PeerAddress, RangeId, ReadKind, SessionId, ShardId, TxnId,
};

pub(crate) const RANGE: RangeId = RangeId(1);
pub(crate) const SECOND_US: u64 = 1_000_000;

pub(crate) fn at(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

/// Returns a cluster in Raft mode that has had two seconds to elect leaders.
pub(crate) fn raft(nodes: u16) -> World {
    let mut world = World::new(Parameters::quiet(7, nodes, 1, 1, Some(Mode::Raft)), Trace::Off);
    world.run_for(2 * SECOND_US);
    world
}

/// Writes the script's key, and returns the commit timestamp.
pub(crate) fn put(world: &mut World, value: u8) -> Timestamp {
    let to = world.await_leader(RANGE);
    let operation = world.put_operation(RANGE, value);
    match world.ask(to, operation, 5 * SECOND_US) {
        Some(Outcome::Committed { commit_ts, .. }) => commit_ts,
        other => panic!("{other:?}"),
    }
}

/// Pauses the leader for `pause_us`, waits until another node leads, and returns the old leader.
/// When the old leader continues, it receives everything that was sent to it meanwhile.
pub(crate) fn supersede(world: &mut World, pause_us: u64) -> PeerAddress {
    let old = world.await_leader(RANGE);
    world.pause(usize::from(old.node.0), pause_us);
    let moved = world.wait_for(pause_us, |world| world.leader(RANGE).is_some_and(|l| l != old));
    assert!(moved, "no other node took over in {pause_us} us");
    old
}

pub(crate) fn locked_get(world: &World, claim: LockClaim) -> Operation {
    let kind = ReadKind::Locking(Locking { claim, exclusive: true });
    Operation::Get { range: RANGE, key: world.script_key(RANGE), kind }
}

pub(crate) fn commit(world: &World, claim: LockClaim, sequence: u64, value: u8) -> Operation {
    let txn = TxnId { session: SessionId(5), sequence };
    let commit = Commit::new().put(world.script_key(RANGE), vec![value; 8]);
    let expires_ts = world.in_a_minute();
    let request = CommitRequest { txn, settled_below: 0, expires_ts, commit };
    Operation::Commit { range: RANGE, request, claim: Some(claim) }
}

pub(crate) fn claim(sequence: u64) -> LockClaim {
    let owner = TxnId { session: SessionId(4), sequence };
    LockClaim { owner, start_ts: None, token: None }
}

/// Locks the script's key for a transaction, and returns its claim with the grant.
pub(crate) fn lock(world: &mut World, claim: LockClaim) -> LockClaim {
    let leader = world.await_leader(RANGE);
    match world.ask(leader, locked_get(world, claim), SECOND_US) {
        Some(Outcome::Value { basis: Basis::Locked(grant), .. }) => claim.granted(grant),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn holds(mut world: World) {
    if let Err(violation) = world.verdict() {
        panic!("{violation}");
    }
}
