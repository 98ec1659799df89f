//! The proofs of both sides of a connection.

use bytes::{Bytes, BytesMut};

use super::{
    keys::{AccessKey, AccessRole, KeyId, Keyring, Proof},
    messages::{Refusal, Welcome},
};
use crate::Encode;

#[derive(Clone, Copy, Debug)]
enum Side {
    Initiator,
    Acceptor,
}

/// The messages of a handshake, of which a proof is made.
#[derive(Debug)]
struct Transcript {
    hello: Bytes,
    welcome: Bytes,
}

impl Transcript {
    fn new(hello: Bytes, welcome: &Welcome) -> Self {
        let mut out = BytesMut::new();
        Welcome { proof: None, ..*welcome }.encode(&mut out);
        Self { hello, welcome: out.freeze() }
    }

    /// Calls `use_parts` with what a side must authenticate.
    fn of<T>(&self, side: Side, use_parts: impl FnOnce(&[&[u8]]) -> T) -> T {
        let side: &[u8] = match side {
            Side::Initiator => b"palisade initiator",
            Side::Acceptor => b"palisade acceptor ",
        };
        let length = (self.hello.len() as u64).to_le_bytes();
        use_parts(&[side, &length, &self.hello, &self.welcome])
    }

    fn prove(&self, key: &AccessKey, side: Side) -> Proof {
        self.of(side, |parts| key.prove(parts))
    }

    fn verify(&self, key: &AccessKey, side: Side, proof: Proof) -> Result<(), Refusal> {
        let is_right = self.of(side, |parts| key.verify(parts, proof));
        if is_right { Ok(()) } else { Err(Refusal::WrongProof) }
    }
}

/// The side that opened a connection.
#[derive(Debug)]
pub struct Initiator {
    key: Option<AccessKey>,
    hello: Bytes,
}

impl Initiator {
    /// Starts a handshake with an encoded hello, which names the key.
    pub fn new(key: Option<AccessKey>, hello: &impl Encode) -> Self {
        let mut out = BytesMut::new();
        hello.encode(&mut out);
        Self { key, hello: out.freeze() }
    }

    /// Returns the encoded hello.
    pub fn hello(&self) -> Bytes {
        self.hello.clone()
    }

    /// Checks the proof in a welcome. Returns the proof to send, or `None` without a key.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoProof`] and [`Refusal::WrongProof`]: close the connection.
    pub fn check(&self, welcome: &Welcome) -> Result<Option<Proof>, Refusal> {
        let Some(key) = &self.key else { return Ok(None) };
        let proof = welcome.proof.ok_or(Refusal::NoProof)?;
        let transcript = Transcript::new(self.hello.clone(), welcome);
        transcript.verify(key, Side::Acceptor, proof)?;
        Ok(Some(transcript.prove(key, Side::Initiator)))
    }
}

/// What the side that opened a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Anything, because the cluster has no secret.
    Open,
    /// What the role allows.
    As(AccessRole),
}

impl Accepted {
    /// Returns true if it may change ranges, members and modes.
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Open | Self::As(AccessRole::Admin))
    }
}

/// The side that accepted a connection.
#[derive(Debug)]
pub struct Acceptor {
    /// The key that the other side must prove to hold. `None` if the cluster has no secret.
    expected: Option<(AccessKey, Transcript)>,
}

impl Acceptor {
    /// Answers a hello, whose payload and key are given. Returns the welcome with its proof.
    ///
    /// # Errors
    ///
    /// [`Refusal::KeyNeeded`] and [`Refusal::UnknownKey`]: send it, and close the connection.
    pub fn answer(
        keyring: &Keyring,
        (hello, key): (Bytes, Option<KeyId>),
        welcome: Welcome,
    ) -> Result<(Welcome, Self), Refusal> {
        if keyring.is_empty() {
            return Ok((Welcome { proof: None, ..welcome }, Self { expected: None }));
        }
        let key = keyring.find(key.ok_or(Refusal::KeyNeeded)?).ok_or(Refusal::UnknownKey)?;
        let transcript = Transcript::new(hello, &welcome);
        let proof = Some(transcript.prove(key, Side::Acceptor));
        Ok((Welcome { proof, ..welcome }, Self { expected: Some((*key, transcript)) }))
    }

    /// Returns what the other side may do if it needs no proof.
    pub fn without_proof(&self) -> Option<Accepted> {
        self.expected.is_none().then_some(Accepted::Open)
    }

