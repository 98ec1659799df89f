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
    record::{Decoded, RECORD_HEADER_BYTES, decode},
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
    /// The furthest position that a record says was durable.
    pub(crate) durable: Position,
}

/// The records of a segment in order, up to the first that is not valid, or to the seal.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    sequence: u64,
    base: Position,
    scan: Scan,
}

/// A record, and where it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) record: Record<'a>,
    pub(crate) position: Position,
    pub(crate) previous_crc: u32,
    /// What was known to be durable when it was written.
    pub(crate) durable: Position,
}

impl<'a> Records<'a> {
    /// The records of a segment whose first byte is at `base`, after one with a known checksum.
    pub(crate) fn new(bytes: &'a [u8], sequence: u64, base: Position, previous_crc: u32) -> Self {
        let scan =
            Scan { end: SEGMENT_HEADER_BYTES, last_crc: previous_crc, sealed: false, durable: 0 };
        Self { bytes, sequence, base, scan }
    }

    /// Goes on to the end.
    pub(crate) fn finish(mut self) -> Scan {
        self.by_ref().for_each(drop);
        self.scan
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        let Self { bytes, sequence, base, scan } = self;
        if scan.sealed {
            return None;
        }
        let position = *base + scan.end as u64;
        let decoded = decode(&bytes[scan.end..], *sequence, position)?;
        if decoded.previous_crc != scan.last_crc {
            return None;
        }
        scan.end += decoded.bytes;
        scan.last_crc = decoded.crc;
        scan.durable = scan.durable.max(decoded.durable);
        if decoded.record.kind == RecordKind::Seal {
            scan.sealed = true;
            return None;
        }
        let Decoded { record, previous_crc, durable, .. } = decoded;
        Some(Found { record, position, previous_crc, durable })
    }
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
