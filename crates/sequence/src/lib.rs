//! A queue of consecutively numbered items, for logs in memory. Items are added at the end and
//! dropped at either end.
//!
//! A shard keeps millions of items in one sequence. A ring buffer that doubles when it is full
//! would pause to move all of them, and touch as much new memory at once. Here items are stored in
//! chunks, and the items of a full chunk never move.
//!
//! Invariants:
//! - Items have consecutive numbers, which never change.
//! - Adding or dropping an item takes constant time, except while the first chunk grows to 256
//!   items, and when the list of chunks grows, which has one element per chunk.
//! - An empty sequence keeps no chunk of full size, regardless of its earlier length.

use std::{
    collections::VecDeque,
    ops::{Index, IndexMut},
};

/// Capacity of a chunk in items. Only a first chunk may be smaller.
const CHUNK_ITEMS: usize = 256;

/// Items with consecutive numbers.
#[derive(Clone, Debug)]
pub struct Sequence<T> {
    /// All chunks but the first and the last are full. A chunk may be empty only if it is small and
    /// the only one.
    chunks: VecDeque<VecDeque<T>>,
    /// Number of the first item, or of the next one if there is none.
    first: u64,
    len: usize,
}

impl<T> Default for Sequence<T> {
    fn default() -> Self {
        Self::starting_at(0)
    }
}

impl<T> Sequence<T> {
    /// Returns an empty sequence whose next item gets the number `first`.
    pub fn starting_at(first: u64) -> Self {
        Self { chunks: VecDeque::new(), first, len: 0 }
    }

    /// Returns the number of the first item, or of the next one if there is none.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Returns the number that the next item gets.
    pub fn next(&self) -> u64 {
        self.first + self.len as u64
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there are no items.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the item with a number, or `None` if it was dropped or not added yet.
    pub fn get(&self, number: u64) -> Option<&T> {
        let (chunk, at) = self.place(number)?;
        self.chunks.get(chunk)?.get(at)
    }

    /// Returns a mutable reference to the item with a number, or `None` if it was dropped or not
    /// added yet.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (chunk, at) = self.place(number)?;
        self.chunks.get_mut(chunk)?.get_mut(at)
    }

    /// Returns the first item.
    pub fn front(&self) -> Option<&T> {
        self.chunks.front()?.front()
    }

    /// Returns the last item.
    pub fn back(&self) -> Option<&T> {
        self.chunks.back()?.back()
    }

    /// Adds an item and returns its number.
    pub fn push(&mut self, item: T) -> u64 {
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK_ITEMS => last.push_back(item),
            last => {
                // The first chunk grows as needed, since most sequences stay small.
                let capacity = if last.is_some() { CHUNK_ITEMS } else { 1 };
                let mut chunk = VecDeque::with_capacity(capacity);
                chunk.push_back(item);
                self.chunks.push_back(chunk);
            }
        }
        let number = self.next();
        self.len += 1;
        number
    }

    /// Removes the first item and returns it.
    pub fn pop_front(&mut self) -> Option<T> {
        let is_only = self.chunks.len() == 1;
        let chunk = self.chunks.front_mut()?;
        let item = chunk.pop_front()?;
        if chunk.is_empty() && (!is_only || chunk.capacity() >= CHUNK_ITEMS) {
            self.chunks.pop_front();
        }
        self.first += 1;
        self.len -= 1;
        Some(item)
    }

    /// Drops the items at or above `number`. If there were any, the next item gets that number.
    ///
    /// # Panics
    /// Panics if `number` is below the number of the first item.
    pub fn truncate(&mut self, number: u64) {
        assert!(number >= self.first, "items before the first can't be dropped at the end");
        while self.next() > number {
            let surplus = usize::try_from(self.next() - number).unwrap_or(usize::MAX);
            let chunk = self.chunks.back_mut().expect("there are items");
            let keep = chunk.len().saturating_sub(surplus);
            self.len -= chunk.len() - keep;
            chunk.truncate(keep);
            if keep == 0 {
                self.chunks.pop_back();
            }
        }
    }

    /// Iterates over the items at or above `number`, in order.
    pub fn iter_from(&self, number: u64) -> impl Iterator<Item = &T> {
        let (chunk, at) = self.place(number.max(self.first)).unwrap_or((usize::MAX, 0));
        let mut chunks = self.chunks.iter().skip(chunk);
        let first = chunks.next().into_iter().flat_map(move |chunk| chunk.iter().skip(at));
        first.chain(chunks.flatten())
    }

    /// Iterates over all items in order, from either end.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    /// Returns the chunk of an item and its index in the chunk.
    fn place(&self, number: u64) -> Option<(usize, usize)> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let in_first = self.chunks.front()?.len();
        let Some(after_first) = at.checked_sub(in_first) else { return Some((0, at)) };
        Some((1 + after_first / CHUNK_ITEMS, after_first % CHUNK_ITEMS))
    }
}

impl<T> Index<u64> for Sequence<T> {
    type Output = T;

    fn index(&self, number: u64) -> &T {
        self.get(number).expect("the item is there")
    }
}

impl<T> IndexMut<u64> for Sequence<T> {
    fn index_mut(&mut self, number: u64) -> &mut T {
        self.get_mut(number).expect("the item is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a sequence with a plain list of all items ever added.
    #[test]
    fn items_keep_numbers_after_pop_front_and_truncate() {
        let mut random = fastrand::Rng::with_seed(5);
        for round in 0..60 {
            let first = random.u64(0..3);
            let mut sequence = Sequence::starting_at(first);
            let mut model: Vec<u32> = Vec::new();
            let mut dropped = 0;
            for _ in 0..random.usize(1..40) {
                match random.u8(0..5) {
                    0 => {
                        for _ in 0..random.usize(0..2 * CHUNK_ITEMS) {
                            assert_eq!(sequence.front(), model.get(dropped));
                            if sequence.pop_front().is_some() {
                                dropped += 1;
                            }
                        }
                    }
                    1 => {
                        let keep = random.usize(dropped..=model.len());
                        sequence.truncate(first + keep as u64);
                        model.truncate(keep);
                    }
                    _ => {
                        for _ in 0..random.usize(0..2 * CHUNK_ITEMS) {
                            let item = random.u32(..);
                            assert_eq!(sequence.push(item), first + model.len() as u64);
                            model.push(item);
                        }
                    }
                }
                assert_eq!(sequence.len(), model.len() - dropped, "round {round}");
                assert_eq!(sequence.first(), first + dropped as u64);
                assert_eq!(sequence.next(), first + model.len() as u64);
                assert_eq!(sequence.back(), model[dropped..].last());
                let from = random.usize(0..=model.len() + 1);
                let left = model.get(from.max(dropped)..).unwrap_or_default();
                assert!(sequence.iter_from(first + from as u64).eq(left), "round {round}");
                assert!(sequence.iter().rev().eq(model[dropped..].iter().rev()));
                let expected = if from < dropped { None } else { model.get(from) };
                assert_eq!(sequence.get(first + from as u64), expected);
            }
        }
    }

    #[test]
    fn item_address_is_stable() {
        let last = CHUNK_ITEMS as u64 - 1;
        let mut sequence = Sequence::default();
        for item in 0..=last {
            sequence.push(item);
        }
        let at = std::ptr::from_ref(&sequence[last]);
        for item in 0..100_000 {
            sequence.push(item);
            if item < last {
                sequence.pop_front();
            }
        }
        assert_eq!(std::ptr::from_ref(&sequence[last]), at);
        while sequence.pop_front().is_some() {}
        assert!(sequence.chunks.is_empty(), "what was large leaves nothing");
    }
}
