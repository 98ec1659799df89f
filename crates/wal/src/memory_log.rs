//! A log in memory, for the simulator. It uses the record format, recovery and retention of
//! [`Log`](crate::Log). Its oldest segments are dropped, not reused.

use std::{collections::VecDeque, fmt};

use crate::{
    Position, Record, Retained,
    record::{Place, encode, record_bytes},
    recovery::{Records, was_durable_beyond},
    retention::{Note, Retention},
    segment::SEGMENT_HEADER_BYTES,
};

/// A log in memory. Its owner decides which of its bytes survive a crash.
#[derive(Debug)]
pub struct MemoryLog {
    /// Used as the sequence in checksums, so that records of another log do not verify.
    owner: u64,
    segment_bytes: u64,
    remains: Remains,
    last_crc: u32,
    durable: Position,
    /// For each record that is not durable yet and holds a higher durable position than all before:
    /// its end, and that durable position.
    claims: VecDeque<(Position, Position)>,
    known_durable: Position,
    /// The start of each segment, oldest first.
    starts: VecDeque<Start>,
    retention: Retention,
    unsynced: VecDeque<(Position, Note)>,
}

/// The bytes of a log in memory that a crash leaves.
#[derive(Clone, Debug)]
pub struct Remains {
    /// Position of the first byte.
    base: Position,
    /// Checksum of the last record that was dropped at the front.
    previous_crc: u32,
    /// A header page, then records. Bytes that were not synced may be lost; synced bytes may be
    /// damaged.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Start {
    sequence: u64,
    position: Position,
    previous_crc: u32,
}

/// Durable bytes of a log in memory are damaged. Not retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLogDamage {
    /// Position of the first record that does not verify.
    pub position: Position,
}

impl Remains {
    /// Returns the bytes of a log without records.
    pub fn blank() -> Self {
        Self { base: 0, previous_crc: 0, bytes: vec![0; SEGMENT_HEADER_BYTES] }
    }

    /// Returns the index of a position in `bytes`.
    ///
    /// # Panics
    /// Panics if the position was dropped at the front.
    pub fn offset(&self, position: Position) -> usize {
        let offset = position.checked_sub(self.base).expect("it was not cut off");
        usize::try_from(offset).expect("it is in memory")
    }
}

impl MemoryLog {
    /// Returns an empty log with segments of about `segment_bytes` bytes.
    pub fn new(owner: u64, segment_bytes: u64) -> Self {
        Self::with(owner, segment_bytes, Remains::blank())
    }

    fn with(owner: u64, segment_bytes: u64, remains: Remains) -> Self {
        let durable = remains.base + remains.bytes.len() as u64;
        Self {
            owner,
            segment_bytes,
            last_crc: remains.previous_crc,
            remains,
            durable,
            claims: VecDeque::new(),
            known_durable: 0,
            starts: VecDeque::new(),
            retention: Retention::default(),
            unsynced: VecDeque::new(),
        }
    }

    /// Appends a record and returns the position of its end.
    pub fn append(&mut self, record: &Record<'_>) -> Position {
        let position = self.end();
        let place = Place {
            sequence: self.owner,
            position,
            previous_crc: self.last_crc,
            durable: self.durable,
        };
        if self.begin_segment(position, self.last_crc) {
            self.cut_front();
        }
        let start = self.remains.bytes.len();
        self.remains.bytes.resize(start + record_bytes(record.payload.len()), 0);
        self.last_crc = encode(record, place, &mut self.remains.bytes[start..]);
        if self.claims.back().map_or(self.known_durable, |(_, durable)| *durable) < self.durable {
            self.claims.push_back((self.end(), self.durable));
        }
        let note = Note::new(record, position / self.segment_bytes);
        self.unsynced.push_back((self.end(), note));
        self.end()
    }

    /// Registers a new segment if the record at `position` is its first one, and returns true if
    /// so.
    fn begin_segment(&mut self, position: Position, previous_crc: u32) -> bool {
        let sequence = position / self.segment_bytes;
        let begins = self.starts.back().is_none_or(|start| start.sequence < sequence);
        if begins {
            self.starts.push_back(Start { sequence, position, previous_crc });
        }
        begins
    }

