//! A connection to one shard, reopened when it breaks.

use std::{
    cell::{Cell, RefCell},
    mem,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use palisade_control::Topology;
use palisade_wire::{
    ClientHello, Encode, Frame, FrameDecoder, FrameKind, Operation, Outcome, PeerAddress, Request,
    Response, ServerHello, decode_exact, write_frame,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};

use super::{Submit, router::Router};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 64 * 1024;

/// The sending side of a connection to a shard. Requests collect in a buffer until they are written
/// to the socket. A shard of this process gets them directly.
#[derive(Debug, Default)]
pub(super) struct Connection {
    buffer: RefCell<BytesMut>,
    filled: Notify,
    open: Cell<bool>,
    in_process: Option<Submit>,
}

impl Connection {
    pub(super) fn in_process(submit: Submit) -> Self {
        Self { in_process: Some(submit), ..Self::default() }
    }

    /// Adds a request. Returns false if the connection is down, or the queue of a shard of this
    /// process is full.
    pub(super) fn push(&self, request: &Request) -> bool {
        if let Some(Submit(submit)) = &self.in_process {
            return submit(request.clone());
        }
        if self.open.get() {
            let mut buffer = self.buffer.borrow_mut();
            write_frame(&mut buffer, FrameKind::Request, |out| request.encode(out));
        }
        self.open.get()
    }

    /// Starts writing the buffered requests.
    pub(super) fn send(&self) {
        if !self.buffer.borrow().is_empty() {
            self.filled.notify_one();
        }
    }

    async fn write_out(&self, mut stream: impl tokio::io::AsyncWrite + Unpin) {
        let mut sending = BytesMut::new();
        loop {
            self.filled.notified().await;
            mem::swap(&mut sending, &mut self.buffer.borrow_mut());
            if stream.write_all(&sending).await.is_err() {
                return;
            }
            sending.clear();
        }
    }
}

/// Keeps a connection open, and passes every answer to the router.
pub(super) async fn keep_open(
    router: Rc<Router>,
    connection: Rc<Connection>,
    at: PeerAddress,
    address: SocketAddr,
    cluster_id: u64,
) {
    loop {
        let opened = timeout(CONNECT_TIMEOUT, open(address, Some(cluster_id))).await;
        if let Ok(Some((stream, mut decoder, hello))) = opened
            && hello.at == at
        {
            let (mut reader, writer) = tokio::io::split(stream);
            connection.buffer.borrow_mut().clear();
            connection.open.set(true);
            let answers = async {
                while let Some(frame) = read_frame(&mut reader, &mut decoder).await {
                    let Ok(response) = decode_exact::<Response>(frame.payload) else { return };
                    router.answer(response);
                    // Requests that these answers redirected leave in one write.
                    if decoder.buffer().is_empty() {
                        router.send_all();
                    }
                }
            };
            tokio::select! {
                () = answers => {}
                () = connection.write_out(writer) => {}
            }
            connection.open.set(false);
            router.connection_lost(at);
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Requests the topology of its cluster from one address.
pub(super) async fn fetch_topology(
    address: SocketAddr,
    cluster_id: Option<u64>,
) -> Option<Topology> {
    let (mut stream, mut decoder, _) = open(address, cluster_id).await?;
    let request = Request { request_id: 0, operation: Operation::RangeMap };
    let mut out = BytesMut::new();
    write_frame(&mut out, FrameKind::Request, |out| request.encode(out));
    stream.write_all(&out).await.ok()?;
    let frame = read_frame(&mut stream, &mut decoder).await?;
    match decode_exact::<Response>(frame.payload).ok()?.outcome {
        Outcome::RangeMap(bytes) => Topology::from_bytes(&bytes).ok(),
        _ => None,
    }
}

async fn open(
    address: SocketAddr,
    cluster_id: Option<u64>,
) -> Option<(TcpStream, FrameDecoder, ServerHello)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let mut out = BytesMut::new();
    write_frame(&mut out, FrameKind::ClientHello, |out| ClientHello { cluster_id }.encode(out));
    stream.write_all(&out).await.ok()?;
    let mut decoder = FrameDecoder::default();
    let frame = read_frame(&mut stream, &mut decoder).await?;
    let hello = decode_exact::<ServerHello>(frame.payload).ok()?;
    (frame.kind == FrameKind::ServerHello).then_some((stream, decoder, hello))
}

/// Returns the next frame of a stream, or `None` at its end or if a frame is invalid.
async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
) -> Option<Frame> {
    loop {
        if let Some(frame) = decoder.next_frame().ok()? {
            return Some(frame);
        }
        decoder.buffer().reserve(READ_BYTES);
        if stream.read_buf(decoder.buffer()).await.ok()? == 0 {
            return None;
        }
    }
}
