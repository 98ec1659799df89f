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
    AccessKey, ClientHello, Encode, Frame, FrameDecoder, FrameKind, Initiator, NONCE_BYTES,
    Operation, Outcome, PeerAddress, Refusal, Request, Response, Welcome, WireError, decode_exact,
    write_frame,
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

/// The cluster that a client expects, and the key with which it proves itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// `None` accepts any cluster.
    pub(crate) cluster_id: Option<u64>,
    pub(crate) key: Option<AccessKey>,
}

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
        access: Access,
        report: impl Fn(ConnectionEvent),
    ) {
        let mut reported = None;
        loop {
            let opened = timeout(CONNECT_TIMEOUT, open(address, access)).await;
            if let Ok(Err(Some(refusal))) = opened
                && reported != Some(refusal)
            {
                tracing::warn!("{at} at {address} refuses the connection: {refusal}");
                reported = Some(refusal);
            }
            if let Ok(Ok((stream, mut decoder, welcome))) = opened
                && welcome.at == at
            {
                reported = None;
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
///
/// # Errors
///
/// The refusal of the node, or `None` if nothing that can be understood came.
pub(crate) async fn fetch_topology(
    address: SocketAddr,
    access: Access,
) -> Result<Topology, Option<Refusal>> {
    let (mut stream, mut decoder, _) = open(address, access).await?;
    let request = Request::new(0, Operation::RangeMap);
    let mut out = BytesMut::new();
    write_frame(&mut out, FrameKind::Request, |out| request.encode(out));
    stream.write_all(&out).await.map_err(|_| None)?;
    let frame = read_frame(&mut stream, &mut decoder).await?;
    if frame.kind == FrameKind::Refusal {
        return Err(decode_exact(frame.payload).ok());
    }
    match decode_exact::<Response>(frame.payload).map_err(|_| None)?.outcome {
        Outcome::RangeMap(bytes) => Topology::from_bytes(&bytes).map_err(|_| None),
        _ => Err(None),
    }
}

/// Opens a connection, which may still be refused in its first answer.
async fn open(
    address: SocketAddr,
    access: Access,
) -> Result<(TcpStream, FrameDecoder, Welcome), Option<Refusal>> {
    let mut stream = TcpStream::connect(address).await.map_err(|_| None)?;
    prepare(&stream).map_err(|_| None)?;
    let Access { cluster_id, key } = access;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| None)?;
    let hello = ClientHello { cluster_id, key: key.as_ref().map(AccessKey::id), nonce };
    let initiator = Initiator::new(key, &hello);
    let mut out = BytesMut::new();
    write_frame(&mut out, FrameKind::ClientHello, |out| {
        out.extend_from_slice(&initiator.hello());
    });
    stream.write_all(&out).await.map_err(|_| None)?;
    let mut decoder = FrameDecoder::for_handshake();
    let frame = read_frame(&mut stream, &mut decoder).await?;
    if frame.kind == FrameKind::Refusal {
        return Err(decode_exact(frame.payload).ok());
    }
    let welcome = decode_exact::<Welcome>(frame.payload).map_err(|_| None)?;
    if frame.kind != FrameKind::Welcome {
        return Err(None);
    }
    if cluster_id.is_some_and(|expected| expected != welcome.cluster_id) {
        return Err(Some(Refusal::OtherCluster { cluster_id: welcome.cluster_id }));
    }
    if let Some(proof) = initiator.check(&welcome)? {
        out.clear();
        write_frame(&mut out, FrameKind::Proof, |out| proof.encode(out));
        stream.write_all(&out).await.map_err(|_| None)?;
    }
    decoder.end_handshake();
    Ok((stream, decoder, welcome))
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

/// Returns the next frame of a stream.
///
/// # Errors
///
/// [`Refusal::OtherVersion`] for a frame of another version; `None` at the end of the stream or if
/// the frame is invalid.
async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    decoder: &mut FrameDecoder,
) -> Result<Frame, Option<Refusal>> {
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => read(stream, decoder).await.ok_or(None)?,
            Err(WireError::Version { theirs, ours }) => {
                return Err(Some(Refusal::OtherVersion { theirs, ours }));
            }
            Err(_) => return Err(None),
        }
    }
}

/// Reads the bytes that a stream has, or waits for the first. Returns `None` at its end.
async fn read(stream: &mut (impl AsyncRead + Unpin), decoder: &mut FrameDecoder) -> Option<()> {
    decoder.buffer().reserve(READ_BYTES);
    (stream.read_buf(decoder.buffer()).await.ok()? > 0).then_some(())
}
