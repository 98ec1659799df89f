//! The first frames of a connection: which cluster and shards are at its ends, and the proof that
//! both ends hold a key of the cluster.
//!
//! ```text
//! the side that connects                                the side that accepts
//!   hello: cluster, addresses, id of its key, nonce ──►
//!                ◄── welcome: cluster, shard, nonce, proof       or a refusal, and the end
//!   proof, then the first messages ──►                           or a refusal, and the end
//! ```
//!
//! A proof is an HMAC-SHA-256, under the key, of the side and of both messages with their nonces.
//! So a recorded proof is of no use on another connection, and neither side can return the other's
//! proof as its own. Each key belongs to one [`AccessRole`]; a key of a client proves nothing to a
//! peer.
//!
//! A cluster without a secret neither gives nor asks for proofs. A side that holds a key refuses
//! such a cluster.
//!
//! Left out: encryption and the integrity of what follows. Someone who can change the packets of a
//! connection can take it over after the handshake. TLS belongs below the first frame, where both
//! sides read and write a stream.

mod keys;
mod messages;
mod proof;

pub use keys::{
    AccessKey, AccessRole, ClusterSecret, KeyError, KeyId, Keyring, PROOF_BYTES, Proof,
};
pub use messages::{ClientHello, NONCE_BYTES, Nonce, PeerHello, Refusal, Welcome};
pub use proof::{Accepted, Acceptor, Initiator};
