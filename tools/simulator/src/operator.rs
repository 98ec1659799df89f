//! The operator of a cluster: removes lost nodes from chains, transfers leadership, and changes
//! the members of groups. It acts through requests, as a client does.

use palisade_control::Change;
use palisade_shard::{ConnectionId, ReplicaView};
use palisade_wire::{Mode, NodeId, Operation, PeerAddress, RangeId, ReplicaChange, Request, Role};

use crate::{
    World,
    clients::ClientSend,
    parameters::{Parameters, stream},
    world::FIRST_OWN_CONNECTION,
};

/// Interval between two requests for the same change, while it has not taken effect.
const RETRY_US: u64 = 1_000_000;

#[derive(Debug)]
pub(crate) struct Operator {
    random: fastrand::Rng,
    /// The node that is being removed from its chains.
    removing: Option<NodeId>,
    retry_us: u64,
    next_request: u64,
    may_remove: bool,
}

impl Operator {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let mut random = stream(parameters.seed, "operator");
        let may_remove = random.bool();
        Self { random, removing: None, retry_us: 0, next_request: 0, may_remove }
    }

    /// Continues the removal of a node, or starts one if it is due.
    pub(crate) fn act(&mut self, world: &mut World) {
        match self.removing {
            Some(node) => self.go_on_removing(node, world),
            None => self.find_what_to_remove(world),
        }
    }

    /// Returns true while a node is being removed from its chains.
    pub(crate) fn is_at_work(&self) -> bool {
        self.removing.is_some()
    }

    fn find_what_to_remove(&mut self, world: &mut World) {
        let lost = world.nodes.iter().find(|node| node.lost).map(|node| node.id);
        let down = world.nodes.iter().find(|node| !node.running).map(|node| node.id);
        // The control range needs a majority without the node. A new cluster needs all nodes.
        let can_spare = world.nodes.len() >= 3 && lost.is_none() && world.have_met();
        let impatient = self.may_remove && can_spare && self.random.u16(0..400) == 0;
        let node = lost.or(down.filter(|_| impatient));
        let Some(node) = node.filter(|node| !chains_of(world, *node).is_empty()) else { return };
        // It must be down, and stay down until every other member is in the new epoch.
        let at = usize::from(node.0);
        world.crash(at);
        world.nodes[at].fenced = true;
        self.removing = Some(node);
        self.retry_us = 0;
    }

    fn go_on_removing(&mut self, node: NodeId, world: &mut World) {
        let chains = chains_of(world, node);
        if chains.is_empty() {
            let at = &mut world.nodes[usize::from(node.0)];
            at.fenced = false;
            self.removing = None;
            if !at.lost {
                world.start_in(usize::from(node.0), 1_000);
            }
            return;
        }
        if world.now_us < self.retry_us {
            return;
        }
        self.retry_us = world.now_us + RETRY_US;
        let Some(to) = leader_of(world, RangeId::CONTROL) else { return };
        for (range, epoch) in chains {
            let change = Change::RemoveFromChain { range, epoch, node };
            self.ask(to, Operation::Control(change.to_bytes()), world);
        }
    }

    fn ask(&mut self, to: PeerAddress, operation: Operation, world: &mut World) {
        self.next_request += 1;
        let request = Request::new(self.next_request, operation);
        let connection = ConnectionId(FIRST_OWN_CONNECTION);
        world.send_requests(vec![ClientSend { to, connection, request, breaks: false }]);
    }

    /// Transfers leadership of a random group in Raft mode, or changes its members.
    pub(crate) fn change_something(&mut self, world: &mut World, random: &mut fastrand::Rng) {
        let ranges = world.ranges.ranges();
        let descriptor = &ranges[random.usize(0..ranges.len())];
        let range = descriptor.range;
        if descriptor.mode == Mode::Chain {
            return;
        }
        let Some(leader) = leader_of(world, range) else { return };
        let Some(view) = world.shard(leader).and_then(|shard| shard.view(range)) else { return };
        let (voters, learners) = (view.voters(), view.learners());
        let replica = PeerAddress {
            node: world.nodes[random.usize(0..world.nodes.len())].id,
            shard: leader.shard,
        };
        let change = if range == RangeId::CONTROL || random.u8(0..3) == 0 {
            ReplicaChange::Transfer { to: replica }
        } else {
            let everybody =
                world.nodes.iter().map(|node| PeerAddress { node: node.id, shard: leader.shard });
            next_members(voters, learners, replica, everybody, random)
        };
        self.ask(leader, Operation::Replicas { range, change }, world);
    }
}

