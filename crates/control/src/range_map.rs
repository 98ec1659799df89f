//! The range map and its changes.

use bytes::Bytes;
use palisade_wire::{Mode, NodeId, PeerAddress, RangeId, WireError, decode_cold};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A range: its keys, its replication mode and its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDescriptor {
    /// The id of the range.
    pub range: RangeId,
    /// The replication mode.
    pub mode: Mode,
    /// Rises by one with every change of the members.
    pub epoch: u64,
    /// The first key of the range.
    pub start: Vec<u8>,
    /// The first key after the range, or `None` for the last range. The control plane's own range
    /// holds no keys: its end equals its start.
    pub end: Option<Vec<u8>>,
    /// The replicas. In chain mode, they are listed from head to tail.
    pub members: Vec<PeerAddress>,
}

impl RangeDescriptor {
    /// Returns true if a key belongs to the range.
    pub fn holds(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }
}

/// All ranges of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeMap {
    /// Sorted by range id and by first key. The first is range 0, the control plane's own.
    ranges: Vec<RangeDescriptor>,
}

/// The epoch of every range in the cluster's first map.
pub(crate) const FIRST_EPOCH: u64 = 1;

/// Epochs are below this. Far above the number of changes that a cluster can make, and low enough
/// that sums of them do not overflow.
const MAX_EPOCH: u64 = 1 << 40;

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Removes a node from a chain. The node must be stopped, and stay stopped until every
    /// remaining member is in the new epoch: nothing else fences it.
    RemoveFromChain {
        /// The chain's range.
        range: RangeId,
        /// The epoch in which the proposer saw the range. It must still be the present epoch.
        epoch: u64,
        /// The node to remove.
        node: NodeId,
    },
}

/// The reason why a change was refused. Deterministic: every replica refuses the same changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidChange {
    /// The range does not exist, or it is not a chain. Not retryable.
    #[error("there is no chain of that name")]
    NoSuchChain,
    /// Another change was applied first. Retryable with the epoch of the new map.
    #[error("the range is in another epoch by now")]
    OtherEpoch,
    /// The node is not a member. Not retryable.
    #[error("the node is not a member of the range")]
    NotAMember,
    /// The node is the last member. Not retryable.
    #[error("the node is the last member of the range")]
    LastMember,
}

impl RangeMap {
    pub(crate) fn new(ranges: Vec<RangeDescriptor>) -> Self {
        Self { ranges }
    }

    /// Returns all ranges, the control plane's own first.
    pub fn ranges(&self) -> &[RangeDescriptor] {
        &self.ranges
    }

    /// Returns a range by its id, or `None` if it does not exist.
    pub fn get(&self, range: RangeId) -> Option<&RangeDescriptor> {
        Some(&self.ranges[self.place(range)?])
    }

    fn place(&self, range: RangeId) -> Option<usize> {
        self.ranges.binary_search_by_key(&range, |descriptor| descriptor.range).ok()
    }

    /// Returns the range that holds a key.
    pub fn find(&self, key: &[u8]) -> &RangeDescriptor {
        let keyed = &self.ranges[1..];
        let after = keyed.partition_point(|descriptor| *descriptor.start <= *key);
        &keyed[after - 1]
    }

    /// Returns the range with the last keys below `end`, or the last range if `end` is `None`.
    pub fn find_before(&self, end: Option<&[u8]>) -> &RangeDescriptor {
        let keyed = &self.ranges[1..];
        let after = end.map_or(keyed.len(), |end| {
            keyed.partition_point(|descriptor| *descriptor.start < *end)
        });
        &keyed[after.saturating_sub(1)]
    }

    /// Applies a change, and returns the changed range.
    ///
    /// # Errors
    ///
    /// [`InvalidChange`]. The map is unchanged then. Only [`InvalidChange::OtherEpoch`] is
    /// retryable, with the new epoch.
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

    /// Returns the ranges that have changed since the cluster's first map.
    pub fn changed(&self) -> impl Iterator<Item = &RangeDescriptor> {
        self.ranges.iter().filter(|descriptor| descriptor.epoch > FIRST_EPOCH)
    }

    /// Returns the number of changes in this map. Of two maps of a cluster, the one with more
    /// changes has one that the other lacks.
    pub fn version(&self) -> u64 {
        self.changed().map(|descriptor| descriptor.epoch - FIRST_EPOCH).sum()
    }

    /// Replaces the descriptor of a range by a later one from another shard. Ignores a descriptor
    /// whose epoch is not later, and one of an unknown range, or of one with other keys.
    pub fn install(&mut self, later: &RangeDescriptor) {
        if let Some(place) = self.place(later.range) {
            let known = &mut self.ranges[place];
            let is_same = known.start == later.start && known.end == later.end;
            if is_same && known.mode == later.mode && known.epoch < later.epoch {
                known.clone_from(later);
            }
        }
    }
}