    /// Drops the oldest segments that no group needs. The segment with the durable position is
    /// kept.
    fn cut_front(&mut self) {
        let durable_in = self.durable / self.segment_bytes;
        let needed = self.retention.first_needed().map_or(durable_in, |n| n.min(durable_in));
        while self.starts.get(1).is_some_and(|next| next.sequence <= needed) {
            self.starts.pop_front();
        }
        let Some(first) = self.starts.front() else { return };
        let base = first.position - SEGMENT_HEADER_BYTES as u64;
        let cut = self.remains.offset(base);
        if cut > 0 {
            self.remains.bytes.drain(..cut);
            self.remains.bytes[..SEGMENT_HEADER_BYTES].fill(0);
            (self.remains.base, self.remains.previous_crc) = (base, first.previous_crc);
        }
    }

    /// Returns the end of the last record appended.
    pub fn end(&self) -> Position {
        self.remains.base + self.remains.bytes.len() as u64
    }

    /// Returns the durable position: every record that ends at or below it was synced.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// Reports to the log that a sync covered everything up to a position.
    ///
    /// # Panics
    /// Panics if the position is beyond the end of the log.
    pub fn synced(&mut self, up_to: Position) {
        assert!(up_to <= self.end(), "a sync was reported beyond the end of the log");
        self.durable = self.durable.max(up_to);
        while let Some((_, durable)) = self.claims.pop_front_if(|(end, _)| *end <= self.durable) {
            self.known_durable = durable;
        }
        while let Some((_, note)) = self.unsynced.pop_front_if(|(end, _)| *end <= self.durable) {
            self.retention.observe(note);
        }
    }

    /// Returns the position below which recovery detects any damage: a durable record shows that
    /// everything below it was durable.
    pub fn known_durable(&self) -> Position {
        self.known_durable
    }

    /// Returns the position of the first record that is kept.
    pub fn first(&self) -> Position {
        self.remains.base + SEGMENT_HEADER_BYTES as u64
    }

    /// Returns the number of segments that are kept.
    pub fn live_segments(&self) -> usize {
        self.starts.len()
    }

    /// Returns the groups that need the oldest segment.
    pub fn pinning(&self) -> impl Iterator<Item = u32> {
        self.retention.pinning()
    }

    /// Returns what each group needs of the log. `applied` returns the index up to which a group
    /// has applied its entries.
    pub fn retained(&self, applied: impl Fn(u32) -> u64) -> impl Iterator<Item = Retained> {
        let at = |sequence| sequence * self.segment_bytes;
        self.retention.groups(applied).map(move |(group, needs)| Retained {
            group,
            from: at(needs.first),
            unfinished: needs.unfinished.map(at),
            unapplied: needs.unapplied.map(at),
        })
    }

    /// Marks all records of a group as no longer needed.
    pub fn forget(&mut self, group: u32) {
        self.retention.forget(group);
    }

    /// Returns the bytes of the log.
    pub fn remains(&self) -> &Remains {
        &self.remains
    }

    /// Recovers a log from bytes that may be torn or damaged, and passes its records to `visit` in
    /// order. Cuts a tail that no record shows to have been durable. `trust_damage` is a planted
    /// fault, to test the checks: it cuts the log at the first damage of any kind.
    ///
    /// # Errors
    /// [`MemoryLogDamage`] if durable bytes are damaged. Not retryable.
    pub fn recover(
        owner: u64,
        segment_bytes: u64,
        mut remains: Remains,
        trust_damage: bool,
        visit: &mut impl FnMut(Record<'_>),
    ) -> Result<Self, MemoryLogDamage> {
        let bytes = &mut remains.bytes;
        if bytes.len() < SEGMENT_HEADER_BYTES
            || bytes[..SEGMENT_HEADER_BYTES].iter().any(|byte| *byte != 0)
        {
            return Err(MemoryLogDamage { position: remains.base });
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let Remains { base, previous_crc, .. } = remains;
        let scan = Records::new(&remains.bytes, owner, base, previous_crc).finish();
        let position = base + scan.end as u64;
        if !trust_damage && was_durable_beyond(&remains.bytes, owner, base, scan.end, position) {
            return Err(MemoryLogDamage { position });
        }
        remains.bytes.truncate(scan.end);
        let mut log = Self::with(owner, segment_bytes, remains.clone());
        for found in Records::new(&remains.bytes, owner, base, previous_crc) {
            log.begin_segment(found.position, found.previous_crc);
            log.retention.observe(Note::new(&found.record, found.position / segment_bytes));
            visit(found.record);
        }
        log.last_crc = scan.last_crc;
        Ok(log)
    }
}

impl fmt::Display for MemoryLogDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a durable record at {} does not verify", self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordKind;

    const SEGMENT_BYTES: u64 = 1 << 20;

    fn entry(index: u64, payload: &[u8]) -> Record<'_> {
        Record { kind: RecordKind::Entry, group: 1, term: 1, index, part: 0, payload }
    }

