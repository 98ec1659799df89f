//! What scripts have in common.
#![allow(dead_code, reason = "each test uses a part of this")]

use palisade_clock::Timestamp;
use palisade_simulator::{Parameters, Trace, World};
use palisade_wire::{Mode, NodeId, Outcome, PeerAddress, RangeId, ShardId};

pub(crate) const RANGE: RangeId = RangeId(1);
pub(crate) const SECOND_US: u64 = 1_000_000;

pub(crate) fn at(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

/// A cluster with one range in Raft mode, which has had time to elect.
pub(crate) fn raft(nodes: u16) -> World {
    let parameters = Parameters::quiet(7, nodes, 1, 1, Some(Mode::Raft));
    let mut world = World::new(parameters, Trace::Off);
    world.run_for(2 * SECOND_US);
    world
}

/// Writes the script's key, and returns when.
pub(crate) fn put(world: &mut World, value: u8) -> Timestamp {
    let to = world.await_leader(RANGE);
    let operation = world.put_operation(RANGE, value);
    match world.ask(to, operation, 5 * SECOND_US) {
        Some(Outcome::Committed { commit_ts, .. }) => commit_ts,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn holds(mut world: World) {
    if let Err(violation) = world.verdict() {
        panic!("{violation}");
    }
}
