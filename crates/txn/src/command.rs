//! What a commit writes to the log.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_wire::{Decode, Encode, PutCommand, Reader, WireError};

/// A write with the timestamp that the replica which ordered it proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitCommand {
    /// The version is written at this timestamp, or just above the range's last one if that is
    /// later.
    pub proposed_ts: Timestamp,
    /// The write.
    pub put: PutCommand,
}

impl CommitCommand {
    /// The payload of the entry, in memory of its own.
    pub fn to_payload(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(48 + self.put.key.len() + self.put.value.len());
        out.put_u64_le(self.proposed_ts.to_bits());
        self.put.encode(&mut out);
        out.freeze()
    }

    /// Reads a payload; key and value share its memory.
    pub fn from_payload(payload: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let proposed_ts = Timestamp::from_bits(reader.u64()?);
        let put = PutCommand::decode(&mut reader)?;
        reader.finish()?;
        Ok(Self { proposed_ts, put })
    }

    /// Tells whether a retry carries the same write.
    pub fn fingerprint(put: &PutCommand) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&(put.key.len() as u64).to_le_bytes());
        hasher.update(&put.key);
        hasher.update(&put.value);
        hasher.finalize()
    }
}