    /// Checks the proof of the other side. Returns what it may do.
    ///
    /// # Errors
    ///
    /// [`Refusal::WrongProof`]: send it, and close the connection.
    pub fn check(&self, proof: Proof) -> Result<Accepted, Refusal> {
        let Some((key, transcript)) = &self.expected else { return Ok(Accepted::Open) };
        transcript.verify(key, Side::Initiator, proof)?;
        Ok(Accepted::As(key.role()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClientHello, ClusterSecret, NodeId, PeerAddress, ShardId};

    const CLIENTS: [AccessRole; 2] = [AccessRole::Client, AccessRole::Admin];

    fn secret(byte: u8) -> ClusterSecret {
        ClusterSecret::from_bytes([byte; 32])
    }

    fn welcome(nonce: u8) -> Welcome {
        let at = PeerAddress { node: NodeId(1), shard: ShardId(0) };
        Welcome { cluster_id: 9, at, nonce: [nonce; 32], proof: None }
    }

    fn initiator(key: Option<AccessKey>, nonce: u8) -> (Initiator, Option<KeyId>) {
        let id = key.map(|key| key.id());
        let hello = ClientHello { cluster_id: None, key: id, nonce: [nonce; 32] };
        (Initiator::new(key, &hello), id)
    }

    #[test]
    fn both_sides_with_the_key_accept_each_other() {
        let keyring = Keyring::new(&[secret(1), secret(2)], &CLIENTS);
        for (held, role) in [(1, AccessRole::Client), (2, AccessRole::Admin)] {
            let (initiator, id) = initiator(Some(secret(held).key(role)), 3);
            let answer = Acceptor::answer(&keyring, (initiator.hello(), id), welcome(4));
            let (welcome, acceptor) = answer.unwrap();
            assert_eq!(acceptor.without_proof(), None);
            let proof = initiator.check(&welcome).unwrap().unwrap();
            assert_eq!(acceptor.check(proof), Ok(Accepted::As(role)));
            // The proof of the other side is none.
            assert_eq!(acceptor.check(welcome.proof.unwrap()), Err(Refusal::WrongProof));
        }
    }

    #[test]
    fn side_without_the_key_is_refused() {
        let keyring = Keyring::new(&[secret(1)], &CLIENTS);
        let refused = |key| {
            let (initiator, id) = initiator(key, 3);
            Acceptor::answer(&keyring, (initiator.hello(), id), welcome(4)).unwrap_err()
        };
        assert_eq!(refused(None), Refusal::KeyNeeded);
        assert_eq!(refused(Some(secret(2).key(AccessRole::Client))), Refusal::UnknownKey);
        assert_eq!(refused(Some(secret(1).key(AccessRole::Peer))), Refusal::UnknownKey);
        // A client with a key trusts neither a cluster without a secret nor a wrong proof.
        let (initiator, id) = initiator(Some(secret(1).key(AccessRole::Client)), 3);
        let open = Acceptor::answer(&Keyring::default(), (initiator.hello(), id), welcome(4));
        let (open, acceptor) = open.unwrap();
        assert_eq!(acceptor.without_proof(), Some(Accepted::Open));
        assert_eq!(initiator.check(&open), Err(Refusal::NoProof));
        let forged = secret(2).key(AccessRole::Client).prove(&[]);
        let forged = Welcome { proof: Some(forged), ..welcome(4) };
        assert_eq!(initiator.check(&forged), Err(Refusal::WrongProof));
    }

    #[test]
    fn proof_is_bound_to_nonces_and_messages() {
        let key = secret(1).key(AccessRole::Client);
        let keyring = Keyring::new(&[secret(1)], &CLIENTS);
        let handshake = |hello_nonce, welcome: Welcome| {
            let (initiator, id) = initiator(Some(key), hello_nonce);
            let answer = Acceptor::answer(&keyring, (initiator.hello(), id), welcome).unwrap();
            (initiator, answer.0, answer.1)
        };
        let other_shard = PeerAddress { node: NodeId(2), shard: ShardId(0) };
        let all = [
            handshake(3, welcome(4)),
            handshake(5, welcome(4)),
            handshake(3, welcome(5)),
            handshake(3, Welcome { at: other_shard, ..welcome(4) }),
            handshake(3, Welcome { cluster_id: 8, ..welcome(4) }),
        ];
        for (one, (initiator, welcome, _)) in all.iter().enumerate() {
            let proof = initiator.check(welcome).unwrap().unwrap();
            for (two, (other, answer, acceptor)) in all.iter().enumerate() {
                assert_eq!(acceptor.check(proof).is_ok(), one == two, "{one} {two}");
                let replayed = Welcome { proof: welcome.proof, ..*answer };
                assert_eq!(other.check(&replayed).is_ok(), one == two, "{one} {two}");
            }
        }
    }
}
