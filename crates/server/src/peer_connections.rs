//! Connections between shards of different nodes. Each shard dials a connection to send on.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use futures_lite::FutureExt;
use glommio::net::TcpStream;
use palisade_shard::{Input, PeerMessage};
use palisade_wire::{
    AccessKey, Encode, FrameDecoder, FrameKind, Initiator, PeerAddress, PeerHello, Proof, Refusal,
    decode_exact, write_frame,
};

use crate::{
    executor::Executor,
    framing::scratch,
    handshake::{Gate, Handshake, nonce},
    outbound::Outbound,
    sockets::prepare,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Keeps a connection to a peer open, and sends the peer's buffered frames on it. Opens another
/// once [`Outbound::close`] was called, whether or not the kernel still waits for the first.
pub(crate) async fn dial_peer(
    executor: Rc<Executor>,
    gate: Rc<Gate>,
    to: PeerAddress,
    address: SocketAddr,
    outbound: Rc<Outbound>,
) {
    loop {
        match open(&gate, to, address).await {
            Ok((mut stream, proof)) => {
                outbound.reopen(|out| {
                    if let Some(proof) = proof {
                        write_frame(out, FrameKind::Proof, |out| proof.encode(out));
                    }
                });
                // A write to a peer that does not read may wait for minutes.
                outbound.drain_into(&mut stream).or(outbound.wait_closed()).await;
            }
            Err(refusal) => {
                let what = format!("{}: {to} refuses the connection", gate.at);
                gate.dialed.report(&what, refusal, executor.now_us());
            }
        }
        glommio::timer::sleep(RETRY_PAUSE).await;
    }
}

/// Returns a connection, and the proof to send on it.
async fn open(
    gate: &Gate,
    to: PeerAddress,
    address: SocketAddr,
) -> Result<(TcpStream, Option<Proof>), Option<Refusal>> {
    let connecting = TcpStream::connect_timeout(address, CONNECT_TIMEOUT);
    let mut stream = connecting.await.map_err(|_| None)?;
    prepare(&stream).map_err(|_| None)?;
    let key = gate.own_key;
    let hello = PeerHello {
        cluster_id: gate.cluster_id,
        from: gate.at,
        to,
        key: key.as_ref().map(AccessKey::id),
        nonce: nonce().map_err(|_| None)?,
    };
    let mut decoder = FrameDecoder::for_handshake();
    let handshake = Handshake { stream: &mut stream, decoder: &mut decoder };
    let proof = handshake.open(gate, to, &Initiator::new(key, &hello)).await?;
    Ok((stream, proof))
}

/// Receives a peer's messages, until it disconnects or sends an invalid frame.
pub(crate) async fn serve_peer(executor: Rc<Executor>, gate: Rc<Gate>, mut stream: TcpStream) {
    if prepare(&stream).is_err() {
        return;
    }
    let mut decoder = FrameDecoder::for_handshake();
    let handshake = Handshake { stream: &mut stream, decoder: &mut decoder };
    let check = |hello: &PeerHello| {
        if hello.cluster_id != gate.cluster_id {
            return Err(Refusal::OtherCluster { cluster_id: gate.cluster_id });
        }
        if hello.to != gate.at || !executor.peers.contains_key(&hello.from) {
            return Err(Refusal::OtherAddress);
        }
        Ok(hello.key)
    };
    let accepted = handshake.accept((&gate, &gate.peers), FrameKind::PeerHello, check).await;
    let from = match accepted {
        Ok((hello, _)) => hello.from,
        Err(refusal) => {
            let what = format!("{}: a peer was refused with the words", gate.at);
            return gate.peers.refused.report(&what, refusal, executor.now_us());
        }
    };
    decoder.end_handshake();
    let mut scratch = scratch();
    let partial = &executor.partial_of_peers;
    while let Ok(frame) = partial.read_frame(&mut stream, &mut decoder, &mut scratch).await {
        if frame.kind != FrameKind::Peer {
            return;
        }
        match decode_exact::<PeerMessage>(frame.payload) {
            Ok(message) => executor.inbox.push(Input::Peer { from, message }),
            Err(error) => {
                tracing::warn!("{}: the connection from {from} is closed: {error}", gate.at);
                return;
            }
        }
        executor.inbox.wait_for_messages().await;
    }
}
