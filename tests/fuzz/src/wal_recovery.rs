//! Recovery of a damaged log. The input says which records are written and synced, then which bytes
//! are damaged.
//!
//! - Recovery must not panic, and must not return a record that was not written.
//! - It must return the records known to be durable, or refuse the log.
//! - A log without damage is recovered whole.

use palisade_wal::{MemoryLog, Record, RecordKind, Remains};

const OWNER: u64 = 3;
const HEADER_BYTES: usize = 4096;
const KINDS: [RecordKind; 6] = [
    RecordKind::Entry,
    RecordKind::State,
    RecordKind::Members,
    RecordKind::Snapshot,
    RecordKind::SnapshotEnd,
    RecordKind::Replacement,
];

type Written = (RecordKind, u32, u64, u64, u32, Vec<u8>);

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]).into())
    }
}

/// Writes, damages and recovers a log.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let Some(segment) = input.byte() else { return };
    let segment_bytes = 200 + 16 * u64::from(segment);
    let mut log = MemoryLog::new(OWNER, segment_bytes);
    let written = write(&mut input, &mut log);
    let known_durable = log.known_durable();
    let mut remains = log.remains().clone();
    let (flips, others) = damage(&mut input, &mut remains.bytes);
    let Some((mut recovered, found)) = recover(remains, segment_bytes) else {
        assert!(flips + others > 0, "a log without damage was refused");
        return;
    };
    assert!(is_run_of(&found, &written), "records are returned that were not written so");
    if flips <= 1 && others == 0 {
        // More damage may also hit the records that show durability. The log then ends in what
        // looks like a torn tail.
        assert!(recovered.end() >= known_durable, "durable records were truncated");
    }
    if flips + others == 0 {
        assert!(found.last() == written.last(), "the last record is missing");
    }
    // The recovered log accepts another record.
    let next =
        Record { kind: RecordKind::Entry, group: 9, term: 9, index: 9, part: 0, payload: b"on" };
    recovered.append(&next);
    let (_, again) =
        recover(recovered.remains().clone(), segment_bytes).expect("nothing is damaged");
    assert_eq!(again.last().map(|last| last.1), Some(9));
}

/// Appends and syncs records until the input turns to damage. Returns the records.
fn write(input: &mut Input<'_>, log: &mut MemoryLog) -> Vec<Written> {
    let mut written = Vec::new();
    while let Some(what) = input.byte() {
        match what {
            0..200 => {
                let (Some(group), Some(index)) = (input.byte(), input.byte()) else { break };
                let kind = KINDS[usize::from(what) % KINDS.len()];
                let payload = vec![what; usize::from(what) / 2];
                let (group, index) = (u32::from(group) % 4, u64::from(index));
                let (term, part) = (index / 16, u32::from(what) / 64);
                log.append(&Record { kind, group, term, index, part, payload: &payload });
                written.push((kind, group, term, index, part, payload));
            }
            200..240 => log.synced(log.end()),
            // The rest of the input is damage.
            _ => break,
        }
    }
    written
}

/// Damages the records of a log. Returns the number of flipped bits and of other damages.
fn damage(input: &mut Input<'_>, bytes: &mut [u8]) -> (usize, usize) {
    let (mut flips, mut others) = (0, 0);
    while let (Some(what), Some(at), Some(with)) = (input.byte(), input.number(), input.number()) {
        let len = bytes.len();
        let (at, with) = (HEADER_BYTES + at % (len - HEADER_BYTES + 1), with % len);
        match what % 4 {
            0 if at < len => {
                bytes[at] ^= 1 << (with % 8);
                flips += 1;
                continue;
            }
            1 => bytes[at..].fill(0),
            2 => bytes[at..(at + with % 600).min(len)].fill(0),
            // A misdirected write.
            _ => {
                let moved = (with % 600).min(len - at).min(len - with);
                bytes.copy_within(with..with + moved, at);
            }
        }
        others += 1;
    }
    (flips, others)
}

fn recover(remains: Remains, segment_bytes: u64) -> Option<(MemoryLog, Vec<Written>)> {
    let mut found = Vec::new();
    let visit = &mut |r: Record<'_>| {
        found.push((r.kind, r.group, r.term, r.index, r.part, r.payload.to_vec()));
    };
    let log = MemoryLog::recover(OWNER, segment_bytes, remains, false, visit).ok()?;
    Some((log, found))
}

/// Returns true if `found` is a contiguous run of `written`.
fn is_run_of(found: &[Written], written: &[Written]) -> bool {
    found.is_empty() || written.windows(found.len()).any(|run| run == found)
}
