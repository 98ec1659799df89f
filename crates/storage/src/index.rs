//! Where a key is, without its neighbours.
//!
//! A search in the ordered tree compares a dozen keys or two, each in another place of memory: most
//! of what a write cost. A hash table asks one, but a large one stops everything when it grows, to
//! move all that it holds. So this is many small tables (extendible hashing: Fagin, Nievergelt,
//! Pippenger, Strong, "Extendible hashing", TODS 1979, §2): one that is full splits in two, and the
//! directory, which leads from the last bits of a hash to its table, doubles now and then.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::slots::SlotId;

/// Keys of a table, at which it splits: as many as fill one of 4,096 places.
const TABLE_KEYS: usize = 3584;

/// Tables don't split beyond a million, however their keys collide.
const MAX_BITS: u32 = 20;

/// The hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHash(u32);

impl KeyHash {
    /// What a table goes by, the first bits and the last; those of the hash itself have their keys
    /// in common.
    fn spread(self) -> u64 {
        let product = u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    }
}

/// From keys to slots. Knows the keys only by their hashes; whoever asks compares.
#[derive(Debug, Default)]
pub(crate) struct KeyIndex {
    /// Seeded anew for each index, so that nobody can make up keys that collide; nothing that is seen
    /// from outside depends on it.
    hasher: DefaultHashBuilder,
    /// By the last bits of a hash, as many as make its length: which table. Empty while there is one.
    directory: Vec<u32>,
    tables: Vec<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many of the last bits of their hashes its keys have in common.
    bits: u32,
    slots: HashTable<(KeyHash, SlotId)>,
}

impl KeyIndex {
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        // The upper half: foldhash mixes it well.
        KeyHash((self.hasher.hash_one(key) >> 32) as u32)
    }

    /// The slot of a key: the one with its hash of which `is_it` says so.
    pub(crate) fn find(
        &self,
        hash: KeyHash,
        mut is_it: impl FnMut(SlotId) -> bool,
    ) -> Option<SlotId> {
        let table = self.tables.get(self.table_of(hash))?;
        let found = table.slots.find(hash.spread(), |(of, id)| *of == hash && is_it(*id));
        found.map(|(_, id)| *id)
    }

    /// Adds a key that is not there.
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

    /// Removes a key that is there.
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

    /// Splits the table of a hash by the next bit of its keys' hashes.
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
    fn every_key_is_found_while_tables_split_and_keys_go() {
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
    fn keys_of_one_hash_are_told_apart_by_whoever_asks() {
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
