//! The shape in which a cluster is created, and the first range map, which is computed from it.
//!
//! Every node computes the same map from the same configuration. The shape is durable from the
//! first start on. Another shape would give another map, which would not find the existing rows.

use bytes::Bytes;
use palisade_wire::{Mode, NodeId, PeerAddress, RangeId, ShardId, WireError, decode_cold};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{RangeDescriptor, RangeMap, range_map::FIRST_EPOCH};

/// Limit on the ranges with which a cluster can begin.
pub const MAX_RANGES: usize = 32 * 1024;

/// Replicas of a range, or one per node in a smaller cluster.
const REPLICAS: usize = 3;

/// The shape of a cluster: the settings from which the first range map is computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The nodes, in the order of the config. The order decides where replicas are placed.
    pub nodes: Vec<NodeId>,
    /// Number of shards of each node.
    pub shards: u16,
    /// Number of ranges of each mode.
    pub ranges_per_mode: u16,
    /// If set, all `2 * ranges_per_mode` ranges use this mode.
    pub only: Option<Mode>,
}

/// The configuration differs from the shape in which the cluster was created. Not retryable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the configuration says {setting} = {configured}, but this cluster was created with \
     {setting} = {recorded}: it can't be changed yet, so set it back. Addresses may change"
)]
pub struct ShapeChanged {
    /// Name of the first setting that differs.
    pub setting: &'static str,
    /// Its value when the cluster was created.
    pub recorded: String,
    /// Its value in the configuration.
    pub configured: String,
}

/// Returns the range map of a single replica: the control range, and one Raft range for all keys.
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
    /// Computes the first range map: splits the key space evenly by the first two bytes of the key.
    /// Modes alternate, and the first member of the ranges rotates over the nodes.
    ///
    /// # Panics
    ///
    /// If `ranges_per_mode` is 0 or above `MAX_RANGES / 2`, or if `shards` is 0.
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

    /// Compares this configuration with the shape in which the cluster was created.
    ///
    /// # Errors
    ///
    /// [`ShapeChanged`] with the first setting that differs. Not retryable.
    pub fn check_unchanged(&self, recorded: &Self) -> Result<(), ShapeChanged> {
        let nodes = |shape: &Self| {
            let numbers: Vec<_> = shape.nodes.iter().map(|node| node.0.to_string()).collect();
            format!("[{}]", numbers.join(", "))
        };
        let mode = |shape: &Self| shape.only.map_or("mixed".to_owned(), |mode| mode.to_string());
        let settings = [
            ("node numbers", nodes(recorded), nodes(self)),
            ("shards", recorded.shards.to_string(), self.shards.to_string()),
            (
                "ranges_per_mode",
                recorded.ranges_per_mode.to_string(),
                self.ranges_per_mode.to_string(),
            ),
            ("mode", mode(recorded), mode(self)),
        ];
        match settings.into_iter().find(|(_, recorded, configured)| recorded != configured) {
            Some((setting, recorded, configured)) => {
                Err(ShapeChanged { setting, recorded, configured })
            }
            None => Ok(()),
        }
    }

    /// Encodes the shape for a shard's log.
    pub fn to_bytes(&self) -> Bytes {
        postcard::to_stdvec(self).expect("a shape always encodes").into()
    }

    /// Decodes the output of [`Bootstrap::to_bytes`].
    ///
    /// # Errors
    ///
    /// [`WireError`] if the bytes are no shape. Not retryable.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        decode_cold(bytes)
    }

    fn members(&self, first: usize, shard: ShardId) -> Vec<PeerAddress> {
        let nodes = self.nodes.len();
        let member = |at| PeerAddress { node: self.nodes[(first + at) % nodes], shard };
        (0..nodes.min(REPLICAS)).map(member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_check_names_each_changed_setting() {
        let nodes: Vec<_> = (0..3).map(NodeId).collect();
        let recorded = Bootstrap { nodes, shards: 2, ranges_per_mode: 2, only: None };
        assert_eq!(Bootstrap::from_bytes(&recorded.to_bytes()).unwrap(), recorded);
        recorded.check_unchanged(&recorded).unwrap();
        let change = |change: fn(&mut Bootstrap)| {
            let mut configured = recorded.clone();
            change(&mut configured);
            let error = configured.check_unchanged(&recorded).unwrap_err();
            (error.setting, error.recorded, error.configured)
        };
        let owned = |a: &'static str, b: &str, c: &str| (a, b.to_owned(), c.to_owned());
        let added = change(|shape| shape.nodes.push(NodeId(7)));
        assert_eq!(added, owned("node numbers", "[0, 1, 2]", "[0, 1, 2, 7]"));
        // The order of the nodes decides where the replicas are.
        let swapped = change(|shape| shape.nodes.swap(0, 1));
        assert_eq!(swapped, owned("node numbers", "[0, 1, 2]", "[1, 0, 2]"));
        assert_eq!(change(|shape| shape.shards = 1), owned("shards", "2", "1"));
        assert_eq!(change(|s| s.ranges_per_mode = 4), owned("ranges_per_mode", "2", "4"));
        let mode = change(|shape| shape.only = Some(Mode::Chain));
        assert_eq!(mode, owned("mode", "mixed", "chain"));
    }
}
