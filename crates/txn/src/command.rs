//! The command that a commit writes to the log.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_wire::{
    Commit, CommitRequest, Condition, Decode, Encode, Expected, Reader, WireError, Write,
};

/// A commit, with the timestamp proposed by the replica that ordered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitCommand {
    /// The versions are written at this timestamp, or just above the range's last timestamp if that
    /// is later.
    pub proposed_ts: Timestamp,
    /// The writes and their conditions.
    pub request: CommitRequest,
}

impl CommitCommand {
    /// Encodes the command as the payload of a log entry, in a new buffer.
    ///
    /// # Panics
    ///
    /// If the commit has more conditions or writes than a `u16` counts.
    pub fn to_payload(&self) -> Bytes {
        let bytes = self.request.commit.writes.iter().map(|write| {
            16 + write.key.len() + write.value.as_ref().map_or(0, |value| value.len())
        });
        let mut out = BytesMut::with_capacity(48 + bytes.sum::<usize>());
        out.put_u64_le(self.proposed_ts.to_bits());
        self.request.encode(&mut out);
        out.freeze()
    }

    /// Returns a CRC-32 of the conditions and writes. It distinguishes a retry of a commit from
    /// another commit under the same id.
    pub fn fingerprint(commit: &Commit) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut hash = |tag: u8, bytes: &[u8]| {
            let mut head = [tag; 9];
            head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&head);
            hasher.update(bytes);
        };
        for Condition { key, expected } in &commit.conditions {
            hash(0, key);
            match expected {
                Expected::Absent => hash(1, &[]),
                Expected::Value(value) => hash(2, value),
                Expected::Version(ts) => hash(3, &ts.to_bits().to_le_bytes()),
            }
        }
        for Write { key, value } in &commit.writes {
            hash(4, key);
            match value {
                None => hash(5, &[]),
                Some(value) => hash(6, value),
            }
        }
        hasher.finalize()
    }

    /// Decodes a payload. Keys and values share its memory.
    ///
    /// # Errors
    ///
    /// [`WireError`] if the payload is not exactly one command. Not retryable.
    pub fn from_payload(payload: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let proposed_ts = Timestamp::from_bits(reader.u64()?);
        let request = CommitRequest::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self { proposed_ts, request })
    }
}
