//! A connection to one shard, reopened when it breaks.
//!
//! Invariants:
//! - [`ConnectionEvent::Opened`] alternates with [`ConnectionEvent::Closed`] or
//!   [`Connection::close`], and answers come only between them.
//! - A connection accepts requests only while it is open. When it breaks, the requests that it has
//!   accepted but not written are dropped.
//!
//! Left out: the routing of requests, and what to do when a connection breaks.

use std::{
    cell::{Cell, RefCell},
    io, mem,
    net::SocketAddr,
    time::Duration,
};

use bytes::BytesMut;
use palisade_control::Topology;
use palisade_wire::{
    ClientHello, Encode, Frame, FrameDecoder, FrameKind, Operation, Outcome, PeerAddress, Request,
    Response, ServerHello, decode_exact, write_frame,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 64 * 1024;

/// How long a connection may be idle before the kernel probes the shard, the interval of the
/// probes, and how many of them stay unanswered before the connection ends.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// How long sent bytes may stay unacknowledged before the connection ends. The router gives it up
/// earlier if an answer is due.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// An event of a connection.
#[derive(Debug)]
pub(crate) enum ConnectionEvent {
    Opened,
    /// All answers of one read. Not empty.
    Answers(Vec<Response>),
    /// A part of an answer came, or a part of the requests was written.
    Progressed,
    Closed,
}

/// The sending side of a connection. Requests collect in a buffer until it is flushed.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    buffer: RefCell<BytesMut>,
    filled: Notify,
    is_open: Cell<bool>,
    closed: Notify,
}

impl Connection {
    /// Adds a request to the buffer. Returns false if the connection is not open.
    pub(crate) fn push(&self, request: &Request) -> bool {
        if self.is_open.get() {
            let mut buffer = self.buffer.borrow_mut();
            write_frame(&mut buffer, FrameKind::Request, |out| request.encode(out));
        }
        self.is_open.get()
    }

    /// Starts writing the buffered requests.
    pub(crate) fn flush(&self) {
        if !self.buffer.borrow().is_empty() {
            self.filled.notify_one();
        }
    }

    /// Closes the connection without a [`ConnectionEvent::Closed`], and opens another soon.
    pub(crate) fn close(&self) {
        self.is_open.set(false);
        self.closed.notify_one();
    }

    /// Keeps a connection to the shard `at` open, and reports its events.
    pub(crate) async fn keep_open(
        &self,
        at: PeerAddress,
        address: SocketAddr,
        cluster_id: u64,
        report: impl Fn(ConnectionEvent),
    ) {
        loop {
            let opened = timeout(CONNECT_TIMEOUT, open(address, Some(cluster_id))).await;
            if let Ok(Some((stream, mut decoder, hello))) = opened
                && hello.at == at
            {
                let (mut reader, writer) = stream.into_split();
                self.buffer.borrow_mut().clear();
                self.is_open.set(true);
                report(ConnectionEvent::Opened);
                tokio::select! {
                    // No answer is reported after the connection was closed.
                    biased;
                    () = self.wait_until_closed() => {}
                    _ = read_answers(&mut reader, &mut decoder, &report) => {}
                    () = self.write_out(writer, &report) => {}
                }
                if self.is_open.replace(false) {
                    report(ConnectionEvent::Closed);
                }
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn wait_until_closed(&self) {
        while self.is_open.get() {
            self.closed.notified().await;
        }
    }

    async fn write_out(
        &self,
        mut stream: impl AsyncWrite + Unpin,
        report: impl Fn(ConnectionEvent),
    ) {
        let mut sending = BytesMut::new();
        loop {
            self.filled.notified().await;
            mem::swap(&mut sending, &mut self.buffer.borrow_mut());
            while !sending.is_empty() {
                if stream.write_buf(&mut sending).await.is_err() {
                    return;
                }
                if !sending.is_empty() {
                    report(ConnectionEvent::Progressed);
                }
            }
        }
    }
}

/// Requests the topology of its cluster from one address.
pub(crate) async fn fetch_topology(
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
    prepare(&stream).ok()?;
    let mut out = BytesMut::new();
    write_frame(&mut out, FrameKind::ClientHello, |out| ClientHello { cluster_id }.encode(out));
    stream.write_all(&out).await.ok()?;
    let mut decoder = FrameDecoder::default();
    let frame = read_frame(&mut stream, &mut decoder).await?;
    let hello = decode_exact::<ServerHello>(frame.payload).ok()?;
    (frame.kind == FrameKind::ServerHello).then_some((stream, decoder, hello))
}

/// Sets the options of a connection: small frames leave at once, and a connection whose other side
/// has vanished ends.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Reports the answers of a stream, until it ends or is invalid.
async fn read_answers(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
    report: impl Fn(ConnectionEvent),
) -> Option<()> {
    loop {
        let mut answers = Vec::new();
        while let Some(frame) = decoder.next_frame().ok()? {
            answers.push(decode_exact(frame.payload).ok()?);
        }
        if !answers.is_empty() {
            report(ConnectionEvent::Answers(answers));
        } else if !decoder.buffer().is_empty() {
            report(ConnectionEvent::Progressed);
        }
        read(stream, decoder).await?;
    }
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
        read(stream, decoder).await?;
    }
}

/// Reads the bytes that a stream has, or waits for the first. Returns `None` at its end.
async fn read(stream: &mut (impl AsyncRead + Unpin), decoder: &mut FrameDecoder) -> Option<()> {
    decoder.buffer().reserve(READ_BYTES);
    (stream.read_buf(decoder.buffer()).await.ok()? > 0).then_some(())
}