    fn log_of(records: u64, synced: u64) -> MemoryLog {
        let mut log = MemoryLog::new(9, SEGMENT_BYTES);
        for index in 1..=records {
            log.append(&entry(index, &vec![7; 20 + index as usize]));
            if index == synced {
                log.synced(log.end());
            }
        }
        log
    }

    fn recover(remains: Remains, trust_damage: bool) -> Result<(MemoryLog, u64), MemoryLogDamage> {
        let mut records = 0;
        let log =
            MemoryLog::recover(9, SEGMENT_BYTES, remains, trust_damage, &mut |_| records += 1)?;
        Ok((log, records))
    }

    #[test]
    fn recovery_returns_records_and_continues_appending() {
        let (mut log, records) = recover(log_of(5, 0).remains().clone(), false).unwrap();
        assert_eq!(records, 5);
        log.append(&entry(6, &[1]));
        assert_eq!(recover(log.remains().clone(), false).unwrap().1, 6);
    }

    #[test]
    fn recovery_truncates_torn_tail_and_refuses_damage() {
        let log = log_of(6, 3);
        let synced = usize::try_from(log.durable()).unwrap();
        let mut torn = log.remains().clone();
        torn.bytes[synced + 10] ^= 1;
        assert_eq!(recover(torn, false).unwrap().1, 3);
        let mut damaged = log.remains().clone();
        damaged.bytes[SEGMENT_HEADER_BYTES + 100] ^= 1;
        assert!(recover(damaged.clone(), false).is_err());
        assert_eq!(recover(damaged, true).unwrap().1, 1);
    }

    /// Flips each bit of a small log. Recovery refuses the log, or cuts it within the part that no
    /// record shows to be durable. It never returns a record that was not written.
    #[test]
    fn recovery_refuses_bit_flip_or_truncates_unsynced_tail() {
        let mut log = log_of(5, 3);
        log.append(&entry(6, &[9; 30]));
        let known = usize::try_from(log.durable()).unwrap();
        let whole = log.remains().clone();
        let records = |remains: Remains| {
            let mut records = Vec::new();
            let visit =
                &mut |record: Record<'_>| records.push((record.index, record.payload.to_vec()));
            MemoryLog::recover(9, SEGMENT_BYTES, remains, false, visit).map(|_| records)
        };
        let expected = records(whole.clone()).unwrap();
        let mut refused = 0;
        for bit in SEGMENT_HEADER_BYTES * 8..whole.bytes.len() * 8 {
            let mut flipped = whole.clone();
            flipped.bytes[bit / 8] ^= 1 << (bit % 8);
            match records(flipped) {
                Err(_) => {
                    assert!(bit / 8 < known, "bit {bit} was not durable");
                    refused += 1;
                }
                Ok(found) => {
                    assert_eq!(found, expected[..found.len()], "bit {bit}");
                    assert!(found.len() >= 3, "bit {bit}");
                }
            }
        }
        assert!(refused > 1_000);
    }

    #[test]
    fn head_truncation_waits_for_durable_snapshot() {
        const SEGMENT_BYTES: u64 = 1000;
        let mut log = MemoryLog::new(9, SEGMENT_BYTES);
        for index in 1..=100 {
            log.append(&entry(index, &[7; 100]));
        }
        log.synced(log.end());
        let kinds = [(RecordKind::Snapshot, 0), (RecordKind::SnapshotEnd, 1)];
        for (kind, part) in kinds {
            let payload = &[1; 100];
            log.append(&Record { kind, group: 1, term: 1, index: 100, part, payload });
        }
        for index in 101..=120 {
            log.append(&entry(index, &[7; 100]));
        }
        let first = MemoryLog::new(9, SEGMENT_BYTES).first();
        assert_eq!(log.first(), first);
        log.synced(log.end());
        for index in 121..=140 {
            log.append(&entry(index, &[7; 100]));
        }
        assert!(log.first() > first + 10_000);
        let mut left = Vec::new();
        let visit = &mut |record: Record<'_>| left.push(record.index);
        MemoryLog::recover(9, SEGMENT_BYTES, log.remains().clone(), false, visit).unwrap();
        assert_eq!(left[left.len() - 42..][..3], [100, 100, 101]);
        assert!(left.len() < 60, "{left:?}");
    }
}
