//! The range map and its changes.

use bytes::Bytes;
use palisade_replication::Membership;
use palisade_wire::{Mode, NodeId, PeerAddress, RangeId, WireError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A range: what it holds and who replicates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDescriptor {
    /// Its name.
    pub range: RangeId,
    /// How it is replicated.
    pub mode: Mode,
    /// Rises with every change of the members.
    pub epoch: u64,
    /// The first key that it holds.
    pub start: Vec<u8>,
    /// The first key after it, or `None` for the last range. The control plane's own range holds
    /// no keys: it ends where it starts.
    pub end: Option<Vec<u8>>,
    /// The replicas; in chain mode from head to tail.
    pub members: Vec<PeerAddress>,
}

impl RangeDescriptor {
    /// Whether a key belongs to the range.
    pub fn holds(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// The replicas of the present epoch.
    pub fn membership(&self) -> Membership {
        Membership { epoch: self.epoch, members: self.members.clone() }
    }
}

/// All ranges of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeMap {
    /// By range, rising; range 0 is the control plane's own.
    ranges: Vec<RangeDescriptor>,
}

/// The epoch in which every range begins.
pub(crate) const FIRST_EPOCH: u64 = 1;

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Takes a node out of a chain. The node must be stopped, and stay stopped until every
    /// remaining member is in the new epoch: nothing else fences it.
    RemoveFromChain {
        /// The chain's range.
        range: RangeId,
        /// The epoch that the change was made up for; it must still be the present one.
        epoch: u64,
        /// Who is taken out.
        node: NodeId,
    },
}

/// Why a change was not made. Deterministic: every replica refuses alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidChange {
    /// There is no such range, or it is not a chain.
    #[error("there is no chain of that name")]
    NoSuchChain,
    /// Another change came first. Retryable against the new map.
    #[error("the range is in another epoch by now")]
    OtherEpoch,
    /// The node is not a member.
    #[error("the node is not a member of the range")]
    NotAMember,
    /// The node is the last member.
    #[error("the node is the last member of the range")]
    LastMember,
}

impl RangeMap {
    pub(crate) fn new(ranges: Vec<RangeDescriptor>) -> Self {
        Self { ranges }
    }

    /// All ranges, the control plane's own first.
    pub fn ranges(&self) -> &[RangeDescriptor] {
        &self.ranges
    }

    /// A range by name.
    pub fn get(&self, range: RangeId) -> Option<&RangeDescriptor> {
        Some(&self.ranges[self.place(range)?])
    }

    fn place(&self, range: RangeId) -> Option<usize> {
        self.ranges.binary_search_by_key(&range, |descriptor| descriptor.range).ok()
    }

    /// The range that holds a key.
    pub fn find(&self, key: &[u8]) -> &RangeDescriptor {
        let keyed = &self.ranges[1..];
        let after = keyed.partition_point(|descriptor| *descriptor.start <= *key);
        &keyed[after - 1]
    }

    /// The range with the last of the keys before one, or with the last of all.
    pub fn find_before(&self, end: Option<&[u8]>) -> &RangeDescriptor {
        let keyed = &self.ranges[1..];
        let after = end.map_or(keyed.len(), |end| {
            keyed.partition_point(|descriptor| *descriptor.start < *end)
        });
        &keyed[after.saturating_sub(1)]
    }

    /// Makes a change, and returns the range as it is now.
    pub fn apply(&mut self, change: &Change) -> Result<&RangeDescriptor, InvalidChange> {
        let Change::RemoveFromChain { range, epoch, node } = *change;
        let found = self.place(range).map(|place| &mut self.ranges[place]);
        let chain = found.filter(|descriptor| descriptor.mode == Mode::Chain);
        let descriptor = chain.ok_or(InvalidChange::NoSuchChain)?;
        if descriptor.epoch != epoch {
            return Err(InvalidChange::OtherEpoch);
        }
        let place = descriptor.members.iter().position(|member| member.node == node);
        let place = place.ok_or(InvalidChange::NotAMember)?;
        if descriptor.members.len() == 1 {
            return Err(InvalidChange::LastMember);
        }
        descriptor.members.remove(place);
        descriptor.epoch += 1;
        Ok(descriptor)
    }

    /// Ranges that are not as they were in the cluster's first map.
    pub fn changed(&self) -> impl Iterator<Item = &RangeDescriptor> {
        self.ranges.iter().filter(|descriptor| descriptor.epoch > FIRST_EPOCH)
    }

