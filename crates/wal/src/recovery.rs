//! Finds where the valid part of a segment ends, and whether what follows is a torn tail or damage.
//! Depends on the segment's bytes alone.
//!
//! Cutting the log at the first bad record would silently drop acknowledged entries after a bit
//! flip in the middle. Refusing the log whenever a valid record follows would refuse it after an
//! ordinary power loss, because unsynced pages may reach the disk in any order. So each record
//! holds the position up to which the log was known to be durable when it was written:
//! - Damage below the highest such position is damage of durable records. The log is refused.
//! - Damage at or above it is treated as a torn tail. The log is cut there.

use crate::{
    Position, Record, RecordKind,
    record::{Decoded, RECORD_HEADER_BYTES, decode},
    segment::SEGMENT_HEADER_BYTES,
};

/// The end of the valid part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Offset in the segment of the first byte after the last valid record.
    pub(crate) end: usize,
    /// Checksum of that record, or of the last record before the segment if it has none.
    pub(crate) last_crc: u32,
    /// True if that record is a seal: the log continues in the next segment.
    pub(crate) sealed: bool,
    /// The highest durable position in any of the records.
    pub(crate) durable: Position,
}

/// Iterates over the records of a segment in order, up to the first invalid one or the seal.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    sequence: u64,
    base: Position,
    scan: Scan,
}

/// A record and its position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    pub(crate) record: Record<'a>,
    pub(crate) position: Position,
    pub(crate) previous_crc: u32,
    /// The durable position when it was written.
    pub(crate) durable: Position,
}

impl<'a> Records<'a> {
    /// Returns the records of a segment whose first byte is at `base`. `previous_crc` is the
    /// checksum of the last record before the segment.
    pub(crate) fn new(bytes: &'a [u8], sequence: u64, base: Position, previous_crc: u32) -> Self {
        let scan =
            Scan { end: SEGMENT_HEADER_BYTES, last_crc: previous_crc, sealed: false, durable: 0 };
        Self { bytes, sequence, base, scan }
    }

    /// Consumes the remaining records and returns where they end.
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

/// Returns true if a record at or after offset `from` shows that the log was durable beyond
/// `position`.
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
        // Skips zeros without decoding. Only an empty record with a zero checksum starts with them.
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
