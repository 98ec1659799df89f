//! Connections of clients, and the parts that connections of peers share.

use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

use futures_lite::{AsyncRead, AsyncReadExt, FutureExt};
use glommio::net::{TcpListener, TcpStream};
use palisade_shard::Input;
use palisade_wire::{
    ClientHello, Encode, Frame, FrameDecoder, FrameKind, Request, ServerHello, decode_exact,
    write_frame,
};

use crate::{core::Core, outbound::Outbound};

/// Limit on the open connections of a shard's listener.
const MAX_CONNECTIONS: usize = 4096;

/// Time limit for the first frame of a connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

const READ_BYTES: usize = 64 * 1024;

/// Accepts connections, and serves each in a task of its own.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    tasks: glommio::TaskQueueHandle,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let open = Rc::new(Cell::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                glommio::timer::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if open.get() >= MAX_CONNECTIONS {
            // Closes the connection. The client tries again, or another shard.
            continue;
        }
        open.set(open.get() + 1);
        let (open, connection) = (open.clone(), serve(stream));
        let task = async move {
            connection.await;
            open.set(open.get() - 1);
        };
        glommio::spawn_local_into(task, tasks)
            .expect("the task queue lives as long as we")
            .detach();
    }
}

/// Returns the next frame of a stream, or `None` at its end, or if it cannot be read or decoded.
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    scratch: &mut [u8],
) -> Option<Frame> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Some(frame),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!("a connection is closed: {error}");
                return None;
            }
        }
        match stream.read(scratch).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => decoder.buffer().extend_from_slice(&scratch[..read]),
        }
    }
}

/// Returns the first frame of a stream, or `None` if it is late or of another kind.
pub(crate) async fn read_hello(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    scratch: &mut [u8],
    kind: FrameKind,
) -> Option<Frame> {
    let timeout = async {
        glommio::timer::sleep(HELLO_TIMEOUT).await;
        None
    };
    let frame = read_frame(stream, decoder, scratch).or(timeout).await?;
    (frame.kind == kind).then_some(frame)
}

pub(crate) fn scratch() -> Vec<u8> {
    vec![0; READ_BYTES]
}

/// Serves one client until it disconnects or sends an invalid frame.
pub(crate) async fn serve_client(
    core: Rc<Core>,
    cluster_id: u64,
    tasks: glommio::TaskQueueHandle,
    mut stream: TcpStream,
) {
    let (mut decoder, mut scratch) = (FrameDecoder::default(), scratch());
    let hello = read_hello(&mut stream, &mut decoder, &mut scratch, FrameKind::ClientHello).await;
    let Some(hello) = hello.and_then(|frame| decode_exact::<ClientHello>(frame.payload).ok())
    else {
        return;
    };
    if hello.cluster_id.is_some_and(|expected| expected != cluster_id) {
        return;
    }
    // Without this, small answers would wait until the client has acknowledged earlier ones.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (mut reader, writer) = futures_lite::io::split(stream);
    let (connection, outbound) = (core.new_connection(), Outbound::new());
    core.clients.borrow_mut().insert(connection, outbound.clone());
    let answer = ServerHello { cluster_id, at: core.at };
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
            let bytes = frame.payload.len();
            match decode_exact::<Request>(frame.payload) {
                Ok(request) => core.inbox.push(Input::Request { connection, request }, bytes),
                Err(error) => {
                    tracing::debug!("a client's connection is closed: {error}");
                    return;
                }
            }
            core.inbox.wait_for_room().await;
        }
    };
    requests.or(outbound.wait_closed()).await;
    core.clients.borrow_mut().remove(&connection);
    outbound.close();
}