    /// How many changes this map has seen: of two maps of a cluster, one that has seen more has
    /// something that the other lacks.
    pub fn version(&self) -> u64 {
        self.changed().map(|descriptor| descriptor.epoch - FIRST_EPOCH).sum()
    }

    /// Takes in a later state of one range, as another shard told it. Earlier ones are ignored.
    pub fn install(&mut self, later: &RangeDescriptor) {
        if let Some(place) = self.place(later.range)
            && self.ranges[place].epoch < later.epoch
        {
            self.ranges[place].clone_from(later);
        }
    }
}

impl RangeMap {
    /// The encoding in a snapshot.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a range map always encodes").into()
    }

    /// Reads what [`RangeMap::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}

impl RangeDescriptor {
    /// The encoding of several, in messages.
    pub fn to_bytes<'a>(descriptors: impl Iterator<Item = &'a Self>) -> Bytes {
        let all: Vec<_> = descriptors.collect();
        postcard::to_stdvec(&all).expect("a descriptor always encodes").into()
    }

    /// Reads what [`RangeDescriptor::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Vec<Self>, WireError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}

impl Change {
    /// The encoding in the log and in requests.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a change always encodes").into()
    }

    /// Reads what [`Change::to_bytes`] wrote, and nothing after it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        match postcard::take_from_bytes(bytes)? {
            (change, []) => Ok(change),
            (_, rest) => Err(WireError::TrailingBytes(rest.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::ShardId;

    use super::*;
    use crate::Bootstrap;

    fn map() -> RangeMap {
        Bootstrap { nodes: (0..3).map(NodeId).collect(), shards: 2, ranges_per_mode: 3, only: None }
            .range_map()
    }

    #[test]
    fn every_key_is_held_by_the_one_range_that_is_found() {
        let map = map();
        let keys = (0..=255u8).flat_map(|byte| [vec![byte], vec![byte, 0], vec![byte, 255, 7]]);
        for key in keys.chain([Vec::new()]) {
            let holders: Vec<_> = map.ranges().iter().filter(|range| range.holds(&key)).collect();
            assert_eq!(holders, [map.find(&key)], "{key:?}");
        }
    }

    #[test]
    fn a_removal_raises_the_epoch_and_is_refused_a_second_time() {
        let mut map = map();
        let chain = map.ranges().iter().find(|range| range.mode == Mode::Chain).unwrap().clone();
        let change =
            Change::RemoveFromChain { range: chain.range, epoch: 1, node: chain.members[1].node };
        assert_eq!(Change::from_bytes(&change.to_bytes()).unwrap(), change);
        let now = map.apply(&change).unwrap();
        assert_eq!((now.epoch, now.members.len()), (2, 2));
        assert_eq!(map.apply(&change), Err(InvalidChange::OtherEpoch));
    }

    #[test]
    fn what_can_not_be_removed_stays() {
        let mut map = map();
        let raft = map.ranges().iter().find(|range| range.mode == Mode::Raft).unwrap().range;
        let remove = |range, epoch, node| Change::RemoveFromChain { range, epoch, node };
        assert_eq!(map.apply(&remove(raft, 1, NodeId(0))), Err(InvalidChange::NoSuchChain));
        let chain = map.ranges().iter().find(|range| range.mode == Mode::Chain).unwrap().range;
        assert_eq!(map.apply(&remove(chain, 1, NodeId(9))), Err(InvalidChange::NotAMember));
        map.apply(&remove(chain, 1, NodeId(0))).unwrap();
        map.apply(&remove(chain, 2, NodeId(1))).unwrap();
        assert_eq!(map.apply(&remove(chain, 3, NodeId(2))), Err(InvalidChange::LastMember));
    }

    #[test]
    fn leaders_and_modes_are_spread_over_nodes_and_shards() {
        let map = map();
        for mode in [Mode::Raft, Mode::Chain] {
            let ranges = map.ranges()[1..].iter().filter(|range| range.mode == mode);
            let firsts: Vec<_> = ranges.map(|range| range.members[0]).collect();
            let at = |node, shard| PeerAddress { node: NodeId(node), shard: ShardId(shard) };
            assert_eq!(firsts, [at(0, 0), at(1, 1), at(2, 0)], "{mode}");
        }
    }
}
