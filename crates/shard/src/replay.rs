//! Converts between log records and the writes of groups, and recovers groups from a log.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{Append, Entry, EntryKind, RecoveredGroup, RecoveredSnapshot};
use palisade_wal::{Record, RecordKind};
use palisade_wire::RangeId;
use thiserror::Error;

use crate::TestFault;

/// The group number of the shard's own records.
pub(crate) const SHARD_RECORD: RangeId = RangeId(u32::MAX);

/// Collects a shard's log record by record.
#[derive(Debug, Default)]
pub struct Replayed {
    groups: BTreeMap<RangeId, ReplayedGroup>,
}

#[derive(Debug, Default)]
struct ReplayedGroup {
    recovered: RecoveredGroup,
    /// A snapshot whose last part has not been read yet.
    unfinished: RecoveredSnapshot,
    /// A gap before the first of the entries. It is valid where the log's head was truncated, if a
    /// later snapshot covers it.
    missing: Option<Missing>,
}

#[derive(Clone, Copy, Debug)]
struct Missing {
    /// The index that should follow the last entry or snapshot.
    expected: u64,
    /// Index of the first entry after the gap.
    first: u64,
}

/// What a shard's log held, for [`Shard::new`](crate::Shard::new).
#[derive(Debug, Default)]
pub struct Recovered {
    pub(crate) groups: BTreeMap<RangeId, RecoveredGroup>,
    pub(crate) shard: Option<(u64, Bytes)>,
}

/// Why the valid records of a log are inconsistent. Not retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// Entries are missing, and no snapshot covers them.
    #[error(
        "the log of {range} has entry {index} where at most {expected} can follow, and no snapshot \
         of what is between: the log was written by a faulty build; replace this replica"
    )]
    Gap {
        /// The range of the group.
        range: RangeId,
        /// Index of the first entry after the gap.
        index: u64,
        /// The index that should follow the last entry or snapshot.
        expected: u64,
    },
}

/// Returns the log record for a group's write.
pub fn record_of(range: RangeId, append: &Append) -> Record<'_> {
    let group = range.0;
    match append {
        Append::Entry(Entry { index, term, kind, payload }) => {
            let kind = match kind {
                EntryKind::Command => RecordKind::Entry,
                EntryKind::Members => RecordKind::Members,
            };
            Record { kind, group, term: *term, index: *index, part: 0, payload }
        }
        Append::State { term, payload } => {
            Record { kind: RecordKind::State, group, term: *term, index: 0, part: 0, payload }
        }
        Append::Snapshot { part, replaces } => {
            let kind = match (part.last, replaces) {
                (false, _) => RecordKind::Snapshot,
                (true, false) => RecordKind::SnapshotEnd,
                (true, true) => RecordKind::Replacement,
            };
            let (term, index, payload) = (part.term, part.index, &part.payload);
            Record { kind, group, term, index, part: part.part, payload }
        }
    }
}

impl Replayed {
    /// Adds the next record of the log.
    pub fn visit(&mut self, record: Record<'_>) {
        let range = RangeId(record.group);
        let group = self.groups.entry(range).or_default();
        let payload = Bytes::copy_from_slice(record.payload);
        let (index, term) = (record.index, record.term);
        let kind = match record.kind {
            RecordKind::Entry => EntryKind::Command,
            RecordKind::Members => EntryKind::Members,
            RecordKind::State => {
                group.recovered.state = Some((term, payload));
                return;
            }
            RecordKind::Snapshot | RecordKind::SnapshotEnd | RecordKind::Replacement => {
                if group.add_part(index, term, record.part, payload)
                    && record.kind != RecordKind::Snapshot
                {
                    group.finish_snapshot(record.kind == RecordKind::Replacement);
                }
                return;
            }
            RecordKind::Seal => return,
        };
        group.push(Entry { index, term, kind, payload });
    }

