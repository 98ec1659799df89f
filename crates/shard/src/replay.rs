//! From log records to groups, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{Append, Entry, EntryKind, RecoveredGroup, RecoveredSnapshot};
use palisade_wal::{Record, RecordKind};
use palisade_wire::RangeId;
use thiserror::Error;

use crate::TestFault;

/// Stands for the shard itself in its log.
pub(crate) const SHARD_RECORD: RangeId = RangeId(u32::MAX);

/// What a shard's log held, record by record.
#[derive(Debug, Default)]
pub struct Replayed {
    groups: BTreeMap<RangeId, Group>,
    error: Option<ReplayError>,
}

#[derive(Debug, Default)]
struct Group {
    recovered: RecoveredGroup,
    /// A snapshot whose last part has not come yet.
    unfinished: RecoveredSnapshot,
}

/// What a shard's log held.
#[derive(Debug, Default)]
pub struct Recovered {
    pub(crate) groups: BTreeMap<RangeId, RecoveredGroup>,
    pub(crate) shard: Option<(u64, Bytes)>,
}

/// Why a log whose records verify still makes no sense. Not retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// An entry does not follow the ones before it.
    #[error(
        "the log of {range} has entry {index} where at most {expected} can follow: the log was \
         written by a faulty build; replace this replica"
    )]
    Gap {
        /// The group.
        range: RangeId,
        /// The entry's index.
        index: u64,
        /// The index after the last entry.
        expected: u64,
    },
}

/// The record that a write becomes.
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
        Append::Snapshot(part) => {
            let kind = if part.last { RecordKind::SnapshotEnd } else { RecordKind::Snapshot };
            let (term, index, payload) = (part.term, part.index, &part.payload);
            Record { kind, group, term, index, part: part.part, payload }
        }
    }
}

impl Replayed {
    /// Takes in the next record.
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
            RecordKind::Snapshot | RecordKind::SnapshotEnd => {
                let last = record.kind == RecordKind::SnapshotEnd;
                group.take_in(index, term, record.part, last, payload);
                return;
            }
            RecordKind::Seal => return,
        };
        let entries = &mut group.recovered.entries;
        let base = group.recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let expected = base + entries.len() as u64 + 1;
        if index > expected || index == 0 {
            self.error.get_or_insert(ReplayError::Gap { range, index, expected });
        } else if index > base {
            let keep = usize::try_from(index - base - 1).expect("it is at most a length");
            entries.truncate(keep);
            entries.push(Entry { index, term, kind, payload });
        }
    }

    /// What the log held, once every record was taken in.
    pub fn finish(self, fault: Option<TestFault>) -> Result<Recovered, ReplayError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let groups = self.groups.into_iter().map(|(range, group)| (range, group.recovered));
        let mut recovered = Recovered { groups: groups.collect(), shard: None };
        recovered.shard = recovered.groups.remove(&SHARD_RECORD).and_then(|group| group.state);
        if let Some(fault) = fault {
            recovered.break_promises(fault);
        }
        Ok(recovered)
    }
}

impl Group {
    fn take_in(&mut self, index: u64, term: u64, part: u32, last: bool, payload: Bytes) {
        if part == 0 {
            self.unfinished = RecoveredSnapshot { index, term, parts: Vec::new() };
        }
        let snapshot = &mut self.unfinished;
        let follows = part as usize == snapshot.parts.len();
        if (snapshot.index, snapshot.term) != (index, term) || !follows {
            // Of a transfer that was given up for another one.
            return;
        }
        snapshot.parts.push(payload);
        if !last {
            return;
        }
        let base = self.recovered.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        if index <= base {
            return;
        }
        let entries = &mut self.recovered.entries;
        let held = entries.iter().position(|entry| (entry.index, entry.term) == (index, term));
        match held {
            Some(at) => drop(entries.drain(..=at)),
            None => entries.clear(),
        }
        self.recovered.snapshot = Some(std::mem::take(&mut self.unfinished));
    }
}

impl Recovered {
    fn break_promises(&mut self, fault: TestFault) {
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
        Append::Snapshot(SnapshotPart { index, term, part, last, payload })
    }

    fn recover(appends: &[Append]) -> RecoveredGroup {
        let mut replayed = Replayed::default();
        for append in appends {
            replayed.visit(record_of(RangeId(1), append));
        }
        let mut recovered = replayed.finish(None).expect("there are no gaps");
        recovered.groups.remove(&RangeId(1)).expect("there were records")
    }

    fn indexes(group: &RecoveredGroup) -> Vec<(u64, u64)> {
        group.entries.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    #[test]
    fn a_later_entry_replaces_those_from_its_index_on() {
        let group = recover(&[entry(1, 1), entry(2, 1), entry(3, 1), entry(2, 2)]);
        assert_eq!(indexes(&group), [(1, 1), (2, 2)]);
    }

    #[test]
    fn a_whole_snapshot_takes_the_place_of_what_it_holds() {
        let before = [entry(1, 1), entry(2, 1), part(2, 1, 0, false), entry(3, 1)];
        let group = recover(&before);
        assert!(group.snapshot.is_none());
        let group = recover(&[&before[..], &[part(2, 1, 1, true)]].concat());
        assert_eq!(group.snapshot.as_ref().map(|s| (s.index, s.parts.len())), Some((2, 2)));
        assert_eq!(indexes(&group), [(3, 1)]);
    }

    #[test]
    fn a_snapshot_that_differs_from_the_log_replaces_it() {
        let group = recover(&[
            entry(1, 1),
            entry(2, 1),
            part(2, 2, 0, false),
            part(2, 2, 1, true),
            entry(3, 2),
        ]);
        assert_eq!(indexes(&group), [(3, 2)]);
        let group = recover(&[entry(1, 1), part(9, 2, 0, false), part(9, 2, 1, true)]);
        assert_eq!(indexes(&group), []);
    }

    #[test]
    fn parts_of_a_transfer_that_was_given_up_are_left_out() {
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
    fn a_gap_is_refused() {
        let mut replayed = Replayed::default();
        replayed.visit(record_of(RangeId(1), &entry(2, 1)));
        assert!(matches!(replayed.finish(None), Err(ReplayError::Gap { expected: 1, .. })));
    }
}
