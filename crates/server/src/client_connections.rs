//! Connections of clients.

use std::rc::Rc;

use futures_lite::FutureExt;
use glommio::net::TcpStream;
use palisade_shard::Input;
use palisade_wire::{
    ClientHello, FrameDecoder, FrameKind, Outcome, Refusal, Rejection, Request, Response,
    decode_exact,
};

use crate::{
    executor::Executor,
    framing::scratch,
    handshake::{Gate, Handshake},
    outbound::Outbound,
    sockets::prepare,
};

/// Serves one client until it disconnects or sends an invalid frame.
pub(crate) async fn serve_client(
    executor: Rc<Executor>,
    gate: Rc<Gate>,
    tasks: glommio::TaskQueueHandle,
    mut stream: TcpStream,
) {
    if prepare(&stream).is_err() {
        return;
    }
    let mut decoder = FrameDecoder::for_handshake();
    let handshake = Handshake { stream: &mut stream, decoder: &mut decoder };
    let check = |hello: &ClientHello| {
        if hello.cluster_id.is_some_and(|expected| expected != gate.cluster_id) {
            return Err(Refusal::OtherCluster { cluster_id: gate.cluster_id });
        }
        Ok(hello.key)
    };
    let accepted = handshake.accept((&gate, &gate.clients), FrameKind::ClientHello, check).await;
    let accepted = match accepted {
        Ok((_, accepted)) => accepted,
        Err(refusal) => {
            let what = format!("{}: a client was refused with the words", gate.at);
            return gate.clients.refused.report(&what, refusal, executor.now_us());
        }
    };
    decoder.end_handshake();
    let mut scratch = scratch();
    let (mut reader, writer) = futures_lite::io::split(stream);
    let (connection, outbound) =
        (executor.new_connection(), Outbound::new(executor.queued_bytes.clone()));
    executor.clients.borrow_mut().insert(connection, outbound.clone());
    let drain = {
        let outbound = outbound.clone();
        async move { outbound.drain_into(writer).await }
    };
    glommio::spawn_local_into(drain, tasks).expect("the task queue lives as long as we").detach();

    let requests = async {
        let partial = &executor.partial_of_clients;
        while let Ok(frame) = partial.read_frame(&mut reader, &mut decoder, &mut scratch).await {
            if frame.kind != FrameKind::Request {
                return;
            }
            match decode_exact::<Request>(frame.payload) {
                Ok(Request { request_id, operation, .. })
                    if operation.is_administrative() && !accepted.is_admin() =>
                {
                    let outcome = Outcome::Rejected(Rejection::NotPermitted);
                    executor.reject(connection, Response { request_id, outcome });
                    // Nothing else here may wait. Turns and other connections must go on.
                    futures_lite::future::yield_now().await;
                }
                Ok(request) => executor.inbox.push(Input::Request { connection, request }),
                Err(error) => {
                    tracing::debug!("a client's connection is closed: {error}");
                    return;
                }
            }
            executor.inbox.wait_for_requests().await;
        }
    };
    requests.or(outbound.wait_closed()).await;
    executor.clients.borrow_mut().remove(&connection);
    outbound.close();
}
