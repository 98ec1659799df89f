//! The secret of a cluster, and the keys that are derived from it.

use std::{collections::BTreeMap, fmt, str::FromStr};

use bytes::{BufMut, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

use crate::{Decode, Encode, Reader, WireError};

/// Length of a secret and of a key, in bytes.
const KEY_BYTES: usize = 32;

/// Text before the digits of a secret.
const SECRET_PREFIX: &str = "palisade-secret-";

/// What the holder of a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessRole {
    /// Take part in the cluster as a node.
    Peer,
    /// Read and write.
    Client,
    /// Read and write, and change ranges, members and modes.
    Admin,
}

impl AccessRole {
    const ALL: [Self; 3] = [Self::Peer, Self::Client, Self::Admin];

    fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Client => "client",
            Self::Admin => "admin",
        }
    }

    /// Returns the text before the digits of a key.
    fn prefix(self) -> String {
        format!("palisade-{}-key-", self.name())
    }
}

/// Why a text is not a secret or a key. Not retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The text is none of Palisade's.
    #[error("expected {expected} followed by {} hexadecimal digits", 2 * KEY_BYTES)]
    Format {
        /// How the text must begin.
        expected: &'static str,
    },
    /// The secret of a cluster was given where a key is expected. Clients must not hold it.
    #[error("this is the secret of a cluster: derive a key from it with `palisade key derive`")]
    IsSecret,
}

/// The secret that all nodes of a cluster hold. Its keys are derived from it.
///
/// # Examples
///
/// ```
/// use palisade_wire::{AccessKey, AccessRole, ClusterSecret};
///
/// let secret = ClusterSecret::from_bytes([7; 32]);
/// assert_eq!(secret.expose().parse(), Ok(secret.clone()));
/// let key = secret.key(AccessRole::Client);
/// assert_eq!(key.expose().parse::<AccessKey>(), Ok(key));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; KEY_BYTES]);

impl ClusterSecret {
    /// Length of a secret, in bytes.
    pub const BYTES: usize = KEY_BYTES;

    /// Returns the secret with these bytes. They must be random: anyone who guesses them is a node.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Derives the key of a role.
    pub fn key(&self, role: AccessRole) -> AccessKey {
        let mac = mac(&self.0, &[b"palisade key ", role.name().as_bytes()]);
        AccessKey { role, bytes: mac.finalize().into_bytes().into() }
    }

    /// Returns the secret as text, for the file that nodes read.
    pub fn expose(&self) -> String {
        SECRET_PREFIX.to_owned() + &to_hex(&self.0)
    }
}

impl FromStr for ClusterSecret {
    type Err = KeyError;

    /// # Errors
    ///
    /// [`KeyError::Format`].
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.trim().strip_prefix(SECRET_PREFIX);
        digits.and_then(from_hex).map(Self).ok_or(KeyError::Format { expected: SECRET_PREFIX })
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

/// The key of a role.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AccessKey {
    role: AccessRole,
    bytes: [u8; KEY_BYTES],
}

impl AccessKey {
    /// Returns the role.
    pub fn role(&self) -> AccessRole {
        self.role
    }

    /// Returns the id of the key, which is no secret.
    pub fn id(&self) -> KeyId {
        let proof = self.prove(&[b"palisade key id"]);
        let (id, _) = proof.0.split_first_chunk().expect("a MAC is longer than an id");
        KeyId(*id)
    }

    /// Returns the key as text, for the file that clients read.
    pub fn expose(&self) -> String {
        self.role.prefix() + &to_hex(&self.bytes)
    }

    /// Returns the proof that a holder of the key made for some parts of a message.
    pub(super) fn prove(&self, parts: &[&[u8]]) -> Proof {
        Proof(mac(&self.bytes, parts).finalize().into_bytes().into())
    }

    /// Takes the same time wherever the first wrong byte is.
    pub(super) fn verify(&self, parts: &[&[u8]], proof: Proof) -> bool {
        mac(&self.bytes, parts).verify_slice(&proof.0).is_ok()
    }
}

impl FromStr for AccessKey {
    type Err = KeyError;

    /// # Errors
    ///
    /// [`KeyError`].
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.starts_with(SECRET_PREFIX) {
            return Err(KeyError::IsSecret);
        }
        let parsed = AccessRole::ALL.into_iter().find_map(|role| {
            let bytes = from_hex(text.strip_prefix(&role.prefix())?)?;
            Some(Self { role, bytes })
        });
        parsed.ok_or(KeyError::Format { expected: "palisade-client-key- or palisade-admin-key-" })
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({:?}, ..)", self.role)
    }
}

/// Length of a [`Proof`], in bytes.
pub const PROOF_BYTES: usize = 32;

/// Shows that a side holds a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof([u8; PROOF_BYTES]);

impl Encode for Proof {
    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.0);
    }
}

impl Decode for Proof {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self(reader.array()?))
    }
}

/// Names a key without revealing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

impl Encode for KeyId {
    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.0);
    }
}

impl Decode for KeyId {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        Ok(Self(reader.array()?))
    }
}

/// The keys that a node accepts at a port. Empty if the cluster has no secret.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: BTreeMap<KeyId, AccessKey>,
}

impl Keyring {
    /// Returns the keys of these roles, of all secrets. While a secret is replaced node by node,
    /// there are two.
    pub fn new(secrets: &[ClusterSecret], roles: &[AccessRole]) -> Self {
        let keys = secrets.iter().flat_map(|secret| roles.iter().map(|role| secret.key(*role)));
        Self { keys: keys.map(|key| (key.id(), key)).collect() }
    }

    /// Returns true if the cluster has no secret.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn find(&self, id: KeyId) -> Option<&AccessKey> {
        self.keys.get(&id)
    }
}

fn mac(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(digits: &str) -> Option<[u8; KEY_BYTES]> {
    if digits.len() != 2 * KEY_BYTES || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; KEY_BYTES];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_role_and_secret() {
        let secrets = [1, 2].map(|byte| ClusterSecret::from_bytes([byte; KEY_BYTES]));
        let keys: Vec<_> =
            secrets.iter().flat_map(|s| AccessRole::ALL.map(|role| s.key(role))).collect();
        let mut ids: Vec<_> = keys.iter().map(AccessKey::id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 6);
        for key in &keys {
            assert_eq!(key.expose().parse(), Ok(*key));
        }
        let keyring = Keyring::new(&secrets, &[AccessRole::Client, AccessRole::Admin]);
        for key in &keys {
            assert_eq!(keyring.find(key.id()).is_some(), key.role() != AccessRole::Peer);
        }
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        let secret = ClusterSecret::from_bytes([0xAB; KEY_BYTES]);
        assert_eq!(secret.expose().parse::<AccessKey>(), Err(KeyError::IsSecret));
        let key = secret.key(AccessRole::Admin).expose();
        assert!(matches!(key.parse::<ClusterSecret>(), Err(KeyError::Format { .. })));
        for text in ["", "palisade-client-key-", &key[..key.len() - 1], &format!("{key}0")] {
            assert!(matches!(text.parse::<AccessKey>(), Err(KeyError::Format { .. })), "{text}");
        }
        let digits = "é".repeat(KEY_BYTES);
        assert!(format!("{SECRET_PREFIX}{digits}").parse::<ClusterSecret>().is_err());
    }

    #[test]
    fn debug_output_hides_keys() {
        let secret = ClusterSecret::from_bytes([0xAB; KEY_BYTES]);
        let shown = format!("{secret:?} {:?}", secret.key(AccessRole::Client));
        assert_eq!(shown, "ClusterSecret(..) AccessKey(Client, ..)");
    }
}
