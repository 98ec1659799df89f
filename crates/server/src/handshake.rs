//! The handshake of a connection, on both sides.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt};
use palisade_wire::{
    Accepted, Acceptor, AccessKey, AccessRole, ClusterSecret, Decode, Encode, Frame, FrameDecoder,
    FrameKind, Initiator, KeyId, Keyring, NONCE_BYTES, Nonce, PeerAddress, Proof, Refusal, Welcome,
    WireError, decode_exact, write_frame,
};

use crate::{framing::read_frame, signal::Signal};

/// Time limit of a handshake, on the side that accepts and on the side that connects.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections to a port whose handshake may be under way. One more ends the oldest, so that those
/// that send nothing keep no others out.
const MAX_HANDSHAKES: usize = 256;

/// Bytes to read at once. A connection takes little memory until it is accepted.
const READ_BYTES: usize = 512;

/// Time between two log lines about refused connections, in microseconds.
const REPORT_US: u64 = 10_000_000;

/// Decides who may connect to a shard.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) cluster_id: u64,
    pub(crate) at: PeerAddress,
    /// The key with which this shard connects to its peers.
    pub(crate) own_key: Option<AccessKey>,
    pub(crate) peers: Port,
    pub(crate) clients: Port,
    pub(crate) dialed: Refusals,
}

/// A port at which a shard accepts connections.
#[derive(Debug)]
pub(crate) struct Port {
    /// The keys that are accepted.
    keys: Keyring,
    /// The connections whose handshake is under way, oldest first.
    handshakes: RefCell<VecDeque<Rc<Signal>>>,
    pub(crate) refused: Refusals,
}

impl Gate {
    /// The node proves itself with the first secret, and accepts the keys of all.
    pub(crate) fn new(cluster_id: u64, at: PeerAddress, secrets: &[ClusterSecret]) -> Self {
        Self {
            cluster_id,
            at,
            own_key: secrets.first().map(|secret| secret.key(AccessRole::Peer)),
            peers: Port::new(Keyring::new(secrets, &[AccessRole::Peer])),
            clients: Port::new(Keyring::new(secrets, &[AccessRole::Client, AccessRole::Admin])),
            dialed: Refusals::default(),
        }
    }
}

impl Port {
    fn new(keys: Keyring) -> Self {
        Self { keys, handshakes: RefCell::default(), refused: Refusals::default() }
    }

    /// Adds a handshake. Returns the signal that ends it.
    fn begin(&self) -> Rc<Signal> {
        let signal = Rc::new(Signal::default());
        let mut handshakes = self.handshakes.borrow_mut();
        if handshakes.len() >= MAX_HANDSHAKES
            && let Some(oldest) = handshakes.pop_front()
        {
            oldest.raise();
        }
        handshakes.push_back(signal.clone());
        signal
    }

    fn end(&self, signal: &Rc<Signal>) {
        self.handshakes.borrow_mut().retain(|other| !Rc::ptr_eq(other, signal));
    }
}

/// Logs refused connections, at most one every ten seconds.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// When one was last logged, and how many were not since.
    reported: Cell<Option<(u64, u64)>>,
}

impl Refusals {
    /// Logs a refusal, if there is one.
    pub(crate) fn report(&self, what: &str, refusal: Option<Refusal>, now_us: u64) {
        let Some(refusal) = refusal else { return };
        let (since_us, others) = self.reported.get().unwrap_or_default();
        if since_us > 0 && now_us < since_us + REPORT_US {
            return self.reported.set(Some((since_us, others + 1)));
        }
        self.reported.set(Some((now_us.max(1), 0)));
        tracing::warn!("{what}: {refusal}; {others} more since the last report");
    }
}

