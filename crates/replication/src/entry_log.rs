//! A group's entries in memory, and which of its writes are durable.
//!
//! The shard numbers all writes of its groups, in the order in which they enter its log. A turn's
//! writes get their numbers when it ends ([`EntryLog::number_writes`]).

use std::collections::VecDeque;

use bytes::Bytes;
use palisade_sequence::Sequence;

use crate::{
    Append, Effects, Entry, SnapshotPart,
    contract::{Name, RECORD_OVERHEAD_BYTES},
};

/// The entries of a group after `base`, and its writes that are not durable yet.
#[derive(Debug)]
pub(crate) struct EntryLog {
    name: Name,
    /// Index and term of the last entry that was dropped from memory.
    base: (u64, u64),
    entries: Sequence<Entry>,
    /// Payload and overhead of the entries, in bytes.
    bytes: usize,
    /// Writes that are not known to be durable, oldest first: entries, states and parts of
    /// snapshots.
    pending: VecDeque<Pending>,
    /// How many of `pending`, at its end, have no number yet.
    unnumbered: usize,
    /// How many of `pending` are states.
    pending_states: usize,
    durable_index: u64,
    /// True if the disk holds entries after the last one, which were removed here.
    has_removed: bool,
}

#[derive(Debug)]
struct Pending {
    /// The shard's number of this write; `u64::MAX` before it is known.
    number: u64,
    is_state: bool,
    /// Index up to which the log is durable once this write is.
    index: u64,
    asked_us: u64,
}

impl EntryLog {
    /// Creates a log from what recovery found. All of it is durable: `base`, the last entry of the
    /// snapshot, and the entries after it.
    pub(crate) fn new(name: Name, base: (u64, u64), entries: Vec<Entry>) -> Self {
        let bytes = entries.iter().map(bytes_of).sum();
        let mut sequence = Sequence::starting_at(base.0 + 1);
        for entry in entries {
            assert_eq!(entry.index, sequence.next(), "{name}: the recovered log has a gap");
            sequence.push(entry);
        }
        Self {
            name,
            base,
            durable_index: sequence.next() - 1,
            bytes,
            entries: sequence,
            pending: VecDeque::new(),
            unnumbered: 0,
            pending_states: 0,
            has_removed: false,
        }
    }

    /// Returns the index of the first entry in memory.
    pub(crate) fn first_index(&self) -> u64 {
        self.entries.first()
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.entries.next() - 1
    }

    /// Returns the term of the last entry, or 0.
    pub(crate) fn last_term(&self) -> u64 {
        self.entries.back().map_or(self.base.1, |entry| entry.term)
    }

    /// Returns the index and term of the last entry that was dropped from memory.
    pub(crate) fn base(&self) -> (u64, u64) {
        self.base
    }

