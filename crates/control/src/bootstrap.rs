//! The first range map of a cluster: every node computes the same one from the same config.

use palisade_wire::{Mode, NodeId, PeerAddress, RangeId, ShardId};

use crate::{RangeDescriptor, RangeMap, range_map::FIRST_EPOCH};

/// Ranges that a cluster can begin with.
pub const MAX_RANGES: usize = 32 * 1024;

/// Replicas of a range, if there are so many nodes.
const REPLICAS: usize = 3;

/// What the first range map is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The nodes, in the order of the config.
    pub nodes: Vec<NodeId>,
    /// Shards of each node.
    pub shards: u16,
    /// Ranges of each mode.
    pub ranges_per_mode: u16,
    /// Puts all ranges in one mode, in which there are then twice as many.
    pub only: Option<Mode>,
}

/// The range map of a node by itself: one range for all keys.
pub fn range_map_of_one(at: PeerAddress) -> RangeMap {
    let descriptor = |range, end| RangeDescriptor {
        range,
        mode: Mode::Raft,
        epoch: FIRST_EPOCH,
        start: Vec::new(),
        end,
        members: vec![at],
    };
    RangeMap::new(vec![
        descriptor(RangeId::CONTROL, Some(Vec::new())),
        descriptor(RangeId(1), None),
    ])
}

impl Bootstrap {
    /// Splits the key space evenly by the first two bytes of the key; modes alternate, and so do the
    /// nodes that lead.
    pub fn range_map(&self) -> RangeMap {
        let ranges = 2 * usize::from(self.ranges_per_mode);
        assert!((2..=MAX_RANGES).contains(&ranges), "{ranges} ranges can't be made");
        let control = RangeDescriptor {
            range: RangeId::CONTROL,
            mode: Mode::Raft,
            epoch: FIRST_EPOCH,
            start: Vec::new(),
            end: Some(Vec::new()),
            members: self.members(0, ShardId(0)),
        };
        let split = |at: usize| {
            let prefix = u16::try_from((at << 16) / ranges).expect("a range follows the split");
            if at == 0 { Vec::new() } else { prefix.to_be_bytes().to_vec() }
        };
        let keyed = (0..ranges).map(|at| {
            let of_its_mode = if self.only.is_some() { at } else { at / 2 };
            let shard = of_its_mode % usize::from(self.shards);
            let shard = ShardId(u16::try_from(shard).expect("it is below a u16"));
            let alternating = if at % 2 == 0 { Mode::Raft } else { Mode::Chain };
            RangeDescriptor {
                range: RangeId(u32::try_from(at + 1).expect("ranges are few")),
                mode: self.only.unwrap_or(alternating),
                epoch: FIRST_EPOCH,
                start: split(at),
                end: (at + 1 < ranges).then(|| split(at + 1)),
                members: self.members(of_its_mode, shard),
            }
        });
        RangeMap::new([control].into_iter().chain(keyed).collect())
    }

    fn members(&self, first: usize, shard: ShardId) -> Vec<PeerAddress> {
        let nodes = self.nodes.len();
        let member = |at| PeerAddress { node: self.nodes[(first + at) % nodes], shard };
        (0..nodes.min(REPLICAS)).map(member).collect()
    }
}
