//! Ports that nobody uses now.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Below the range from which the kernel takes ports for outgoing connections.
const CANDIDATES: Range<u16> = 10_000..30_000;

/// The first of a block of free ports on the loopback address, or `None`. Another process may take
/// one before it is used.
pub fn free_ports(ports: u16) -> Option<u16> {
    (0..1_000).map(|_| fastrand::u16(CANDIDATES)).find(|first| {
        (*first..*first + ports).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    })
}
