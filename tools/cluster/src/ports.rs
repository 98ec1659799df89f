//! Ports that nobody uses now.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Below the range from which the kernel takes ports for outgoing connections.
const CANDIDATES: Range<u16> = 10_000..30_000;

/// A block of free ports, or `None` if none was found. Somebody else may take one before it is
/// used; whoever uses it then says so.
pub(crate) fn free_block(ports: u16) -> Option<u16> {
    (0..1_000).map(|_| fastrand::u16(CANDIDATES)).find(|first| {
        (*first..*first + ports).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    })
}
