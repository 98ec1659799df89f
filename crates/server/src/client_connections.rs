//! Connections of clients.

use std::rc::Rc;

use futures_lite::FutureExt;
use glommio::net::TcpStream;
use palisade_shard::Input;
use palisade_wire::{
    ClientHello, Encode, FrameDecoder, FrameKind, Request, ServerHello, decode_exact, write_frame,
};

use crate::{
    executor::Executor,
    framing::{read_frame, read_hello, scratch},
    outbound::Outbound,
    sockets::prepare,
};

/// Serves one client until it disconnects or sends an invalid frame.
pub(crate) async fn serve_client(
    executor: Rc<Executor>,
    cluster_id: u64,
    tasks: glommio::TaskQueueHandle,
    mut stream: TcpStream,
) {
    if prepare(&stream).is_err() {
        return;
    }
    let (mut decoder, mut scratch) = (FrameDecoder::default(), scratch());
    let hello = read_hello(&mut stream, &mut decoder, &mut scratch, FrameKind::ClientHello).await;
    let Some(hello) = hello.and_then(|frame| decode_exact::<ClientHello>(frame.payload).ok())
    else {
        return;
    };
    if hello.cluster_id.is_some_and(|expected| expected != cluster_id) {
        return;
    }
    let (mut reader, writer) = futures_lite::io::split(stream);
    let (connection, outbound) =
        (executor.new_connection(), Outbound::new(executor.queued_bytes.clone()));
    executor.clients.borrow_mut().insert(connection, outbound.clone());
    let answer = ServerHello { cluster_id, at: executor.at };
    outbound.push(|out| write_frame(out, FrameKind::ServerHello, |out| answer.encode(out)));
    outbound.send();
    let drain = {
        let outbound = outbound.clone();
        async move { outbound.drain_into(writer).await }
    };
    glommio::spawn_local_into(drain, tasks).expect("the task queue lives as long as we").detach();

    let requests = async {
        while let Some(frame) = read_frame(&mut reader, &mut decoder, &mut scratch).await {
            if frame.kind != FrameKind::Request {
                return;
            }
            match decode_exact::<Request>(frame.payload) {
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
