//! A group's entries in memory, and how many of its writes are durable.

use std::collections::VecDeque;

use crate::{Append, Effects, Entry, contract::Name};

/// The entries of a group from index 1 on.
///
/// Nothing is cut from the front yet: the log on disk, and so this, is bounded by the log's limit.
#[derive(Debug)]
pub(crate) struct EntryLog {
    name: Name,
    entries: Vec<Entry>,
    /// Writes asked for since the start, states included.
    appends: u64,
    /// Writes not known to be durable: how many there were with this one, and the last index that
    /// is durable with it.
    pending: VecDeque<(u64, u64)>,
    durable_index: u64,
    durable_appends: u64,
}

impl EntryLog {
    /// A log with what recovery found, which is durable.
    pub(crate) fn new(name: Name, entries: Vec<Entry>) -> Self {
        for (at, entry) in entries.iter().enumerate() {
            let expected = at as u64 + 1;
            assert_eq!(entry.index, expected, "{name}: the recovered log has a gap");
        }
        let durable_index = entries.len() as u64;
        Self {
            name,
            entries,
            appends: 0,
            pending: VecDeque::new(),
            durable_index,
            durable_appends: 0,
        }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Term of the last entry, or 0.
    pub(crate) fn last_term(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.term)
    }

    /// Term of an entry; 0 before the first, `None` after the last.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        match index {
            0 => Some(0),
            index => self.entries.get(slot(index)).map(|entry| entry.term),
        }
    }

    pub(crate) fn entry(&self, index: u64) -> &Entry {
        &self.entries[slot(index)]
    }

    /// Entries from `from` on: at least one, if there is any, and no more than `max_bytes` of
    /// payload beyond that.
    pub(crate) fn slice(&self, from: u64, max_bytes: usize) -> Vec<Entry> {
        let mut bytes = 0;
        let tail = self.entries.get(slot(from)..).unwrap_or_default();
        tail.iter()
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.payload.len() + ENTRY_OVERHEAD_BYTES;
                first || bytes <= max_bytes
            })
            .cloned()
            .collect()
    }

    /// Adds an entry at the end, in memory and to the writes.
    pub(crate) fn append<M>(&mut self, entry: Entry, effects: &mut Effects<M>) {
        assert_eq!(entry.index, self.last_index() + 1, "{}: an append leaves a gap", self.name);
        assert!(entry.term >= self.last_term(), "{}: an append goes back in term", self.name);
        effects.appends.push(Append::Entry(entry.clone()));
        self.entries.push(entry);
        self.appends += 1;
        self.pending.push_back((self.appends, self.last_index()));
    }

    /// Adds a state to the writes.
    pub(crate) fn append_state<M>(
        &mut self,
        term: u64,
        payload: bytes::Bytes,
        effects: &mut Effects<M>,
    ) {
        effects.appends.push(Append::State { term, payload });
        self.appends += 1;
        self.pending.push_back((self.appends, self.last_index()));
    }

    /// Removes the entries from `index` on. They vanish from the disk with the append that
    /// replaces them.
    pub(crate) fn truncate(&mut self, index: u64) {
        self.entries.truncate(slot(index));
        let last = self.last_index();
        self.durable_index = self.durable_index.min(last);
        for (_, durable_with) in &mut self.pending {
            *durable_with = (*durable_with).min(last);
        }
    }

    /// Takes note that the first `appends` writes are durable.
    pub(crate) fn set_durable(&mut self, appends: u64) {
        assert!(appends <= self.appends, "{}: more is durable than was written", self.name);
        while let Some((number, index)) = self.pending.front().copied()
            && number <= appends
        {
            self.durable_index = index;
            self.pending.pop_front();
        }
        self.durable_appends = self.durable_appends.max(appends);
    }

    /// The last entry that is durable here with all before it.
    pub(crate) fn durable_index(&self) -> u64 {
        self.durable_index
    }

    /// Writes asked for since the start.
    pub(crate) fn appends(&self) -> u64 {
        self.appends
    }

    /// Whether the first `appends` writes are durable.
    pub(crate) fn is_durable(&self, appends: u64) -> bool {
        self.durable_appends >= appends
    }
}

/// What an entry takes in a message beside its payload.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 20;

fn slot(index: u64) -> usize {
    let slot = index.checked_sub(1).expect("indexes start at 1");
    usize::try_from(slot).expect("a log in memory is indexable")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use palisade_wire::{PeerAddress, RangeId};

    use super::*;

    fn log() -> EntryLog {
        EntryLog::new(Name { range: RangeId(1), me: PeerAddress::default() }, Vec::new())
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, payload: Bytes::from_static(b"12345") }
    }

    #[test]
    fn an_entry_that_was_replaced_before_it_was_durable_does_not_count() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        for index in 1..=3 {
            log.append(entry(index, 1), effects);
        }
        log.set_durable(1);
        assert_eq!(log.durable_index(), 1);
        log.truncate(2);
        log.append(entry(2, 2), effects);
        // The two replaced entries landed, their replacement did not.
        log.set_durable(3);
        assert_eq!(log.durable_index(), 1);
        log.set_durable(4);
        assert_eq!(log.durable_index(), 2);
        assert_eq!(log.term_at(2), Some(2));
    }

    #[test]
    fn a_slice_holds_at_least_one_entry_and_keeps_to_its_bytes() {
        let mut log = log();
        let effects = &mut Effects::<()>::default();
        for index in 1..=4 {
            log.append(entry(index, 1), effects);
        }
        let lens = [1, 25, 49, 50, 1000].map(|max_bytes| log.slice(2, max_bytes).len());
        assert_eq!(lens, [1, 1, 1, 2, 3]);
        assert!(log.slice(5, 1000).is_empty());
    }
}
