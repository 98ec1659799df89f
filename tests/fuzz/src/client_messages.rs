//! The messages between clients and servers, and the first frame of a peer.

use palisade_control::{Change, Topology};
use palisade_wire::{ClientHello, PeerHello, Request, Response, ServerHello, ShardStatus};

use crate::round_trip::{message, postcard};

/// Checks `data` as a message of each type. Returns true if it decodes as one of them.
pub fn check(data: &[u8]) -> bool {
    let decoded = [
        message::<ClientHello>(data),
        message::<ServerHello>(data),
        message::<PeerHello>(data),
        message::<Request>(data),
        message::<Response>(data),
        postcard(data, Change::from_bytes, Change::to_bytes),
        postcard(data, ShardStatus::from_bytes, ShardStatus::to_bytes),
        postcard(data, Topology::from_bytes, Topology::to_bytes),
    ];
    decoded.contains(&true)
}
