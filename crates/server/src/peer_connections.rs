//! Connections between shards of different nodes. Each shard dials a connection to send on.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use futures_lite::FutureExt;
use glommio::net::TcpStream;
use palisade_shard::{Input, PeerMessage};
use palisade_wire::{
    Encode, FrameDecoder, FrameKind, PeerAddress, PeerHello, decode_exact, write_frame,
};

use crate::{
    executor::Executor,
    framing::{read_frame, read_hello, scratch},
    outbound::Outbound,
    sockets::prepare,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Keeps a connection to a peer open, and sends the peer's buffered frames on it. Opens another
/// once [`Outbound::close`] was called, whether or not the kernel still waits for the first.
pub(crate) async fn dial_peer(
    executor: Rc<Executor>,
    cluster_id: u64,
    to: PeerAddress,
    address: SocketAddr,
    outbound: Rc<Outbound>,
) {
    loop {
        if let Ok(mut stream) = TcpStream::connect_timeout(address, CONNECT_TIMEOUT).await
            && prepare(&stream).is_ok()
        {
            let hello = PeerHello { cluster_id, from: executor.at, to };
            outbound.reopen(|out| {
                write_frame(out, FrameKind::PeerHello, |out| hello.encode(out));
            });
            // A write to a peer that does not read may wait for minutes.
            outbound.drain_into(&mut stream).or(outbound.wait_closed()).await;
        }
        glommio::timer::sleep(RETRY_PAUSE).await;
    }
}

/// Receives a peer's messages, until it disconnects or sends an invalid frame.
pub(crate) async fn serve_peer(executor: Rc<Executor>, cluster_id: u64, mut stream: TcpStream) {
    if prepare(&stream).is_err() {
        return;
    }
    let (mut decoder, mut scratch) = (FrameDecoder::default(), scratch());
    let hello = read_hello(&mut stream, &mut decoder, &mut scratch, FrameKind::PeerHello).await;
    let Some(hello) = hello.and_then(|frame| decode_exact::<PeerHello>(frame.payload).ok()) else {
        return;
    };
    let known = executor.peers.contains_key(&hello.from);
    if hello.cluster_id != cluster_id || hello.to != executor.at || !known {
        tracing::warn!(
            "{}: a connection from {} of another cluster is closed",
            executor.at,
            hello.from
        );
        return;
    }
    while let Some(frame) = read_frame(&mut stream, &mut decoder, &mut scratch).await {
        if frame.kind != FrameKind::Peer {
            return;
        }
        match decode_exact::<PeerMessage>(frame.payload) {
            Ok(message) => executor.inbox.push(Input::Peer { from: hello.from, message }),
            Err(error) => {
                tracing::warn!(
                    "{}: the connection from {} is closed: {error}",
                    executor.at,
                    hello.from
                );
                return;
            }
        }
        executor.inbox.wait_for_messages().await;
    }
}