    /// Returns what the log held. Call it after all records were visited.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Gap`] if entries of a group are missing. Not retryable.
    pub fn finish(self) -> Result<Recovered, ReplayError> {
        let mut recovered = Recovered::default();
        for (range, group) in self.groups {
            if let Some(Missing { expected, first: index }) = group.missing {
                return Err(ReplayError::Gap { range, index, expected });
            }
            recovered.groups.insert(range, group.recovered);
        }
        recovered.shard = recovered.groups.remove(&SHARD_RECORD).and_then(|group| group.state);
        Ok(recovered)
    }
}

impl ReplayedGroup {
    /// Returns the index that precedes the first of the entries.
    fn base(&self) -> u64 {
        let of_snapshot = self.recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        self.missing.map_or(of_snapshot, |missing| missing.first.saturating_sub(1))
    }

    fn push(&mut self, entry: Entry) {
        let (base, index) = (self.base(), entry.index);
        let expected = base + self.recovered.entries.len() as u64 + 1;
        let entries = &mut self.recovered.entries;
        if index > expected || index == 0 {
            entries.clear();
            self.missing = Some(Missing { expected, first: index });
        } else if index > base {
            let keep = usize::try_from(index - base - 1).expect("it is at most a length");
            entries.truncate(keep);
        } else if let Some(missing) = &mut self.missing {
            entries.clear();
            missing.first = index;
        } else {
            // The snapshot covers it.
            return;
        }
        entries.push(entry);
    }

    /// Adds a part to the unfinished snapshot. Returns false unless it follows the last one.
    fn add_part(&mut self, index: u64, term: u64, part: u32, payload: Bytes) -> bool {
        if part == 0 {
            self.unfinished = RecoveredSnapshot { index, term, parts: Vec::new() };
        }
        let snapshot = &mut self.unfinished;
        let follows = part as usize == snapshot.parts.len();
        if (snapshot.index, snapshot.term) != (index, term) || !follows {
            // The transfer was abandoned, or its first parts were truncated with the log's head.
            return false;
        }
        snapshot.parts.push(payload);
        true
    }

    /// Replaces the entries that the finished snapshot covers, or all entries if `replaces`.
    fn finish_snapshot(&mut self, replaces: bool) {
        let snapshot = std::mem::take(&mut self.unfinished);
        let known = self.recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let is_known = snapshot.index == known && self.missing.is_none() && !replaces;
        if snapshot.index < known || is_known {
            return;
        }
        let entries = &mut self.recovered.entries;
        if replaces {
            entries.clear();
        } else {
            let held = entries.partition_point(|entry| entry.index <= snapshot.index);
            entries.drain(..held);
        }
        let expected = snapshot.index + 1;
        self.missing = entries.first().filter(|entry| entry.index > expected).map(|entry| {
            // Entries between the snapshot and this one may be truncated with the log's head.
            Missing { expected, first: entry.index }
        });
        self.recovered.snapshot = Some(snapshot);
    }
}

