//! Stores each key with its newest version.

use std::ops::{Index, IndexMut};

use bytes::Bytes;
use palisade_sequence::Sequence;

use crate::{history::Dated, key_hash::KeyHash};

/// Identifies a key until the key is removed. The id may then be reused for another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(u32);

/// A key with its newest version.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Bytes,
    pub(crate) hash: KeyHash,
    pub(crate) newest: Dated,
    /// Number of the version before `newest` in the history, which may have been collected.
    pub(crate) previous: Option<u64>,
}

/// The slots of all keys. A slot is reused after its key was removed.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    all: Sequence<Option<Slot>>,
    free: Vec<SlotId>,
}

impl Slots {
    pub(crate) fn insert(&mut self, slot: Slot) -> SlotId {
        match self.free.pop() {
            Some(id) => {
                self.all[u64::from(id.0)] = Some(slot);
                id
            }
            None => {
                let number = self.all.push(Some(slot));
                SlotId(u32::try_from(number).expect("four billion keys fit no memory"))
            }
        }
    }

    /// Returns a slot, or `None` if its key was removed.
    pub(crate) fn get(&self, id: SlotId) -> Option<&Slot> {
        self.all[u64::from(id.0)].as_ref()
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Slot {
        let removed = self.all[u64::from(id.0)].take().expect("a key is removed once");
        self.free.push(id);
        removed
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;

    fn index(&self, id: SlotId) -> &Slot {
        self.get(id).expect("only slots of keys that are there are named")
    }
}

impl IndexMut<SlotId> for Slots {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        let slot = self.all[u64::from(id.0)].as_mut();
        slot.expect("only slots of keys that are there are named")
    }
}

#[cfg(test)]
impl SlotId {
    pub(crate) fn for_test(id: u32) -> Self {
        Self(id)
    }
}
