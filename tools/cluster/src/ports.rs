//! Free ports on the loopback address.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

/// Ports below the range from which the kernel takes ports for outgoing connections.
const CANDIDATES: Range<u16> = 10_000..30_000;

/// Returns the first port of a block of `ports` free ports on the loopback address. Returns `None`
/// if 1,000 random tries find no block. Another process may take a port before it is used.
pub fn free_ports(ports: u16) -> Option<u16> {
    (0..1_000).map(|_| fastrand::u16(CANDIDATES)).find(|first| {
        (*first..*first + ports).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    })
}