impl RangeMap {
    /// Encodes the map for a snapshot.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a range map always encodes").into()
    }

    /// Decodes the output of [`RangeMap::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`WireError`] if the bytes are no range map. Not retryable.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let map: Self = decode_cold(bytes)?;
        map.check()?;
        Ok(map)
    }

    /// Checks that the map is one that a cluster can have: the control plane's range, and ranges
    /// that cover the key space without overlap.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        self.ranges.iter().try_for_each(RangeDescriptor::check)?;
        let rises = self.ranges.windows(2).all(|pair| pair[0].range < pair[1].range);
        let [control, keyed @ ..] = &self.ranges[..] else {
            return Err(WireError::Invalid("a range map is empty"));
        };
        let is_control =
            control.range == RangeId::CONTROL && control.end.as_deref() == Some(&control.start[..]);
        let adjoin = keyed.windows(2).all(|pair| pair[0].end.as_ref() == Some(&pair[1].start));
        let begins = keyed.first().is_some_and(|first| first.start.is_empty());
        let ends = keyed.last().is_some_and(|last| last.end.is_none());
        if rises && is_control && adjoin && begins && ends {
            Ok(())
        } else {
            Err(WireError::Invalid("the ranges of a map do not cover the keys, each once"))
        }
    }
}

impl RangeDescriptor {
    /// Encodes several descriptors for a message.
    pub fn to_bytes<'a>(descriptors: impl Iterator<Item = &'a Self>) -> Bytes {
        let all: Vec<_> = descriptors.collect();
        postcard::to_stdvec(&all).expect("a descriptor always encodes").into()
    }

    /// Decodes the output of [`RangeDescriptor::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`WireError`] if the bytes are no list of descriptors. Not retryable.
    pub fn from_bytes(bytes: &[u8]) -> Result<Vec<Self>, WireError> {
        let all: Vec<Self> = decode_cold(bytes)?;
        all.iter().try_for_each(Self::check)?;
        Ok(all)
    }

    fn check(&self) -> Result<(), WireError> {
        let mut distinct = self.members.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.is_empty() || distinct.len() < self.members.len() {
            return Err(WireError::Invalid("a range has no member, or one twice"));
        }
        if !(FIRST_EPOCH..MAX_EPOCH).contains(&self.epoch) {
            return Err(WireError::Invalid("a range has an impossible epoch"));
        }
        Ok(())
    }
}

impl Change {
    /// Encodes the change for the log and for requests.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a change always encodes").into()
    }

    /// Decodes the output of [`Change::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`WireError`] if the bytes are no change, or if bytes follow it. Not retryable.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        decode_cold(bytes)
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
    fn key_belongs_to_exactly_one_range() {
        let map = map();
        let keys = (0..=255u8).flat_map(|byte| [vec![byte], vec![byte, 0], vec![byte, 255, 7]]);
        for key in keys.chain([Vec::new()]) {
            let holders: Vec<_> = map.ranges().iter().filter(|range| range.holds(&key)).collect();
            assert_eq!(holders, [map.find(&key)], "{key:?}");
        }
    }

    #[test]
    fn removal_increments_epoch_and_rejects_old_epoch() {
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
    fn removal_rejects_raft_range_nonmember_and_last_member() {
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

    #[test]
    fn decoding_refuses_maps_that_no_cluster_can_have() {
        let decoded = |change: fn(&mut Vec<RangeDescriptor>)| {
            let mut map = map();
            change(&mut map.ranges);
            RangeMap::from_bytes(&map.to_bytes())
        };
        assert_eq!(decoded(|_| {}).unwrap(), map());
        assert!(decoded(Vec::clear).is_err());
        assert!(decoded(|ranges| ranges.truncate(1)).is_err());
        assert!(decoded(|ranges| ranges.swap(1, 2)).is_err());
        assert!(decoded(|ranges| drop(ranges.remove(2))).is_err());
        assert!(decoded(|ranges| ranges[1].start = vec![0]).is_err());
        assert!(decoded(|ranges| ranges[3].members.clear()).is_err());
        assert!(decoded(|ranges| ranges[3].epoch = u64::MAX).is_err());
        assert!(decoded(|ranges| ranges[3].members[1] = ranges[3].members[0]).is_err());
    }

    #[test]
    fn install_ignores_descriptor_with_other_keys_or_mode() {
        let (mut installed, original) = (map(), map());
        let mut later = original.ranges()[2].clone();
        later.epoch += 1;
        for change in [
            |range: &mut RangeDescriptor| range.start = vec![0xFF; 9],
            |range: &mut RangeDescriptor| range.end = None,
            |range: &mut RangeDescriptor| {
                range.mode = if range.mode == Mode::Raft { Mode::Chain } else { Mode::Raft };
            },
        ] {
            let mut other = later.clone();
            change(&mut other);
            installed.install(&other);
            assert_eq!(installed, original);
        }
        installed.install(&later);
        assert_eq!(installed.ranges()[2], later);
    }
}
