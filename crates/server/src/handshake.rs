//! The handshake of a connection, on both sides.

use std::{cell::Cell, io, time::Duration};

use bytes::BytesMut;
use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt};
use palisade_wire::{
    Accepted, Acceptor, AccessKey, AccessRole, ClusterSecret, Decode, Encode, Frame, FrameDecoder,
    FrameKind, Initiator, KeyId, Keyring, NONCE_BYTES, Nonce, PeerAddress, Proof, Refusal, Welcome,
    WireError, decode_exact, write_frame,
};

use crate::framing::read_frame;

/// Time limit of a handshake.
const TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The keys that are accepted from peers.
    pub(crate) peer_keys: Keyring,
    /// The keys that are accepted from clients.
    pub(crate) client_keys: Keyring,
    /// When a refused connection was last logged, and how many were not since.
    reported: Cell<(u64, u64)>,
}

impl Gate {
    /// The node proves itself with the first secret, and accepts the keys of all.
    pub(crate) fn new(cluster_id: u64, at: PeerAddress, secrets: &[ClusterSecret]) -> Self {
        Self {
            cluster_id,
            at,
            own_key: secrets.first().map(|secret| secret.key(AccessRole::Peer)),
            peer_keys: Keyring::new(secrets, &[AccessRole::Peer]),
            client_keys: Keyring::new(secrets, &[AccessRole::Client, AccessRole::Admin]),
            reported: Cell::new((0, 0)),
        }
    }

    /// Logs a refusal, if it is one, and none was logged a short time ago.
    pub(crate) fn report(&self, who: &str, refusal: Option<Refusal>, now_us: u64) {
        let Some(refusal) = refusal else { return };
        let (reported_us, others) = self.reported.get();
        if reported_us > 0 && now_us < reported_us + REPORT_US {
            return self.reported.set((reported_us, others + 1));
        }
        self.reported.set((now_us.max(1), 0));
        tracing::warn!(
            "{}: {who} is refused: {refusal}; {others} more refusals since the last report",
            self.at
        );
    }
}

/// A connection during its handshake.
#[derive(Debug)]
pub(crate) struct Handshake<'a, S> {
    pub(crate) stream: &'a mut S,
    pub(crate) decoder: &'a mut FrameDecoder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<'_, S> {
    /// Accepts a connection of a holder of one of some keys. `check` inspects the hello, and
    /// returns the id of its key. Returns the hello and what the other side may do.
    ///
    /// # Errors
    ///
    /// The refusal, which was sent. `None` if the connection broke, was too slow, or sent nothing
    /// that is a hello.
    pub(crate) async fn accept<H: Decode>(
        mut self,
        (gate, keyring): (&Gate, &Keyring),
        kind: FrameKind,
        check: impl Fn(&H) -> Result<Option<KeyId>, Refusal>,
    ) -> Result<(H, Accepted), Option<Refusal>> {
        let accepting = async {
            let result = self.accept_hello((gate, keyring), kind, check).await;
            if let Err(Some(refusal)) = &result {
                // The other side may have closed the connection.
                let _ = self.send(FrameKind::Refusal, refusal).await;
            }
            result
        };
        accepting.or(timeout()).await
    }

    async fn accept_hello<H: Decode>(
        &mut self,
        (gate, keyring): (&Gate, &Keyring),
        kind: FrameKind,
        check: impl Fn(&H) -> Result<Option<KeyId>, Refusal>,
    ) -> Result<(H, Accepted), Option<Refusal>> {
        let payload = self.receive(kind).await?.payload;
        let hello = decode_exact::<H>(payload.clone()).map_err(|_| None)?;
        let key = check(&hello)?;
        let Gate { cluster_id, at, .. } = *gate;
        let nonce = nonce().map_err(|_| None)?;
        let welcome = Welcome { cluster_id, at, nonce, proof: None };
        let (welcome, acceptor) = Acceptor::answer(keyring, (payload, key), welcome)?;
        self.send(FrameKind::Welcome, &welcome).await.map_err(|_| None)?;
        if let Some(accepted) = acceptor.without_proof() {
            return Ok((hello, accepted));
        }
        let proof = self.receive(FrameKind::Proof).await?.payload;
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
            let welcome = self.receive(FrameKind::Welcome).await?.payload;
            let welcome = decode_exact::<Welcome>(welcome).map_err(|_| None)?;
            if welcome.cluster_id != gate.cluster_id {
                return Err(Some(Refusal::OtherCluster { cluster_id: welcome.cluster_id }));
            }
            if welcome.at != to {
                return Err(Some(Refusal::OtherAddress));
            }
            Ok(initiator.check(&welcome)?)
        };
        opening.or(timeout()).await
    }

    /// Returns the next frame, which must be of a kind, or the refusal that came instead.
    async fn receive(&mut self, kind: FrameKind) -> Result<Frame, Option<Refusal>> {
        let mut scratch = [0; READ_BYTES];
        let frame = match read_frame(self.stream, self.decoder, &mut scratch).await {
            Ok(frame) => frame,
            Err(Some(WireError::Version { theirs, ours })) => {
                // As the other side sees it.
                return Err(Some(Refusal::OtherVersion { theirs: ours, ours: theirs }));
            }
            Err(_) => return Err(None),
        };
        match frame.kind {
            FrameKind::Refusal => Err(decode_exact(frame.payload).ok()),
            other if other == kind => Ok(frame),
            _ => Err(None),
        }
    }

    async fn send(&mut self, kind: FrameKind, message: &impl Encode) -> io::Result<()> {
        let mut out = BytesMut::new();
        write_frame(&mut out, kind, |out| message.encode(out));
        self.stream.write_all(&out).await
    }
}

async fn timeout<T>() -> Result<T, Option<Refusal>> {
    glommio::timer::sleep(TIMEOUT).await;
    Err(None)
}

/// Returns random bytes for one handshake.
pub(crate) fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}
