//! Tracks the writes that a replica has ordered but not applied yet, by key.
//!
//! A key is represented by a 32-bit hash. If two keys collide, a read may wait for a write that it
//! does not need. That costs time but never gives a wrong answer.

use std::collections::VecDeque;

use hashbrown::{HashTable, hash_table::Entry};

/// Writes that are ordered but not applied yet.
#[derive(Debug, Default)]
pub(super) struct PendingWrites {
    /// Entry index and key hash of each pending write, in log order.
    queue: VecDeque<(u64, u32)>,
    /// Key hash, and index of the last pending entry that writes the key.
    last: HashTable<(u32, u64)>,
}

impl PendingWrites {
    /// Adds a write of a key by the entry at `index`. Indexes never decrease.
    pub(super) fn push(&mut self, index: u64, key: &[u8]) {
        let hash = crc32fast::hash(key);
        let entry = self.last.entry(spread(hash), |(other, _)| *other == hash, |(h, _)| spread(*h));
        match entry {
            Entry::Occupied(mut known) => known.get_mut().1 = index,
            Entry::Vacant(place) => drop(place.insert((hash, index))),
        }
        self.queue.push_back((index, hash));
    }

    /// Removes the writes of all entries up to `applied_index`.
    pub(super) fn applied(&mut self, applied_index: u64) {
        while let Some((index, hash)) =
            self.queue.pop_front_if(|(index, _)| *index <= applied_index)
        {
            let is_last = |(other, last): &(u32, u64)| *other == hash && *last == index;
            if let Ok(known) = self.last.find_entry(spread(hash), is_last) {
                known.remove();
            }
        }
    }

    /// Returns the index of the last pending entry that writes a key, or 0.
    pub(super) fn last_of_key(&self, key: &[u8]) -> u64 {
        if self.queue.is_empty() {
            return 0;
        }
        let hash = crc32fast::hash(key);
        self.last.find(spread(hash), |(other, _)| *other == hash).map_or(0, |(_, index)| *index)
    }

    /// Returns the index of the last pending entry, or 0.
    pub(super) fn last(&self) -> u64 {
        self.queue.back().map_or(0, |(index, _)| *index)
    }

    /// Removes all pending writes.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Spreads the hash over 64 bits: the table's buckets use the low bits, its tags the high bits.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_pending_until_last_write_is_applied() {
        let mut pending = PendingWrites::default();
        for (index, key) in [(5, b"a"), (5, b"b"), (6, b"a"), (7, b"c"), (7, b"c")] {
            pending.push(index, key);
        }
        let last = |pending: &PendingWrites| [b"a", b"b", b"c"].map(|key| pending.last_of_key(key));
        assert_eq!((last(&pending), pending.last()), ([6, 5, 7], 7));
        pending.applied(4);
        assert_eq!(last(&pending), [6, 5, 7]);
        pending.applied(5);
        assert_eq!(last(&pending), [6, 0, 7]);
        pending.applied(6);
        assert_eq!((last(&pending), pending.last()), ([0, 0, 7], 7));
        pending.applied(9);
        assert_eq!((last(&pending), pending.last()), ([0, 0, 0], 0));
        assert!(pending.last.is_empty());
    }
}
