//! The keys that a load works on, spread evenly over the ranges of one mode.

use bytes::Bytes;
use palisade_client::{Mode, RangeId, Topology};

/// Keys by number.
#[derive(Clone, Debug)]
pub struct Keys {
    ranges: Vec<(RangeId, Vec<u8>)>,
    count: u32,
}

impl Keys {
    /// `count` keys, spread over all ranges that are replicated in a mode, or over all ranges.
    /// `None` if there is no such range.
    pub fn new(topology: &Topology, mode: Option<Mode>, count: u32) -> Option<Self> {
        let keyed = topology.ranges.ranges().iter().filter(|range| range.range != RangeId::CONTROL);
        let of_mode = keyed.filter(|range| mode.is_none_or(|mode| range.mode == mode));
        let ranges: Vec<_> = of_mode.map(|range| (range.range, range.start.clone())).collect();
        (!ranges.is_empty() && count > 0).then_some(Self { ranges, count })
    }

    /// How many keys there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many ranges they are spread over.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// The place among the ranges of the one that holds a key.
    pub fn range_of(&self, key: u32) -> usize {
        key as usize % self.ranges.len()
    }

    /// The name of a range.
    pub fn range_id(&self, place: usize) -> RangeId {
        self.ranges[place].0
    }

    /// The key of a number: it begins as its range does, and lies below the next one.
    pub fn key(&self, key: u32) -> Bytes {
        let (_, start) = &self.ranges[self.range_of(key)];
        let mut bytes = start.clone();
        bytes.extend_from_slice(format!("\0key{key:010}").as_bytes());
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use palisade_client::{NodeId, RangeDescriptor};

    use super::*;

    /// The first range begins with the empty key: its keys were another's.
    #[test]
    fn every_key_lies_in_the_range_that_it_is_meant_for() {
        let ranges = palisade_control::Bootstrap {
            nodes: vec![NodeId(0)],
            shards: 1,
            ranges_per_mode: 3,
            only: None,
        }
        .range_map();
        let topology = Topology { cluster_id: 1, nodes: Vec::new(), ranges, now_ts: None };
        for mode in [None, Some(Mode::Raft), Some(Mode::Chain)] {
            let keys = Keys::new(&topology, mode, 50).unwrap();
            for key in 0..50 {
                let found: &RangeDescriptor = topology.ranges.find(&keys.key(key));
                assert_eq!(found.range, keys.range_id(keys.range_of(key)));
            }
        }
    }
}
