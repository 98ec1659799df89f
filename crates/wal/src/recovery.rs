//! Recovery, pure over bytes: where does a segment's valid part end, and is what follows a torn
//! tail or damage?
//!
//! The naive way, cutting the log at the first bad record, silently drops acknowledged entries when
//! a bit flips in the middle. The other naive way, refusing whenever something valid follows,
//! refuses after an ordinary power loss: unsynced pages may land in any order. What tells the two
//! apart is written in the records themselves: each says up to where the log was known to be
//! durable when it was written. Damage below that position was acknowledged; damage above it was
//! not.

use crate::{
    Position, Record, RecordKind,
    record::{RECORD_HEADER_BYTES, decode},
    segment::SEGMENT_HEADER_BYTES,
};

/// Where the valid part of a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Offset in the segment of the first byte after the last valid record.
    pub(crate) end: usize,
    /// Checksum of that record, or of the one before the segment.
    pub(crate) last_crc: u32,
    /// Whether that record is a seal: the log goes on in the next segment.
    pub(crate) sealed: bool,
}

/// Hands each valid record of a segment to `visit`, up to the first that isn't.
pub(crate) fn scan(
    bytes: &[u8],
    sequence: u64,
    base: Position,
    previous_crc: u32,
    visit: &mut impl FnMut(Record<'_>),
) -> Scan {
    let mut scan = Scan { end: SEGMENT_HEADER_BYTES, last_crc: previous_crc, sealed: false };
    while let Some(decoded) = decode(&bytes[scan.end..], sequence, base + scan.end as u64) {
        if decoded.previous_crc != scan.last_crc {
            break;
        }
        scan.end += decoded.bytes;
        scan.last_crc = decoded.crc;
        if decoded.record.kind == RecordKind::Seal {
            scan.sealed = true;
            break;
        }
        visit(decoded.record);
    }
    scan
}

/// Whether a record at or after `from` proves that the log had been durable beyond `from`.
pub(crate) fn was_durable_beyond(
    bytes: &[u8],
    sequence: u64,
    base: Position,
    from: usize,
    position: Position,
) -> bool {
    let last = bytes.len().saturating_sub(RECORD_HEADER_BYTES);
    let mut offset = from;
    while offset <= last {
        // Free space is zero, and a record never starts with eight zero bytes.
        if bytes[offset..offset + 8] != [0; 8]
            && let Some(decoded) = decode(&bytes[offset..], sequence, base + offset as u64)
        {
            if decoded.durable > position {
                return true;
            }
            offset += decoded.bytes;
        } else {
            offset += 8;
        }
    }
    false
}
