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

    /// The key of a number: it begins as its range does.
    pub fn key(&self, key: u32) -> Bytes {
        let (_, start) = &self.ranges[self.range_of(key)];
        let mut bytes = start.clone();
        bytes.extend_from_slice(format!("key{key:010}").as_bytes());
        bytes.into()
    }
}
