//! The messages of the handshake.

use bytes::{BufMut, BytesMut};
use thiserror::Error;

use super::keys::{KeyId, Proof};
use crate::{Decode, Encode, PeerAddress, Reader, WireError};

/// Length of a [`Nonce`], in bytes.
pub const NONCE_BYTES: usize = 32;

/// Random bytes that each side draws for one connection.
pub type Nonce = [u8; NONCE_BYTES];

/// A client's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The cluster that the client expects, or `None` if it accepts any cluster.
    pub cluster_id: Option<u64>,
    /// The key that the client holds, if any.
    pub key: Option<KeyId>,
    /// Random bytes.
    pub nonce: Nonce,
}

/// A peer's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The peer's cluster.
    pub cluster_id: u64,
    /// The shard that opened the connection.
    pub from: PeerAddress,
    /// The shard that it expects at the other end.
    pub to: PeerAddress,
    /// The key that the peer holds, if any.
    pub key: Option<KeyId>,
    /// Random bytes.
    pub nonce: Nonce,
}

/// The answer to a [`ClientHello`] or a [`PeerHello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster.
    pub cluster_id: u64,
    /// The shard that serves this connection.
    pub at: PeerAddress,
    /// Random bytes.
    pub nonce: Nonce,
    /// Shows that the shard holds the key that the hello names. `None` if the cluster has no
    /// secret.
    pub proof: Option<Proof>,
}

/// Why a connection is refused. Nothing was done on it. Not retryable: a setting must change first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The node belongs to another cluster.
    #[error("the node belongs to cluster {cluster_id}")]
    OtherCluster {
        /// The node's cluster.
        cluster_id: u64,
    },
    /// Another shard than the expected one listens at the address, or the connecting shard is not
    /// in the configuration of the node.
    #[error("the addresses do not match: compare the `nodes` of both configurations")]
    OtherAddress,
    /// The node speaks another version of the protocol.
    #[error("the node speaks protocol version {theirs}, and this is version {ours}")]
    OtherVersion {
        /// The version of the side that refuses.
        theirs: u8,
        /// The version of the side that is refused.
        ours: u8,
    },
    /// The cluster has a secret, and the hello names no key.
    #[error("the cluster asks for a key: derive one with `palisade key derive`")]
    KeyNeeded,
    /// The key is not derived from a secret of the cluster, or is for another role.
    #[error("the key is not one of this cluster's, or not for this role")]
    UnknownKey,
    /// The cluster has no secret, and so can't prove what it is.
    #[error("a key is configured, but the node has no secret: it may not be the expected cluster")]
    NoProof,
    /// The other side does not hold the key.
    #[error("the other side does not hold the key that it names")]
    WrongProof,
}

fn put_key(out: &mut BytesMut, key: Option<KeyId>) {
    out.put_u8(u8::from(key.is_some()));
    if let Some(key) = key {
        key.encode(out);
    }
}

fn read_option<T: Decode>(reader: &mut Reader) -> Result<Option<T>, WireError> {
    if reader.bool()? { T::decode(reader).map(Some) } else { Ok(None) }
}

impl Encode for ClientHello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.cluster_id.is_some()));
        out.put_u64_le(self.cluster_id.unwrap_or(0));
        put_key(out, self.key);
        out.put_slice(&self.nonce);
    }
}

impl Decode for ClientHello {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let cluster_id = match (reader.bool()?, reader.u64()?) {
            (true, cluster_id) => Some(cluster_id),
            (false, 0) => None,
            (false, _) => return Err(WireError::NotZero("a cluster id that is not given")),
        };
        Ok(Self { cluster_id, key: read_option(reader)?, nonce: reader.array()? })
    }
}

impl Encode for PeerHello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.cluster_id);
        self.from.encode(out);
        self.to.encode(out);
        put_key(out, self.key);
        out.put_slice(&self.nonce);
    }
}

impl Decode for PeerHello {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            cluster_id: reader.u64()?,
            from: PeerAddress::decode(reader)?,
            to: PeerAddress::decode(reader)?,
            key: read_option(reader)?,
            nonce: reader.array()?,
        })
    }
}

impl Encode for Welcome {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.cluster_id);
        self.at.encode(out);
        out.put_slice(&self.nonce);
        out.put_u8(u8::from(self.proof.is_some()));
        if let Some(proof) = self.proof {
            proof.encode(out);
        }
    }
}

impl Decode for Welcome {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            cluster_id: reader.u64()?,
            at: PeerAddress::decode(reader)?,
            nonce: reader.array()?,
            proof: read_option(reader)?,
        })
    }
}

impl Encode for Refusal {
    fn encode(&self, out: &mut BytesMut) {
        match *self {
            Self::OtherCluster { cluster_id } => {
                out.put_u8(1);
                out.put_u64_le(cluster_id);
            }
            Self::OtherAddress => out.put_u8(2),
            Self::OtherVersion { theirs, ours } => {
                out.put_slice(&[3, theirs, ours]);
            }
            Self::KeyNeeded => out.put_u8(4),
            Self::UnknownKey => out.put_u8(5),
            Self::NoProof => out.put_u8(6),
            Self::WrongProof => out.put_u8(7),
        }
    }
}

impl Decode for Refusal {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(match reader.u8()? {
            1 => Self::OtherCluster { cluster_id: reader.u64()? },
            2 => Self::OtherAddress,
            3 => Self::OtherVersion { theirs: reader.u8()?, ours: reader.u8()? },
            4 => Self::KeyNeeded,
            5 => Self::UnknownKey,
            6 => Self::NoProof,
            7 => Self::WrongProof,
            tag => return Err(WireError::UnknownTag { what: "refusal", tag }),
        })
    }
}
