//! A log whose head was truncated replays to the same state as the full log.
#![allow(missing_docs, reason = "a test")]

use bytes::Bytes;
use palisade_replication::{Append, Entry, EntryKind, SnapshotPart};
use palisade_shard::{Replayed, record_of};
use palisade_wal::{MemoryLog, Remains};
use palisade_wire::RangeId;

const OWNER: u64 = 9;
const GROUPS: usize = 4;

/// Model of a group: its log so far, and what it may write next.
#[derive(Debug, Default)]
struct Group {
    term: u64,
    /// Index and term of the entry at which the last snapshot ends.
    base: (u64, u64),
    /// Terms of the entries after `base`.
    terms: Vec<u64>,
    commit_index: u64,
    snapshot: Option<Snapshot>,
}

#[derive(Debug)]
struct Snapshot {
    index: u64,
    term: u64,
    next_part: u32,
    /// True if a leader sent it; false for a checkpoint of the group's own state.
    is_foreign: bool,
}

impl Group {
    fn last_index(&self) -> u64 {
        self.base.0 + self.terms.len() as u64
    }

    fn term_at(&self, index: u64) -> u64 {
        let slot = (index - self.base.0) as usize;
        if slot == 0 { self.base.1 } else { self.terms[slot - 1] }
    }

    fn act(&mut self, random: &mut fastrand::Rng) -> Option<Append> {
        if let Some(snapshot) = &self.snapshot
            && (snapshot.is_foreign || random.bool())
        {
            return Some(self.next_part());
        }
        match random.u8(0..20) {
            0..10 => {
                self.term = self.term.max(1);
                self.terms.push(self.term);
                Some(entry(self.last_index(), self.term))
            }
            10 | 11 if self.last_index() > self.commit_index => {
                // Another leader replaces the entries from this index on.
                let index = random.u64(self.commit_index + 1..=self.last_index());
                self.term += 1;
                self.terms.truncate((index - self.base.0 - 1) as usize);
                self.terms.push(self.term);
                Some(entry(index, self.term))
            }
            12..15 => {
                self.commit_index = random.u64(self.commit_index..=self.last_index());
                None
            }
            15 => Some(Append::State { term: self.term, payload: Bytes::from("state") }),
            16 | 17 if self.commit_index > 0 => {
                let (index, term) = (self.commit_index, self.term_at(self.commit_index));
                self.snapshot = Some(Snapshot { index, term, next_part: 0, is_foreign: false });
                Some(self.next_part())
            }
            18 => {
                self.term += 1;
                let (index, term) = (self.last_index() + random.u64(1..5), self.term);
                self.snapshot = Some(Snapshot { index, term, next_part: 0, is_foreign: true });
                Some(self.next_part())
            }
            _ => {
                // The transfer is abandoned.
                self.snapshot = None;
                None
            }
        }
    }

    fn next_part(&mut self) -> Append {
        let snapshot = self.snapshot.as_mut().expect("one is under way");
        let Snapshot { index, term, next_part: part, is_foreign } = *snapshot;
        snapshot.next_part += 1;
        // The number of parts depends on the index alone: snapshots up to the same entry are equal.
        let last = u64::from(part) > index % 3;
        if last {
            self.snapshot = None;
            if is_foreign {
                self.terms.clear();
                self.commit_index = index;
            } else {
                self.terms.drain(..(index - self.base.0) as usize);
            }
            self.base = (index, term);
        }
        let payload = Bytes::from(format!("part {part} of {index}"));
        let part = SnapshotPart { index, term, part, last, payload };
        Append::Snapshot { part, replaces: last && is_foreign }
    }
}

fn entry(index: u64, term: u64) -> Append {
    let payload = Bytes::from(format!("{index}@{term}"));
    Append::Entry(Entry { index, term, kind: EntryKind::Command, payload })
}

fn replay(records: &[(RangeId, Append)]) -> String {
    let mut replayed = Replayed::default();
    records.iter().for_each(|(range, append)| replayed.visit(record_of(*range, append)));
    format!("{:?}", replayed.finish().expect("nothing was cut"))
}

#[test]
fn log_truncation_preserves_replayed_state() {
    let mut cuts = 0;
    for seed in 0..4_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let segment_bytes = random.u64(200..2_000);
        let mut log = MemoryLog::new(OWNER, segment_bytes);
        let mut groups: Vec<Group> = (0..GROUPS).map(|_| Group::default()).collect();
        let (mut written, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..400) {
            // Groups with higher numbers write less often.
            let at = random.usize(0..GROUPS).min(random.usize(0..GROUPS));
            if let Some(append) = groups[at].act(&mut random) {
                let range = RangeId(at as u32);
                ends.push(log.append(&record_of(range, &append)));
                written.push((range, append));
            }
            if random.u8(0..4) == 0 {
                log.synced(*ends.last().unwrap_or(&log.durable()));
            }
        }
        cuts += u64::from(log.first() > MemoryLog::new(OWNER, segment_bytes).first());
        let mut remains: Remains = log.remains().clone();
        let durable = remains.offset(log.durable());
        let torn_at = random.usize(durable..=remains.bytes.len());
        remains.bytes[torn_at..].fill(0);

        let mut replayed = Replayed::default();
        let visit = &mut |record: palisade_wal::Record<'_>| replayed.visit(record);
        let recovered = MemoryLog::recover(OWNER, segment_bytes, remains, false, visit).unwrap();
        let kept = ends.iter().filter(|end| **end <= recovered.end()).count();
        let found = replayed.finish().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(format!("{found:?}"), replay(&written[..kept]), "seed {seed}");
    }
    assert!(cuts > 1_000, "only {cuts} logs were cut");
}
