//! Encoding of the parts that the messages of both protocols share.

use bytes::{BufMut, BytesMut};
use palisade_wire::{Decode, Encode, PeerAddress, Reader, WireError};

use crate::{Entry, EntryKind, Membership};

pub(crate) fn encode_entries(entries: &[Entry], out: &mut BytesMut) {
    out.put_u32_le(u32::try_from(entries.len()).expect("a message holds few entries"));
    if let Some(first) = entries.first() {
        out.put_u64_le(first.index);
    }
    for entry in entries {
        out.put_u64_le(entry.term);
        out.put_u8(match entry.kind {
            EntryKind::Command => 0,
            EntryKind::Members => 1,
        });
        entry.payload.encode(out);
    }
}

pub(crate) fn decode_entries(reader: &mut Reader) -> Result<Vec<Entry>, WireError> {
    let count = reader.u32()?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let first = reader.count()?;
    // Reserves no capacity for `count`, which is unverified input.
    let mut entries = Vec::new();
    for at in 0..u64::from(count) {
        let term = reader.count()?;
        let kind = match reader.u8()? {
            0 => EntryKind::Command,
            1 => EntryKind::Members,
            tag => return Err(WireError::UnknownTag { what: "entry", tag }),
        };
        let payload = reader.payload()?;
        entries.push(Entry { index: first + at, term, kind, payload });
    }
    Ok(entries)
}

pub(crate) fn encode_members(membership: &Membership) -> bytes::Bytes {
    let mut out = BytesMut::new();
    for member in &membership.members {
        member.encode(&mut out);
    }
    out.freeze()
}

pub(crate) fn decode_members(bytes: bytes::Bytes) -> Result<Vec<PeerAddress>, WireError> {
    let count = bytes.len() / 4;
    let mut reader = Reader::new(bytes);
    let members = (0..count).map(|_| PeerAddress::decode(&mut reader)).collect::<Result<_, _>>()?;
    reader.finish()?;
    Ok(members)
}
