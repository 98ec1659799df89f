//! Who holds which part of the key space.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use palisade_wire::TxnId;

/// A part of the key space: from a key on, before another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub begin: Bytes,
    /// The key after the last, or `None` for all that follow.
    pub end: Option<Bytes>,
}

/// How much of others a lock keeps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// Writers.
    Shared,
    /// Readers, too.
    Exclusive,
}

/// The key space, cut where a lock begins or ends: a piece reaches up to the next one, and everything
/// before the first piece is free. A lock of a key is that of the span up to the next possible key,
/// so that keys and spans are one thing.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    /// Holders are in the order of their ids. Neighbours differ in them.
    pieces: BTreeMap<Bytes, Vec<Hold>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) owner: TxnId,
    pub(crate) strength: Strength,
}

impl Span {
    /// Of one key. Copies it.
    pub fn key(key: &[u8]) -> Self {
        let both = Bytes::from([key, b"\0"].concat());
        Self { begin: both.slice(..key.len()), end: Some(both) }
    }

    /// Whether a key lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ends_after =
            |span: &Self, begin: &Bytes| span.end.as_ref().is_none_or(|end| *end > *begin);
        !self.is_empty()
            && !other.is_empty()
            && ends_after(self, &other.begin)
            && ends_after(other, &self.begin)
    }

    /// Whether no key lies in it.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.begin)
    }
}

impl Strength {
    /// Whether two owners can't have both on one key.
    pub(crate) fn conflicts(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }
}

impl Segments {
    /// Whoever holds some of a span, some of them several times.
    pub(crate) fn holders(&self, span: &Span) -> impl Iterator<Item = Hold> + '_ {
        let up_to = (Bound::Unbounded, Bound::Included(&span.begin[..]));
        let first = self.pieces.range::<[u8], _>(up_to).next_back().map(|(_, holds)| holds);
        let rest = (!span.is_empty()).then(|| {
            let end = span.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            self.pieces.range::<[u8], _>((Bound::Excluded(&span.begin[..]), end))
        });
        let rest = rest.into_iter().flatten().map(|(_, holds)| holds);
        first.into_iter().chain(rest).flatten().copied()
    }

    /// Adds a lock, or makes one stronger that its owner has.
    pub(crate) fn hold(&mut self, span: &Span, hold: Hold) {
        self.cut(&span.begin);
        if let Some(end) = &span.end {
            self.cut(end);
        }
        for (_, holds) in self.inside_mut(span) {
            match holds.binary_search_by_key(&hold.owner, |hold| hold.owner) {
                Ok(at) => holds[at].strength = holds[at].strength.max(hold.strength),
                Err(at) => holds.insert(at, hold),
            }
        }
    }

    /// Removes whatever an owner has of a span.
    pub(crate) fn release(&mut self, span: &Span, owner: TxnId) {
        for (_, holds) in self.inside_mut(span) {
            holds.retain(|hold| hold.owner != owner);
        }
        let end = span.end.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let cuts = self.pieces.range::<[u8], _>((Bound::Included(&span.begin[..]), end));
        let mut before = self.before(&span.begin);
        let mut needless = Vec::new();
        for (begin, holds) in cuts {
            if before == &holds[..] {
                needless.push(begin.clone());
            }
            before = holds;
        }
        for begin in needless {
            self.pieces.remove(&begin);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn inside_mut(&mut self, span: &Span) -> impl Iterator<Item = (&Bytes, &mut Vec<Hold>)> {
        assert!(!span.is_empty(), "there are no keys in {span:?} to lock");
        let end = span.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.pieces.range_mut::<[u8], _>((Bound::Included(&span.begin[..]), end))
    }

    /// Who holds what comes right before a key.
    fn before(&self, key: &Bytes) -> &[Hold] {
        let before = (Bound::Unbounded, Bound::Excluded(&key[..]));
        let last = self.pieces.range::<[u8], _>(before).next_back();
        last.map_or(&[], |(_, holds)| &holds[..])
    }

    /// Has a piece begin at a key.
    fn cut(&mut self, at: &Bytes) {
        if !self.pieces.contains_key(at) {
            let holds = self.before(at).to_vec();
            self.pieces.insert(at.clone(), holds);
        }
    }
}
