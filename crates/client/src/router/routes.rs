//! The client's view of the cluster: the ranges, the connections, and the replica that serves each
//! range.
//!
//! The view may be outdated. A wrong replica rejects the request, and its hint corrects the view.

use std::collections::BTreeMap;

use palisade_control::{RangeDescriptor, Topology};
use palisade_wire::{Mode, PeerAddress, RangeId, ShardId};

use super::links::Links;
use crate::calls::{Call, ReadMode, ScanSpan};

/// The role of the replica that serves a request. In Raft mode the leader has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ServingRole {
    /// Sequences the writes: a chain's head.
    Sequencer,
    /// Serves reads that are linearizable for their key alone: a chain's tail.
    Tail,
}

/// The range that serves a call, and the role of the replica.
pub(super) type Place = (RangeId, ServingRole);

#[derive(Debug)]
pub(super) struct Routes {
    pub(super) topology: Topology,
    /// All shards of the cluster.
    pub(super) shards: Vec<PeerAddress>,
    pub(super) links: Links,
    /// The replica that serves each place: the last hint, or the next member to try.
    serving: BTreeMap<Place, PeerAddress>,
    pub(super) random: fastrand::Rng,
}

impl Routes {
    pub(super) fn new(topology: Topology, random: fastrand::Rng) -> Self {
        let shards = topology.nodes.iter().flat_map(|node| {
            let shards = (0..node.client.len())
                .map(|shard| ShardId(u16::try_from(shard).expect("shards are numbered by u16")));
            shards.map(|shard| PeerAddress { node: node.node, shard })
        });
        let (shards, links) = (shards.collect(), Links::default());
        Self { topology, shards, links, serving: BTreeMap::new(), random }
    }

    pub(super) fn random_shard(&mut self) -> Option<PeerAddress> {
        self.random.choice(&self.shards).copied()
    }

    /// Returns the range that serves a call, and the role of the replica. `None` for calls of one
    /// shard.
    pub(super) fn place(&self, call: &Call) -> Option<Place> {
        let ranges = &self.topology.ranges;
        let sequencer_of = |key: &[u8]| (ranges.find(key).range, ServingRole::Sequencer);
        match call {
            Call::Commit { commit, locks } => {
                let anchor = locks.as_ref().map(|locks| &locks.anchor);
                let first = anchor.or_else(|| commit.keys().next());
                Some(sequencer_of(first.expect("a commit without parts was refused")))
            }
            Call::Get { key, mode } => Some((ranges.find(key).range, role(mode))),
            // The range that holds the next page.
            Call::Scan { span: ScanSpan { begin, backward: false, .. }, mode } => {
                Some((ranges.find(begin).range, role(mode)))
            }
            Call::Scan { span: ScanSpan { end, .. }, mode } => {
                Some((ranges.find_before(end.as_deref()).range, role(mode)))
            }
            Call::Rollback(locks) => Some(sequencer_of(&locks.anchor)),
            Call::Control(_) => Some((RangeId::CONTROL, ServingRole::Sequencer)),
            Call::Topology | Call::Status(_) => None,
        }
    }

    /// Returns true if a range holds all keys of a commit, or the locks that a read adds to.
    pub(super) fn is_within(&self, range: RangeId, call: &Call) -> bool {
        let holds = |key: &[u8]| descriptor(&self.topology, range).holds(key);
        match call {
            Call::Commit { commit, .. } => commit.keys().all(|key| holds(key)),
            Call::Get { mode: ReadMode::Locked(locks), .. }
            | Call::Scan { mode: ReadMode::Locked(locks), .. } => holds(&locks.anchor),
            _ => true,
        }
    }

    /// Returns the shard to which a call goes next. `place` is that of the call. `None` for
    /// [`Call::Topology`], which is not sent.
    pub(super) fn target(&mut self, call: &Call, place: Option<Place>) -> Option<PeerAddress> {
        if let Call::Status(at) = call {
            return Some(*at);
        }
        let place = place?;
        if let Call::Get { mode, .. } | Call::Scan { mode, .. } = call
            && let ReadMode::AtTimestamp { anywhere: true, .. } = mode
        {
            let members = &descriptor(&self.topology, place.0).members;
            return self.random.choice(members).copied();
        }
        Some(*self.serving_at(place))
    }

    /// Returns the replica that serves a place.
    pub(super) fn serving_at(&mut self, place: Place) -> &mut PeerAddress {
        let topology = &self.topology;
        self.serving.entry(place).or_insert_with(|| first_guess(topology, place))
    }

    /// Sends further requests of a place to the next member, if they still go to `tried`. Another
    /// request may have found the right replica meanwhile.
    pub(super) fn pass_over(&mut self, place: Place, tried: Option<PeerAddress>) {
        let known = *self.serving_at(place);
        if Some(known) == tried {
            let members = &descriptor(&self.topology, place.0).members;
            let at = members.iter().position(|member| *member == known);
            self.serving.insert(place, members[at.map_or(0, |at| (at + 1) % members.len())]);
        }
    }

    /// Returns the first member of a range that is connected and not among `tried`.
    pub(super) fn member(&self, range: RangeId, tried: &[PeerAddress]) -> Option<PeerAddress> {
        let mut members = descriptor(&self.topology, range).members.iter().copied();
        members.find(|at| !tried.contains(at) && self.links.is_open(*at))
    }
}

/// Returns the role that serves a read. Locks, and the list of pending writes, exist only at the
/// replica that sequences the writes.
fn role(mode: &ReadMode) -> ServingRole {
    match mode {
        ReadMode::LatestOfKey => ServingRole::Tail,
        ReadMode::Latest | ReadMode::Locked(_) | ReadMode::AtTimestamp { .. } => {
            ServingRole::Sequencer
        }
    }
}

fn descriptor(topology: &Topology, range: RangeId) -> &RangeDescriptor {
    topology.ranges.get(range).expect("ranges are never removed")
}

/// Returns the replica to try first, before any hint: a chain's tail or the first member.
fn first_guess(topology: &Topology, (range, role): Place) -> PeerAddress {
    let RangeDescriptor { mode, members, .. } = descriptor(topology, range);
    match (mode, role) {
        (Mode::Chain, ServingRole::Tail) => members[members.len() - 1],
        _ => members[0],
    }
}
