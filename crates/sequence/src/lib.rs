//! Numbered items, added at one end and dropped at the other: what a log is in memory.
//!
//! The naive way, a ring that doubles when it is full, stops everything to move all that it holds,
//! and touches as much new memory at once; a shard keeps millions of items in one. Here they lie in
//! chunks, and no item ever moves.
//!
//! Invariants:
//! - Items keep their numbers, which rise by one.
//! - Adding or dropping one takes a time that does not depend on how many there are.
//! - One that is empty takes no memory to speak of, however large it was.

use std::{
    collections::VecDeque,
    ops::{Index, IndexMut},
};

/// Items of a chunk, once there is more than one.
const CHUNK_ITEMS: usize = 256;

/// Items with consecutive numbers.
#[derive(Clone, Debug)]
pub struct Sequence<T> {
    /// All but the first and the last are full; only the only one may be empty, and is small then.
    chunks: VecDeque<VecDeque<T>>,
    /// The number of the first item, or of the next one if there is none.
    first: u64,
    len: usize,
}

impl<T> Default for Sequence<T> {
    fn default() -> Self {
        Self::starting_at(0)
    }
}

impl<T> Sequence<T> {
    /// An empty sequence whose next item gets this number.
    pub fn starting_at(first: u64) -> Self {
        Self { chunks: VecDeque::new(), first, len: 0 }
    }

    /// The number of the first item, or of the next one if there is none.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next item gets.
    pub fn next(&self) -> u64 {
        self.first + self.len as u64
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item of a number, unless it was dropped or is yet to come.
    pub fn get(&self, number: u64) -> Option<&T> {
        let (chunk, at) = self.place(number)?;
        self.chunks.get(chunk)?.get(at)
    }

    /// Likewise, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (chunk, at) = self.place(number)?;
        self.chunks.get_mut(chunk)?.get_mut(at)
    }

    /// The first item.
    pub fn front(&self) -> Option<&T> {
        self.chunks.front()?.front()
    }

    /// The last item.
    pub fn back(&self) -> Option<&T> {
        self.chunks.back()?.back()
    }

    /// Adds an item and returns its number.
    pub fn push(&mut self, item: T) -> u64 {
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK_ITEMS => last.push_back(item),
            last => {
                // The first grows as it must, since most sequences stay small.
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

    /// Drops the first item.
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

    /// Drops the items from a number on; the next one gets that number.
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

    /// The items from a number on, in order.
    pub fn iter_from(&self, number: u64) -> impl Iterator<Item = &T> {
        let (chunk, at) = self.place(number.max(self.first)).unwrap_or((usize::MAX, 0));
        let mut chunks = self.chunks.iter().skip(chunk);
        let first = chunks.next().into_iter().flat_map(move |chunk| chunk.iter().skip(at));
        first.chain(chunks.flatten())
    }

    /// The items, in order, from either end.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    /// The chunk of an item and its place there.
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

    /// Against a plain list of all items that there ever were.
    #[test]
    fn items_keep_their_numbers_whatever_is_dropped_at_either_end() {
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
    fn an_item_never_moves() {
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
