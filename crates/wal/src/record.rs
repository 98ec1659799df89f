//! The binary format of a record.
//!
//! ```text
//! offset  bytes  field
//!      0      4  crc32 over segment sequence, position, the other fields, and the payload
//!      4      4  length of the payload
//!      8      4  crc of the record before (the chain)
//!     12      4  group
//!     16      1  kind: 1 entry, 2 state, 3 seal, 4 members, 5 snapshot, 6 end of a snapshot,
//!               7 end of a snapshot that replaces the log
//!     17      3  zero
//!     20      4  part of a snapshot
//!     24      8  term (Raft) or epoch (chain)
//!     32      8  index
//!     40      8  position known to be durable when this record was written
//!     48      …  payload, then padding up to a multiple of 8
//! ```
//! All numbers are little-endian. The checksum covers the sequence and the position, which are not
//! stored. So a record at the wrong place, or left over from an earlier use of the file, does not
//! verify. The checksum of the record before detects a predecessor that was not written. The
//! durable position distinguishes damage of acknowledged records from a torn tail that no sync
//! covered.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U32, U64},
};

use crate::Position;

/// Size of the header before each payload, in bytes.
pub const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();

/// The largest payload of a record, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 2 * 1024 * 1024;

const CRC_BYTES: usize = 4;
const ALIGNMENT: usize = 8;

/// The kind of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A replicated entry. It replaces all earlier entries of its group at or above its index.
    Entry = 1,
    /// The replication protocol's durable state: term and vote, or epoch and members. Only the last
    /// one is used.
    State = 2,
    /// Ends a segment: the log continues in the next one.
    Seal = 3,
    /// An entry that changes the members of the group.
    Members = 4,
    /// A part of a snapshot of the group, but not the last.
    Snapshot = 5,
    /// The last part of a snapshot made from this log. It replaces the entries up to its index.
    SnapshotEnd = 6,
    /// The last part of a snapshot that does not continue this log. It replaces all earlier
    /// entries.
    Replacement = 7,
}

impl RecordKind {
    fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Entry),
            2 => Some(Self::State),
            3 => Some(Self::Seal),
            4 => Some(Self::Members),
            5 => Some(Self::Snapshot),
            6 => Some(Self::SnapshotEnd),
            7 => Some(Self::Replacement),
            _ => None,
        }
    }
}

/// A record with a borrowed payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The kind of the record.
    pub kind: RecordKind,
    /// The group that the record belongs to.
    pub group: u32,
    /// Raft term or chain epoch.
    pub term: u64,
    /// Index of an entry, or the last index that a snapshot covers; 0 for other kinds.
    pub index: u64,
    /// Number of the part of a snapshot, from 0; 0 for other kinds.
    pub part: u32,
    /// The payload: at most [`MAX_PAYLOAD_BYTES`] bytes, which the log does not interpret.
    pub payload: &'a [u8],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy)]
#[repr(C)]
struct RecordHeader {
    crc: U32,
    length: U32,
    previous_crc: U32,
    group: U32,
    kind: u8,
    zero: [u8; 3],
    part: U32,
    term: U64,
    index: U64,
    durable: U64,
}

/// Returns the bytes that a record takes in the log: header, payload, and padding to a multiple of
/// 8.
pub fn record_bytes(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(ALIGNMENT)
}

/// The position of a record, and the log's state when it was written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    pub(crate) position: Position,
    pub(crate) previous_crc: u32,
    pub(crate) durable: Position,
}

fn checksum(sequence: u64, position: Position, after_crc: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut place = [0; 16];
    place[..8].copy_from_slice(&sequence.to_le_bytes());
    place[8..].copy_from_slice(&position.to_le_bytes());
    hasher.update(&place);
    hasher.update(after_crc);
    hasher.finalize()
}

/// Writes a record to the front of `out` and returns its checksum. The padding is not written: no
/// checksum covers it.
pub(crate) fn encode(record: &Record<'_>, place: Place, out: &mut [u8]) -> u32 {
    let header = RecordHeader {
        crc: U32::ZERO,
        length: U32::new(u32::try_from(record.payload.len()).expect("payloads are bounded")),
        previous_crc: U32::new(place.previous_crc),
        group: U32::new(record.group),
        kind: record.kind as u8,
        zero: [0; 3],
        part: U32::new(record.part),
        term: U64::new(record.term),
        index: U64::new(record.index),
        durable: U64::new(place.durable),
    };
    let end = RECORD_HEADER_BYTES + record.payload.len();
    out[..RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
    out[RECORD_HEADER_BYTES..end].copy_from_slice(record.payload);
    let crc = checksum(place.sequence, place.position, &out[CRC_BYTES..end]);
    out[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// A record whose checksum matches. The caller compares `previous_crc` with the record before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded<'a> {
    pub(crate) record: Record<'a>,
    pub(crate) crc: u32,
    pub(crate) previous_crc: u32,
    pub(crate) durable: Position,
    pub(crate) bytes: usize,
}

/// Returns the record at the front of `bytes`, or `None` if it is incomplete or does not verify.
pub(crate) fn decode(bytes: &[u8], sequence: u64, position: Position) -> Option<Decoded<'_>> {
    let (header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
    let length = header.length.get() as usize;
    if length > MAX_PAYLOAD_BYTES || header.zero != [0; 3] {
        return None;
    }
    let kind = RecordKind::from_tag(header.kind)?;
    let end = RECORD_HEADER_BYTES + length;
    if end > bytes.len() {
        return None;
    }
    let crc = header.crc.get();
    if checksum(sequence, position, &bytes[CRC_BYTES..end]) != crc {
        return None;
    }
    let record = Record {
        kind,
        group: header.group.get(),
        term: header.term.get(),
        index: header.index.get(),
        part: header.part.get(),
        payload: &bytes[RECORD_HEADER_BYTES..end],
    };
    Some(Decoded {
        record,
        crc,
        previous_crc: header.previous_crc.get(),
        durable: header.durable.get(),
        bytes: record_bytes(length),
    })
}
