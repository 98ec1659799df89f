//! The messages between clients and servers, and the handshake of clients and peers.

use palisade_control::{Change, Topology};
use palisade_wire::{
    ClientHello, PeerHello, Proof, Refusal, Request, Response, ShardStatus, Welcome,
};

use crate::round_trip::{message, postcard};

/// Checks `data` as a message of each type. Returns true if it decodes as one of them.
pub fn check(data: &[u8]) -> bool {
    let decoded = [
        message::<ClientHello>(data),
        message::<PeerHello>(data),
        message::<Welcome>(data),
        message::<Proof>(data),
        message::<Refusal>(data),
        message::<Request>(data),
        message::<Response>(data),
        postcard(data, Change::from_bytes, Change::to_bytes),
        postcard(data, ShardStatus::from_bytes, ShardStatus::to_bytes),
        postcard(data, Topology::from_bytes, Topology::to_bytes),
    ];
    decoded.contains(&true)
}
