//! Finds the slot of a key by its hash.
//!
//! A search in the ordered tree compares one or two dozen keys, each at another place in memory,
//! and was most of the cost of a write. A hash table compares one key, but a large table pauses to
//! move all its entries when it grows. So the index is many small tables (extendible hashing:
//! Fagin, Nievergelt, Pippenger, Strong, "Extendible hashing", TODS 1979, §2). A full table splits
//! in two. The directory maps the last bits of a hash to a table, and doubles when needed.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::{key_hash::KeyHash, slots::SlotId};

/// Number of keys at which a table splits: the capacity of a table with 4,096 buckets.
const TABLE_KEYS: usize = 3584;

/// Limit on the bits that select a table: at most a million tables, even if many keys collide.
const MAX_BITS: u32 = 20;

/// Maps keys to slots. It stores only the hashes of keys; the caller compares the keys.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    /// Seeded at random for each index, so that clients can't construct keys that collide. No
    /// result depends on the seed.
    hasher: DefaultHashBuilder,
    /// Indexes of tables, by the last log2(length) bits of a hash. Empty while there is at most one
    /// table.
    directory: Vec<u32>,
    tables: Vec<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Number of the last bits that are equal in the hashes of all keys of the table.
    bits: u32,
    slots: HashTable<(KeyHash, SlotId)>,
}

impl KeyIndex {
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        // Uses the upper half, which foldhash mixes well.
        KeyHash((self.hasher.hash_one(key) >> 32) as u32)
    }

    /// Returns the slot of a key: the one with this hash for which `is_it` returns true.
    pub(crate) fn find(
        &self,
        hash: KeyHash,
        mut is_it: impl FnMut(SlotId) -> bool,
    ) -> Option<SlotId> {
        let table = self.tables.get(self.table_of(hash))?;
        let found = table.slots.find(hash.spread(), |(of, id)| *of == hash && is_it(*id));
        found.map(|(_, id)| *id)
    }

    /// Adds a key that is not in the index.
    pub(crate) fn insert(&mut self, hash: KeyHash, id: SlotId) {
        if self.tables.is_empty() {
            self.tables.push(Table::default());
        }
        let mut at = self.table_of(hash);
        if self.tables[at].slots.len() >= TABLE_KEYS && self.tables[at].bits < MAX_BITS {
            self.split(at, hash);
            at = self.table_of(hash);
        }
        let slots = &mut self.tables[at].slots;
        slots.insert_unique(hash.spread(), (hash, id), |(hash, _)| hash.spread());
    }

    /// Removes a key. Panics if it is not in the index.
    pub(crate) fn remove(&mut self, hash: KeyHash, id: SlotId) {
        let at = self.table_of(hash);
        let slots = &mut self.tables[at].slots;
        match slots.find_entry(hash.spread(), |(_, of)| *of == id) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => panic!("{id:?} is removed from the index, but is not in it"),
        }
        if slots.is_empty() {
            *slots = HashTable::new();
        }
    }

    fn table_of(&self, hash: KeyHash) -> usize {
        if self.directory.is_empty() {
            return 0;
        }
        self.directory[hash.0 as usize & (self.directory.len() - 1)] as usize
    }

    /// Splits the table `at`, which `hash` belongs to, by the next bit of its keys' hashes.
    fn split(&mut self, at: usize, hash: KeyHash) {
        let bit = self.tables[at].bits;
        if self.directory.is_empty() {
            self.directory.push(0);
        }
        if self.directory.len() == 1 << bit {
            self.directory.extend_from_within(..);
        }
        let upper = 1 << bit;
        let mut moved = HashTable::with_capacity(TABLE_KEYS);
        let table = &mut self.tables[at];
        for of in table.slots.extract_if(|(hash, _)| hash.0 & upper != 0) {
            moved.insert_unique(of.0.spread(), of, |(hash, _)| hash.spread());
        }
        table.bits = bit + 1;
        let new = u32::try_from(self.tables.len()).expect("there are fewer tables than keys");
        self.tables.push(Table { bits: bit + 1, slots: moved });
        let first = (hash.0 & (upper - 1) | upper) as usize;
        for bits in (first..self.directory.len()).step_by(2 << bit) {
            self.directory[bits] = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_finds_all_keys_across_splits_and_removals() {
        const KEYS: u32 = 60_000;
        let mut index = KeyIndex::default();
        let hash = |index: &KeyIndex, key: u32| index.hash(&key.to_le_bytes());
        for key in 0..KEYS {
            let of = hash(&index, key);
            assert_eq!(index.find(of, |id| id == SlotId::for_test(key)), None);
            index.insert(of, SlotId::for_test(key));
            if key % 3 == 1 {
                let gone = key - 1;
                index.remove(hash(&index, gone), SlotId::for_test(gone));
            }
        }
        assert!(index.tables.len() > 8 && index.directory.len() >= index.tables.len());
        assert!(index.tables.iter().all(|table| table.slots.len() <= TABLE_KEYS));
        for key in 0..KEYS {
            let found = index.find(hash(&index, key), |id| id == SlotId::for_test(key));
            let there = key % 3 != 0 || key + 1 == KEYS;
            assert_eq!(found, there.then_some(SlotId::for_test(key)), "{key}");
        }
    }

    #[test]
    fn hash_collision_is_resolved_by_caller() {
        let mut index = KeyIndex::default();
        let hash = index.hash(b"k");
        let ids = (0..TABLE_KEYS as u32 + 5).map(SlotId::for_test);
        ids.clone().for_each(|id| index.insert(hash, id));
        for id in ids {
            assert_eq!(index.find(hash, |of| of == id), Some(id));
        }
        index.remove(hash, SlotId::for_test(7));
        assert_eq!(index.find(hash, |of| of == SlotId::for_test(7)), None);
    }
}