/// A connection during its handshake.
#[derive(Debug)]
pub(crate) struct Handshake<'a, S> {
    pub(crate) stream: &'a mut S,
    pub(crate) decoder: &'a mut FrameDecoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<'_, S> {
    /// Accepts a connection to a port. `check` inspects the hello, and returns the id of its key.
    /// Returns the hello and what the other side may do.
    ///
    /// # Errors
    ///
    /// The refusal, which was sent. `None` if the connection broke, was too slow, or sent nothing
    /// that is a hello.
    pub(crate) async fn accept<H: Decode>(
        mut self,
        (gate, port): (&Gate, &Port),
        kind: FrameKind,
        check: impl Fn(&H) -> Result<Option<KeyId>, Refusal>,
    ) -> Result<(H, Accepted), Option<Refusal>> {
        let accepting = async {
            let result = self.accept_hello((gate, port), kind, check).await;
            if let Err(Some(refusal)) = &result {
                // The other side may have closed the connection.
                let _ = self.send(FrameKind::Refusal, refusal).await;
            }
            result
        };
        let ended = port.begin();
        let evicted = async {
            ended.wait().await;
            Err(None)
        };
        let result = accepting.or(timeout(ACCEPT_TIMEOUT)).or(evicted).await;
        port.end(&ended);
        result
    }

    async fn accept_hello<H: Decode>(
        &mut self,
        (gate, port): (&Gate, &Port),
        kind: FrameKind,
        check: impl Fn(&H) -> Result<Option<KeyId>, Refusal>,
    ) -> Result<(H, Accepted), Option<Refusal>> {
        let payload = self.receive_as_acceptor(kind).await?.payload;
        let hello = decode_exact::<H>(payload.clone()).map_err(|_| None)?;
        let key = check(&hello)?;
        let Gate { cluster_id, at, .. } = *gate;
        let nonce = nonce().map_err(|_| None)?;
        let welcome = Welcome { cluster_id, at, nonce, proof: None };
        let (welcome, acceptor) = Acceptor::answer(&port.keys, (payload, key), welcome)?;
        self.send(FrameKind::Welcome, &welcome).await.map_err(|_| None)?;
        if let Some(accepted) = acceptor.without_proof() {
            return Ok((hello, accepted));
        }
        let proof = self.receive_as_acceptor(FrameKind::Proof).await?.payload;
        let proof = decode_exact::<Proof>(proof).map_err(|_| None)?;
        Ok((hello, acceptor.check(proof)?))
    }

    /// Opens a connection to the shard `to`. Returns the proof to send first, if one is needed.
    ///
    /// # Errors
    ///
    /// As for [`Handshake::accept`]. The refusal may come from the other side.
    pub(crate) async fn open(
        mut self,
        gate: &Gate,
        to: PeerAddress,
        initiator: &Initiator,
    ) -> Result<Option<Proof>, Option<Refusal>> {
        let opening = async {
            let hello = initiator.hello();
            let mut out = BytesMut::new();
            write_frame(&mut out, FrameKind::PeerHello, |out| out.extend_from_slice(&hello));
            self.stream.write_all(&out).await.map_err(|_| None)?;
            let welcome = self.receive_as_initiator().await?.payload;
            let welcome = decode_exact::<Welcome>(welcome).map_err(|_| None)?;
            if welcome.cluster_id != gate.cluster_id {
                return Err(Some(Refusal::OtherCluster { cluster_id: welcome.cluster_id }));
            }
            if welcome.at != to {
                return Err(Some(Refusal::OtherAddress));
            }
            Ok(initiator.check(&welcome)?)
        };
        opening.or(timeout(OPEN_TIMEOUT)).await
    }

    /// Returns the next frame, which must be of a kind, or the refusal to send.
    async fn receive_as_acceptor(&mut self, kind: FrameKind) -> Result<Frame, Option<Refusal>> {
        let frame = self.receive().await.map_err(|error| match error {
            // In the words of the other side.
            Some(WireError::Version { theirs, ours }) => {
                Some(Refusal::OtherVersion { theirs: ours, ours: theirs })
            }
            _ => None,
        })?;
        if frame.kind == kind { Ok(frame) } else { Err(None) }
    }

    /// Returns a welcome, or the refusal that came instead.
    async fn receive_as_initiator(&mut self) -> Result<Frame, Option<Refusal>> {
        let frame = self.receive().await.map_err(|error| match error {
            Some(WireError::Version { theirs, ours }) => {
                Some(Refusal::OtherVersion { theirs, ours })
            }
            _ => None,
        })?;
        match frame.kind {
            FrameKind::Welcome => Ok(frame),
            FrameKind::Refusal => Err(decode_exact(frame.payload).ok()),
            _ => Err(None),
        }
    }

    async fn receive(&mut self) -> Result<Frame, Option<WireError>> {
        let mut scratch = [0; READ_BYTES];
        read_frame(self.stream, self.decoder, &mut scratch).await
    }

    async fn send(&mut self, kind: FrameKind, message: &impl Encode) -> io::Result<()> {
        let mut out = BytesMut::new();
        write_frame(&mut out, kind, |out| message.encode(out));
        self.stream.write_all(&out).await
    }
}

async fn timeout<T>(limit: Duration) -> Result<T, Option<Refusal>> {
    glommio::timer::sleep(limit).await;
    Err(None)
}

/// Returns random bytes for one handshake.
pub(crate) fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}