    /// Returns the term of an entry, or `None` after the last entry or before `base`.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 { Some(self.base.1) } else { Some(self.entry(index)?.term) }
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// Returns at most [`MAX_MESSAGE_ENTRIES`] entries from index `from` on, of at most `max_bytes`
    /// together. A larger first entry is returned alone. Returns none if `from` lies before the
    /// first entry in memory.
    pub(crate) fn slice(&self, from: u64, max_bytes: usize) -> Vec<Entry> {
        if from < self.first_index() {
            return Vec::new();
        }
        let mut bytes = 0;
        let within = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += bytes_of(entry);
            first || bytes <= max_bytes
        };
        let entries = self.entries.iter_from(from).take(MAX_MESSAGE_ENTRIES);
        entries.take_while(within).cloned().collect()
    }

    /// Appends an entry in memory, and requests its write.
    pub(crate) fn append<M>(&mut self, entry: Entry, now_us: u64, effects: &mut Effects<M>) {
        assert_eq!(entry.index, self.last_index() + 1, "{}: an append leaves a gap", self.name);
        assert!(entry.term >= self.last_term(), "{}: an append goes back in term", self.name);
        effects.appends.push(Append::Entry(entry.clone()));
        self.has_removed = false;
        self.bytes += bytes_of(&entry);
        self.entries.push(entry);
        self.add_pending(false, now_us);
    }

    /// Requests the write of a state.
    pub(crate) fn append_state<M>(
        &mut self,
        term: u64,
        payload: Bytes,
        now_us: u64,
        effects: &mut Effects<M>,
    ) {
        effects.appends.push(Append::State { term, payload });
        self.add_pending(true, now_us);
    }

    /// Requests the write of a part of a snapshot. The last part drops entries up to its index,
    /// oldest first, until at most `keep_bytes` of entries remain. Returns true if the last part
    /// replaced the log, because the log lacked the snapshot's last entry. The log is then empty
    /// after that entry.
    pub(crate) fn append_snapshot<M>(
        &mut self,
        part: SnapshotPart,
        keep_bytes: usize,
        now_us: u64,
        effects: &mut Effects<M>,
    ) -> bool {
        let SnapshotPart { index, term, last, .. } = part;
        let replaces = last && index > self.base.0 && self.term_at(index) != Some(term);
        // A snapshot at the last entry also replaces those on disk that were removed here.
        let replaces_on_disk = replaces || last && self.has_removed && index == self.last_index();
        self.has_removed &= !replaces_on_disk;
        effects.appends.push(Append::Snapshot { part, replaces: replaces_on_disk });
        if replaces {
            self.entries = Sequence::starting_at(index + 1);
            self.bytes = 0;
            // Nothing that the snapshot holds is durable before the snapshot is.
            self.durable_index = self.durable_index.min(self.base.0);
            self.base = (index, term);
            for pending in &mut self.pending {
                pending.index = pending.index.min(self.durable_index);
            }
        }
        self.add_pending(false, now_us);
        if last && !replaces {
            self.forget(index, keep_bytes);
        }
        replaces
    }

    /// Drops entries up to `index`, oldest first, until at most `keep_bytes` of entries remain.
    fn forget(&mut self, index: u64, keep_bytes: usize) {
        while let Some(first) = self.entries.front()
            && first.index <= index
            && self.bytes > keep_bytes
        {
            self.base = (first.index, first.term);
            self.bytes -= bytes_of(first);
            self.entries.pop_front();
        }
    }

    fn add_pending(&mut self, is_state: bool, asked_us: u64) {
        let index = self.last_index();
        self.pending.push_back(Pending { number: u64::MAX, is_state, index, asked_us });
        self.unnumbered += 1;
        self.pending_states += usize::from(is_state);
    }

    /// Numbers the writes requested since the last call from `written + 1` on.
    pub(crate) fn number_writes(&mut self, written: u64) {
        let first = self.pending.len() - self.unnumbered;
        for (pending, number) in self.pending.range_mut(first..).zip(written + 1..) {
            pending.number = number;
        }
        self.unnumbered = 0;
    }

    /// Returns the number of the last write, or 0 if all writes are durable.
    ///
    /// # Panics
    ///
    /// If a write has no number yet.
    pub(crate) fn last_unsynced(&self) -> u64 {
        assert_eq!(self.unnumbered, 0, "{}: a write has no number yet", self.name);
        self.pending.back().map_or(0, |pending| pending.number)
    }

    /// Returns at most how many bytes the entries in memory take in the log.
    pub(crate) fn entries_bytes(&self) -> u64 {
        let entries = self.entries.next() - self.entries.first();
        self.bytes as u64 + entries * (RECORD_OVERHEAD_BYTES - ENTRY_OVERHEAD_BYTES as u64)
    }

    /// Returns true if the disk holds entries after the last one, which were removed here. The next
    /// snapshot at the last entry replaces them.
    pub(crate) fn has_removed(&self) -> bool {
        self.has_removed
    }

    /// Removes the entries from `index` on. On disk, the next append at `index` replaces them, or
    /// the next snapshot at the entry before it.
    pub(crate) fn truncate(&mut self, index: u64) {
        let is_here = (self.first_index()..=self.last_index() + 1).contains(&index);
        assert!(is_here, "{}: only entries that are here are removed", self.name);
        self.bytes -= self.entries.iter_from(index).map(bytes_of).sum::<usize>();
        self.entries.truncate(index);
        self.has_removed = true;
        let last = self.last_index();
        self.durable_index = self.durable_index.min(last);
        for pending in &mut self.pending {
            pending.index = pending.index.min(last);
        }
    }

    /// Records that the writes up to a number are durable.
    pub(crate) fn set_durable(&mut self, number: u64) {
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.number <= number) {
            self.durable_index = pending.index;
            self.pending_states -= usize::from(pending.is_state);
        }
    }

    /// Returns the index of the last entry that is durable here with all entries before it.
    pub(crate) fn durable_index(&self) -> u64 {
        self.durable_index
    }

    /// Returns when the oldest write that is not durable was requested.
    pub(crate) fn oldest_pending_us(&self) -> Option<u64> {
        Some(self.pending.front()?.asked_us)
    }

    /// Returns true if the last state that was written is durable.
    pub(crate) fn is_state_durable(&self) -> bool {
        self.pending_states == 0
    }

    /// Returns about how many bytes the last `count` entries take. Takes no time for each of them.
    pub(crate) fn bytes_of_last(&self, count: u64) -> u64 {
        let entries = self.entries.next() - self.entries.first();
        let share =
            self.bytes as u128 * u128::from(count.min(entries)) / u128::from(entries.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// Returns the bytes of payload after an index.
    pub(crate) fn payload_bytes_after(&self, index: u64) -> usize {
        let after = self.entries.iter().rev().take_while(|entry| entry.index > index);
        after.map(|entry| entry.payload.len()).sum()
    }
}

/// Limit of the entries in a message. The receiver processes a message in one turn.
const MAX_MESSAGE_ENTRIES: usize = 1024;

/// Size of an entry in a message beside its payload.
const ENTRY_OVERHEAD_BYTES: usize = 20;

/// Returns the approximate size of an entry in a message.
pub(crate) fn bytes_of(entry: &Entry) -> usize {
    entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use palisade_wire::{PeerAddress, RangeId};

    use super::*;
    use crate::EntryKind;

    fn log() -> EntryLog {
        EntryLog::new(Name { range: RangeId(1), me: PeerAddress::default() }, (0, 0), Vec::new())
    }

    fn entry(index: u64, term: u64) -> Entry {
        let payload = Bytes::from_static(b"12345");
        Entry { index, term, kind: EntryKind::Command, payload }
    }

    fn last_part(index: u64, term: u64) -> SnapshotPart {
        SnapshotPart { index, term, part: 1, last: true, payload: Bytes::new() }
    }

    #[test]
    fn durable_index_skips_entries_replaced_before_sync() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        for index in 1..=3 {
            log.append(entry(index, 1), 0, effects);
        }
        log.number_writes(0);
        log.set_durable(1);
        assert_eq!(log.durable_index(), 1);
        log.truncate(2);
        log.append(entry(2, 2), 0, effects);
        log.number_writes(3);
        // The two replaced entries are durable, their replacement is not.
        log.set_durable(3);
        assert_eq!(log.durable_index(), 1);
        log.set_durable(4);
        assert_eq!(log.durable_index(), 2);
        assert_eq!(log.term_at(2), Some(2));
    }

    #[test]
    fn snapshot_at_last_entry_replaces_entries_that_were_removed() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        let replaces = |log: &mut EntryLog, index, effects: &mut Effects<()>| {
            log.append_snapshot(last_part(index, 1), usize::MAX, 0, effects);
            matches!(effects.appends.pop(), Some(Append::Snapshot { replaces: true, .. }))
        };
        for index in 1..=4 {
            log.append(entry(index, 1), 0, effects);
        }
        log.truncate(3);
        assert!(!replaces(&mut log, 1, effects), "entry 2 is still needed");
        assert!(replaces(&mut log, 2, effects));
        assert!(!replaces(&mut log, 2, effects), "nothing is left to replace");
        assert_eq!((log.first_index(), log.last_index()), (1, 2));
        log.truncate(2);
        log.append(entry(2, 1), 0, effects);
        assert!(!replaces(&mut log, 2, effects), "the append has replaced it");
    }

    #[test]
    fn slice_respects_byte_limit_after_first_entry() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        for index in 1..=4 {
            log.append(entry(index, 1), 0, effects);
        }
        let lens = [1, 25, 49, 50, 1000].map(|max_bytes| log.slice(2, max_bytes).len());
        assert_eq!(lens, [1, 1, 1, 2, 3]);
        assert!(log.slice(5, 1000).is_empty());
    }

    #[test]
    fn snapshot_within_log_truncates_head_except_kept_bytes() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        for index in 1..=6 {
            log.append(entry(index, 1), 0, effects);
        }
        assert!(!log.append_snapshot(last_part(4, 1), 3 * 25, 0, effects));
        assert_eq!((log.first_index(), log.last_index()), (4, 6));
        assert_eq!(log.term_at(3), Some(1));
        assert_eq!(log.term_at(2), None);
        assert!(!log.append_snapshot(last_part(5, 1), 0, 0, effects));
        assert_eq!((log.first_index(), log.last_index()), (6, 6));
        log.number_writes(0);
        log.set_durable(8);
        assert_eq!(log.durable_index(), 6);
        assert!(log.slice(5, 100).is_empty());
        assert_eq!(log.slice(6, 100), [entry(6, 1)]);
    }

    #[test]
    fn snapshot_beyond_log_replaces_it_and_awaits_sync() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        for index in 1..=3 {
            log.append(entry(index, 1), 0, effects);
        }
        log.number_writes(0);
        log.set_durable(2);
        assert!(log.append_snapshot(last_part(10, 2), 1000, 0, effects));
        log.number_writes(3);
        assert_eq!((log.first_index(), log.last_index(), log.last_term()), (11, 10, 2));
        log.set_durable(3);
        assert!(log.durable_index() < 10);
        log.set_durable(4);
        assert_eq!(log.durable_index(), 10);
    }
}