/// Draws a change of the members: learners are added, removed or made voters, or a voter is
/// removed or made a learner.
fn next_members(
    mut voters: Vec<PeerAddress>,
    mut learners: Vec<PeerAddress>,
    replica: PeerAddress,
    everybody: impl Iterator<Item = PeerAddress>,
    random: &mut fastrand::Rng,
) -> ReplicaChange {
    if learners.len() >= 2 && random.bool() {
        return take_over(voters, learners, random);
    }
    if let Some(place) = learners.iter().position(|learner| *learner == replica) {
        learners.remove(place);
        if random.u8(0..4) > 0 {
            if random.bool() && voters.len() > 1 {
                voters.swap_remove(random.usize(0..voters.len()));
            }
            voters.push(replica);
        }
    } else if let Some(place) = voters.iter().position(|voter| *voter == replica) {
        if voters.len() > 2 && random.u8(0..3) == 0 {
            voters.remove(place);
            if random.bool() {
                learners.push(replica);
            }
        } else {
            return take_over(voters, learners, random);
        }
    } else if random.bool() {
        learners.push(replica);
    } else {
        learners = everybody.filter(|peer| !voters.contains(peer)).collect();
    }
    ReplicaChange::Members { voters, learners }
}

/// Makes all learners voters at once, in place of as many voters, of which at least one stays.
fn take_over(
    mut voters: Vec<PeerAddress>,
    learners: Vec<PeerAddress>,
    random: &mut fastrand::Rng,
) -> ReplicaChange {
    random.shuffle(&mut voters);
    voters.truncate(voters.len().saturating_sub(learners.len()).max(1));
    voters.extend(learners);
    ReplicaChange::Members { voters, learners: Vec::new() }
}

/// Returns the Raft leader of a range among the running replicas. If several consider themselves
/// leader, the one of the latest term.
pub(crate) fn leader_of(world: &World, range: RangeId) -> Option<PeerAddress> {
    let views = world.shards().filter_map(|(at, shard)| Some((at, shard.view(range)?)));
    let leaders = views.filter(|(_, view)| view.role() == Role::Leader);
    leaders.max_by_key(|(_, view)| view.term()).map(|(at, _)| at)
}

/// Returns the chains from which a node must still be removed, with their latest known epochs. A
/// chain counts until every remaining member has the epoch without the node.
fn chains_of(world: &World, node: NodeId) -> Vec<(RangeId, u64)> {
    let mut chains = Vec::new();
    for descriptor in world.ranges.ranges() {
        if descriptor.mode == Mode::Raft {
            continue;
        }
        let range = descriptor.range;
        let members = |view: &ReplicaView<'_>| view.voters();
        let views: Vec<_> =
            world.shards().filter_map(|(at, shard)| Some((at, shard.view(range)?))).collect();
        let latest = views.iter().max_by_key(|(_, view)| view.epoch());
        let Some((_, latest)) = latest else {
            // No running replica knows: assume the members at creation.
            if descriptor.members.iter().any(|member| member.node == node) {
                chains.push((range, descriptor.epoch));
            }
            continue;
        };
        // Every remaining member must have the latest epoch. One that is down does not have it.
        let left: Vec<_> = members(latest).into_iter().filter(|m| m.node != node).collect();
        let all_know = left.iter().all(|member| {
            let view = world.shard(*member).and_then(|shard| shard.view(range));
            view.is_some_and(|view| view.epoch() == latest.epoch())
        });
        let is_member = members(latest).iter().any(|member| member.node == node);
        let was_member = descriptor.members.iter().any(|member| member.node == node);
        if is_member && left.is_empty() {
            // The last member is not removed.
            continue;
        }
        if is_member || was_member && !all_know {
            chains.push((range, latest.epoch()));
        }
    }
    chains
}
