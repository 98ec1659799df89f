//! Tracks which segments of a log are still needed.
//!
//! The problem: many groups share a log, and a group that was last written long ago still needs
//! those records. Asking each group for a position and cutting below the lowest one would depend on
//! the bookkeeping of every group, and could count records that are not durable yet.
//!
//! So the log derives it from the records alone. It keeps for each group:
//! - the last state;
//! - the last complete snapshot, from its first part on, and the parts of one that is being
//!   written;
//! - the entries after that snapshot.
//!
//! Only durable records count: if a crash loses a record, the records that it replaced are needed
//! again. These rules must match those of replay; the simulator checks that.

use std::collections::BTreeMap;

use crate::{Record, RecordKind};

/// The fields of a record that decide what is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub(crate) kind: RecordKind,
    pub(crate) group: u32,
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) part: u32,
    /// Sequence of the record's segment.
    pub(crate) sequence: u64,
}

/// The segments that all groups need.
#[derive(Debug, Default)]
pub(crate) struct Retention {
    groups: BTreeMap<u32, Needs>,
    /// For each segment, the number of groups whose oldest needed segment it is.
    oldest: BTreeMap<u64, usize>,
}

/// The segments of a group that decide what rewriting its state releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeededSegments {
    /// The first segment that the group needs.
    pub(crate) first: u64,
    /// The first segment of the snapshot that is being written.
    pub(crate) unfinished: Option<u64>,
    /// The first segment with entries that are not applied. A checkpoint does not release it.
    pub(crate) unapplied: Option<u64>,
}

/// The segments that one group needs. Kept small, because there are many groups and most are idle.
#[derive(Debug, Default)]
struct Needs {
    /// Segment of the last state.
    state: Option<u64>,
    /// First segment of the last complete snapshot, and its index.
    snapshot: Option<(u64, u64)>,
    unfinished: Option<Box<UnfinishedSnapshot>>,
    /// Segments with entries, in order.
    entries: Vec<Entries>,
}

#[derive(Debug)]
struct Entries {
    sequence: u64,
    /// Index of the group's last entry in the segment that no later segment has replaced.
    last_index: u64,
}

/// A snapshot whose last part was not observed yet.
#[derive(Debug)]
struct UnfinishedSnapshot {
    sequence: u64,
    index: u64,
    term: u64,
    parts: u32,
}

impl Note {
    pub(crate) fn new(record: &Record<'_>, sequence: u64) -> Self {
        let Record { kind, group, term, index, part, .. } = *record;
        Self { kind, group, term, index, part, sequence }
    }
}

impl Retention {
    /// Takes in the next durable record.
    pub(crate) fn observe(&mut self, note: Note) {
        let needs = self.groups.entry(note.group).or_default();
        let before = needs.oldest();
        needs.observe(note);
        let after = needs.oldest();
        if before != after {
            self.moved(before, after);
        }
    }

    /// Marks all records of a group as no longer needed.
    pub(crate) fn forget(&mut self, group: u32) {
        if let Some(needs) = self.groups.remove(&group) {
            self.moved(needs.oldest(), None);
        }
    }

    /// Returns the first segment that any group needs.
    pub(crate) fn first_needed(&self) -> Option<u64> {
        self.oldest.keys().next().copied()
    }

    /// Returns the groups that need the first needed segment.
    pub(crate) fn pinning(&self) -> impl Iterator<Item = u32> {
        let first = self.first_needed();
        let pinning = move |(_, needs): &(&u32, &Needs)| needs.oldest() == first;
        self.groups.iter().filter(pinning).map(|(group, _)| *group)
    }

    /// Returns what each group needs. `applied` returns the index up to which a group has applied
    /// its entries.
    pub(crate) fn groups(
        &self,
        applied: impl Fn(u32) -> u64,
    ) -> impl Iterator<Item = (u32, NeededSegments)> {
        self.groups.iter().filter_map(move |(group, needs)| {
            let unfinished = needs.unfinished.as_ref().map(|unfinished| unfinished.sequence);
            let applied = applied(*group);
            let unapplied = needs.entries.iter().find(|entries| entries.last_index > applied);
            let unapplied = unapplied.map(|entries| entries.sequence);
            Some((*group, NeededSegments { first: needs.oldest()?, unfinished, unapplied }))
        })
    }

    fn moved(&mut self, from: Option<u64>, to: Option<u64>) {
        if let Some(from) = from {
            let groups = self.oldest.get_mut(&from).expect("it was counted there");
            *groups -= 1;
            if *groups == 0 {
                self.oldest.remove(&from);
            }
        }
        if let Some(to) = to {
            *self.oldest.entry(to).or_default() += 1;
        }
    }
}

impl Needs {
    fn oldest(&self) -> Option<u64> {
        let Self { state, snapshot, unfinished, entries } = self;
        let snapshot = snapshot.map(|(sequence, _)| sequence);
        let unfinished = unfinished.as_ref().map(|unfinished| unfinished.sequence);
        let entries = entries.first().map(|entries| entries.sequence);
        [*state, snapshot, unfinished, entries].into_iter().flatten().min()
    }

    fn observe(&mut self, note: Note) {
        match note.kind {
            RecordKind::Entry | RecordKind::Members => self.observe_entry(note),
            RecordKind::State => self.state = Some(note.sequence),
            RecordKind::Snapshot | RecordKind::SnapshotEnd | RecordKind::Replacement => {
                self.observe_part(note);
            }
            RecordKind::Seal => {}
        }
    }