impl Recovered {
    /// Forgets what a planted fault forgets at a restart.
    pub(crate) fn break_promises(&mut self, fault: TestFault) {
        for (_, group) in self.groups.iter_mut().filter(|(range, _)| **range != RangeId::CONTROL) {
            match fault {
                TestFault::ForgetOnRestart { entries } => {
                    group.entries.truncate(group.entries.len().saturating_sub(entries));
                }
                TestFault::ForgetVotes => group.state = None,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_replication::SnapshotPart;

    use super::*;

    fn entry(index: u64, term: u64) -> Append {
        let payload = Bytes::from(format!("{index}@{term}"));
        Append::Entry(Entry { index, term, kind: EntryKind::Command, payload })
    }

    fn part(index: u64, term: u64, part: u32, last: bool) -> Append {
        let payload = Bytes::from(format!("part {part} of {index}"));
        let part = SnapshotPart { index, term, part, last, payload };
        Append::Snapshot { part, replaces: false }
    }

    fn replacement(index: u64, term: u64) -> [Append; 2] {
        let mut parts = [part(index, term, 0, false), part(index, term, 1, true)];
        if let Append::Snapshot { replaces, .. } = &mut parts[1] {
            *replaces = true;
        }
        parts
    }

    fn recover(appends: &[Append]) -> RecoveredGroup {
        let mut replayed = Replayed::default();
        for append in appends {
            replayed.visit(record_of(RangeId(1), append));
        }
        let mut recovered = replayed.finish().expect("there are no gaps");
        recovered.groups.remove(&RangeId(1)).expect("there were records")
    }

    fn indexes(group: &RecoveredGroup) -> Vec<(u64, u64)> {
        group.entries.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    #[test]
    fn later_entry_replaces_suffix_from_its_index() {
        let group = recover(&[entry(1, 1), entry(2, 1), entry(3, 1), entry(2, 2)]);
        assert_eq!(indexes(&group), [(1, 1), (2, 2)]);
    }

    #[test]
    fn complete_snapshot_replaces_covered_entries() {
        let before = [entry(1, 1), entry(2, 1), part(2, 1, 0, false), entry(3, 1)];
        let group = recover(&before);
        assert!(group.snapshot.is_none());
        let group = recover(&[&before[..], &[part(2, 1, 1, true)]].concat());
        assert_eq!(group.snapshot.as_ref().map(|s| (s.index, s.parts.len())), Some((2, 2)));
        assert_eq!(indexes(&group), [(3, 1)]);
    }

    #[test]
    fn snapshot_conflicting_with_log_replaces_it() {
        let before = [entry(1, 1), entry(2, 1), entry(3, 1)];
        let group = recover(&[&before[..], &replacement(2, 2), &[entry(3, 2)]].concat());
        assert_eq!(indexes(&group), [(3, 2)]);
        let group = recover(&[&before[..1], &replacement(9, 2)].concat());
        assert_eq!(indexes(&group), []);
    }

    #[test]
    fn snapshot_ignores_parts_of_abandoned_transfer() {
        let group = recover(&[
            part(5, 1, 0, false),
            part(7, 1, 0, false),
            part(5, 1, 1, true),
            part(7, 1, 1, false),
            part(7, 1, 2, true),
        ]);
        assert_eq!(group.snapshot.map(|s| (s.index, s.parts.len())), Some((7, 3)));
    }

    #[test]
    fn gap_is_refused_unless_snapshot_covers_it() {
        let mut replayed = Replayed::default();
        replayed.visit(record_of(RangeId(1), &entry(2, 1)));
        assert!(matches!(replayed.finish(), Err(ReplayError::Gap { expected: 1, .. })));
        let cut = [
            part(2, 1, 3, true),
            entry(4, 1),
            entry(5, 1),
            entry(6, 1),
            part(5, 1, 0, false),
            entry(7, 1),
            part(5, 1, 1, true),
        ];
        let group = recover(&cut);
        assert_eq!(indexes(&group), [(6, 1), (7, 1)]);
        assert_eq!(group.snapshot.map(|snapshot| snapshot.index), Some(5));
    }

    #[test]
    fn gap_after_snapshot_needs_later_snapshot() {
        let log = [part(2, 1, 0, false), part(2, 1, 1, true), entry(9, 2)];
        let mut replayed = Replayed::default();
        log.iter().for_each(|append| replayed.visit(record_of(RangeId(1), append)));
        assert!(matches!(replayed.finish(), Err(ReplayError::Gap { expected: 3, .. })));
        let more = [part(9, 2, 0, false), part(9, 2, 1, true), entry(10, 2)];
        let group = recover(&[&log[..], &more].concat());
        assert_eq!(indexes(&group), [(10, 2)]);
        // A gap follows a snapshot, where the head was truncated: the entries after it are kept.
        let log = [part(5, 1, 0, false), entry(7, 1), part(5, 1, 1, true), entry(8, 1)];
        let more = [part(6, 1, 0, false), part(6, 1, 1, true)];
        let group = recover(&[&log[..], &more].concat());
        assert_eq!(indexes(&group), [(7, 1), (8, 1)]);
    }
}
