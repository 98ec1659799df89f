//! The keys of a load, spread evenly over the ranges of one mode.

use bytes::Bytes;
use palisade_client::{Mode, RangeId, Topology};

/// The keys of a load, numbered from 0. Key `n` lies in range `n % ranges()`.
#[derive(Clone, Debug)]
pub struct Keys {
    ranges: Vec<(RangeId, Vec<u8>)>,
    count: u32,
}

impl Keys {
    /// Creates `count` keys, spread over the ranges in `mode`, or over all ranges if it is `None`.
    /// Returns `None` if there is no such range or `count` is 0.
    pub fn new(topology: &Topology, mode: Option<Mode>, count: u32) -> Option<Self> {
        let keyed = topology.ranges.ranges().iter().filter(|range| range.range != RangeId::CONTROL);
        let of_mode = keyed.filter(|range| mode.is_none_or(|mode| range.mode == mode));
        let ranges: Vec<_> = of_mode.map(|range| (range.range, range.start.clone())).collect();
        (!ranges.is_empty() && count > 0).then_some(Self { ranges, count })
    }

    /// Returns the number of keys.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the number of ranges that the keys are spread over.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Returns the index, below [`Keys::ranges`], of the range that holds a key.
    pub fn range_of(&self, key: u32) -> usize {
        key as usize % self.ranges.len()
    }

    /// Returns the id of the range with an index.
    ///
    /// # Panics
    ///
    /// If `place` is not below [`Keys::ranges`].
    pub fn range_id(&self, place: usize) -> RangeId {
        self.ranges[place].0
    }

    /// Returns the key with a number: the start of its range and a suffix that keeps it below the
    /// next range.
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

    /// Regression: the first range starts with the empty key, and its keys lay in another range.
    #[test]
    fn keys_lie_in_their_assigned_range() {
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