    fn observe_entry(&mut self, note: Note) {
        let Note { index, sequence, .. } = note;
        // This entry replaces all earlier ones at or above its index.
        for earlier in self.entries.iter_mut().rev().take_while(|e| e.last_index >= index) {
            earlier.last_index = index.saturating_sub(1);
        }
        match self.entries.last_mut().filter(|last| last.sequence == sequence) {
            Some(last) => last.last_index = index,
            None => {
                if self.entries.is_empty() {
                    self.entries.reserve_exact(1);
                }
                self.entries.push(Entries { sequence, last_index: index });
            }
        }
    }

    fn observe_part(&mut self, note: Note) {
        let Note { index, term, part, sequence, .. } = note;
        if part == 0 {
            self.unfinished =
                Some(Box::new(UnfinishedSnapshot { sequence, index, term, parts: 0 }));
        }
        let Some(unfinished) = &mut self.unfinished else { return };
        if (unfinished.index, unfinished.term, unfinished.parts) != (index, term, part) {
            return;
        }
        unfinished.parts += 1;
        if note.kind != RecordKind::Snapshot {
            let from = unfinished.sequence;
            self.unfinished = None;
            if self.snapshot.is_none_or(|(_, known)| known <= index) {
                self.snapshot = Some((from, index));
                let replaces = note.kind == RecordKind::Replacement;
                self.entries.retain(|entries| !replaces && entries.last_index > index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: RecordKind, group: u32, index: u64, part: u32, sequence: u64) -> Note {
        Note { kind, group, term: 1, index, part, sequence }
    }

    fn entry(group: u32, index: u64, sequence: u64) -> Note {
        note(RecordKind::Entry, group, index, 0, sequence)
    }

    fn retention(notes: &[Note]) -> Retention {
        let mut retention = Retention::default();
        notes.iter().for_each(|note| retention.observe(*note));
        retention
    }

    fn snapshot(group: u32, index: u64, first: u64, last: u64) -> [Note; 2] {
        [
            note(RecordKind::Snapshot, group, index, 0, first),
            note(RecordKind::SnapshotEnd, group, index, 1, last),
        ]
    }

    #[test]
    fn first_needed_is_none_for_empty_log() {
        assert_eq!(Retention::default().first_needed(), None);
    }

    #[test]
    fn complete_snapshot_releases_covered_entries() {
        let mut log = retention(&[entry(1, 1, 0), entry(1, 2, 1), entry(1, 3, 2), entry(1, 4, 3)]);
        let [first, last] = snapshot(1, 3, 4, 5);
        log.observe(first);
        assert_eq!(log.first_needed(), Some(0));
        log.observe(last);
        assert_eq!(log.first_needed(), Some(3));
    }

    #[test]
    fn state_pins_segment_until_rewritten() {
        let state = |sequence| note(RecordKind::State, 1, 0, 0, sequence);
        let mut log = retention(&[state(0), entry(1, 1, 1)]);
        snapshot(1, 1, 2, 2).into_iter().for_each(|note| log.observe(note));
        assert_eq!(log.first_needed(), Some(0));
        log.observe(state(2));
        assert_eq!(log.first_needed(), Some(2));
    }

    #[test]
    fn replacement_releases_all_earlier_entries() {
        let mut log = retention(&[entry(1, 4, 0), entry(1, 9, 1)]);
        let [first, last] = snapshot(1, 6, 2, 3);
        log.observe(first);
        log.observe(Note { kind: RecordKind::Replacement, ..last });
        assert_eq!(log.first_needed(), Some(2));
    }

    #[test]
    fn pinning_names_group_that_lags() {
        let mut log = retention(&[entry(1, 1, 0), entry(2, 1, 0), entry(3, 1, 1)]);
        snapshot(1, 1, 2, 2).into_iter().for_each(|note| log.observe(note));
        assert_eq!(log.pinning().collect::<Vec<_>>(), [2]);
        log.forget(2);
        assert_eq!(log.pinning().collect::<Vec<_>>(), [3]);
        assert_eq!(log.first_needed(), Some(1));
    }

    #[test]
    fn entries_that_are_not_applied_are_reported() {
        let mut log = retention(&[entry(1, 1, 0), entry(1, 5, 2), entry(1, 9, 3)]);
        let [first, _] = snapshot(1, 5, 4, 4);
        log.observe(first);
        let needed = |applied| log.groups(|_| applied).map(|(_, needed)| needed).next();
        let needs = |unapplied| Some(NeededSegments { first: 0, unfinished: Some(4), unapplied });
        assert_eq!(needed(0), needs(Some(0)));
        assert_eq!(needed(1), needs(Some(2)));
        assert_eq!(needed(5), needs(Some(3)));
        assert_eq!(needed(9), needs(None));
    }

    #[test]
    fn replaced_entries_are_not_needed() {
        // Entries up to 9 of a failed leader, replaced from 3 on.
        let mut log = retention(&[entry(1, 2, 0), entry(1, 9, 1), entry(1, 3, 2), entry(1, 4, 2)]);
        snapshot(1, 3, 3, 3).into_iter().for_each(|note| log.observe(note));
        assert_eq!(log.first_needed(), Some(2));
    }

    #[test]
    fn incomplete_snapshot_releases_nothing() {
        let mut log = retention(&[entry(1, 5, 0)]);
        let [first, mut last] = snapshot(1, 5, 1, 1);
        log.observe(first);
        last.part = 2;
        log.observe(last);
        assert_eq!(log.first_needed(), Some(0));
        snapshot(1, 5, 3, 3).into_iter().for_each(|note| log.observe(note));
        assert_eq!(log.first_needed(), Some(3));
    }
}
