//! Where the versions of keys are.

use std::ops::{Index, IndexMut};

use bytes::Bytes;

use crate::versions::Versions;

/// Names the versions of a key, until that is removed; then another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(u32);

/// A key with its versions.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) key: Bytes,
    pub(crate) versions: Versions,
}

/// Slots that are used again once their key is gone.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    all: Vec<Option<Slot>>,
    free: Vec<SlotId>,
}

impl Slots {
    pub(crate) fn insert(&mut self, key: Bytes, versions: Versions) -> SlotId {
        let slot = Some(Slot { key, versions });
        match self.free.pop() {
            Some(id) => {
                self.all[id.0 as usize] = slot;
                id
            }
            None => {
                let id =
                    SlotId(u32::try_from(self.all.len()).expect("four billion keys fit no memory"));
                self.all.push(slot);
                id
            }
        }
    }

    /// A slot, unless its key is gone.
    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.all[id.0 as usize].as_mut()
    }

    pub(crate) fn remove(&mut self, id: SlotId) {
        let removed = self.all[id.0 as usize].take();
        assert!(removed.is_some(), "{id:?} is removed twice");
        self.free.push(id);
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;

    fn index(&self, id: SlotId) -> &Slot {
        self.all[id.0 as usize].as_ref().expect("the tree names slots of keys that are there")
    }
}

impl IndexMut<SlotId> for Slots {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        self.all[id.0 as usize].as_mut().expect("the tree names slots of keys that are there")
    }
}
