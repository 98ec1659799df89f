//! Options of the sockets of connections.

use std::{io, os::fd::AsRawFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// How long a connection may be idle before the kernel probes the other side, the interval of the
/// probes, and how many of them stay unanswered before the connection ends: 25 s after a machine
/// has vanished.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// How long sent bytes may stay unacknowledged, or the other side may have no room for any, before
/// the connection ends. The kernel's default is 15 minutes.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Sets the options of a connection: small frames leave at once, and a connection whose other side
/// has vanished ends.
pub(crate) fn prepare(stream: &impl AsRawFd) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
