//! Which transactions hold which spans of the key space.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use palisade_wire::TxnId;

/// A part of the key space: `begin` included, `end` excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first key.
    pub begin: Bytes,
    /// The first key after the span, or `None` if the span has no upper bound.
    pub end: Option<Bytes>,
}

/// Which locks of other transactions a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// Excludes exclusive locks.
    Shared,
    /// Excludes all locks.
    Exclusive,
}

/// The key space, cut into pieces where locks begin and end. A piece reaches to the next one, and
/// keys before the first piece are free. The lock of a key covers the span up to the next possible
/// key, so keys and spans need only one representation.
#[derive(Debug, Default)]
pub(crate) struct LockSpans {
    /// The holds of each piece by its first key, sorted by owner. `hold` may leave neighbours with
    /// equal holds; `release` merges those within its span.
    pieces: BTreeMap<Bytes, Vec<Hold>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) owner: TxnId,
    pub(crate) strength: Strength,
}

impl Span {
    /// Returns the span of one key. Copies the key.
    pub fn key(key: &[u8]) -> Self {
        let both = Bytes::from([key, b"\0"].concat());
        Self { begin: both.slice(..key.len()), end: Some(both) }
    }

    /// Returns true if no key lies in the span.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.begin)
    }
}

impl Strength {
    /// Returns true if two owners cannot hold these locks on one key.
    pub(crate) fn conflicts(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }
}

/// Returns true if a lock of one list conflicts with a lock of the other. Both lists must be sorted
/// by the begin of their spans, so that one walk over both is enough.
pub(crate) fn conflict(one: &[(Span, Strength)], other: &[(Span, Strength)]) -> bool {
    let mut reach = [Reach::default(), Reach::default()];
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    loop {
        let from_one = match (one.peek(), other.peek()) {
            (None, None) => return false,
            (Some((this, _)), Some((that, _))) => this.begin <= that.begin,
            (this, _) => this.is_some(),
        };
        let next = if from_one { one.next() } else { other.next() };
        let (span, strength) = next.expect("it was looked at just now");
        let (own, others) = if from_one { (0, 1) } else { (1, 0) };
        if reach[others].meets(&span.begin, *strength) {
            return true;
        }
        reach[own].extend(span, *strength);
    }
}

/// The spans that reach furthest, among the spans of a list that have begun: of any strength, and
/// exclusive ones.
#[derive(Debug, Default)]
struct Reach<'a> {
    any: Option<&'a Span>,
    exclusive: Option<&'a Span>,
}

impl<'a> Reach<'a> {
    fn extend(&mut self, span: &'a Span, strength: Strength) {
        let further = |known: &mut Option<&'a Span>| {
            let ends_before = |known: &Span| match (&known.end, &span.end) {
                (Some(known), Some(end)) => known < end,
                (known, None) => known.is_some(),
                (None, Some(_)) => false,
            };
            if known.is_none_or(ends_before) {
                *known = Some(span);
            }
        };
        further(&mut self.any);
        if strength == Strength::Exclusive {
            further(&mut self.exclusive);
        }
    }

    /// Returns true if one of the spans reaches beyond `begin` and conflicts with `strength`.
    fn meets(&self, begin: &Bytes, strength: Strength) -> bool {
        let furthest = match strength {
            Strength::Exclusive => self.any,
            Strength::Shared => self.exclusive,
        };
        furthest.is_some_and(|span| span.end.as_ref().is_none_or(|end| end > begin))
    }
}

impl LockSpans {
    /// Returns the holds on any part of a span. A hold on several pieces is returned several times.
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

    /// Adds a lock. Where its owner has one already, the stronger of the two remains.
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

    /// Removes all holds of an owner on a span.
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

    /// Returns the holds on the keys right before `key`.
    fn before(&self, key: &Bytes) -> &[Hold] {
        let before = (Bound::Unbounded, Bound::Excluded(&key[..]));
        let last = self.pieces.range::<[u8], _>(before).next_back();
        last.map_or(&[], |(_, holds)| &holds[..])
    }

    /// Makes a piece begin at a key.
    fn cut(&mut self, at: &Bytes) {
        if !self.pieces.contains_key(at) {
            let holds = self.before(at).to_vec();
            self.pieces.insert(at.clone(), holds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(one: &Span, other: &Span) -> bool {
        let ends_after =
            |span: &Span, begin: &Bytes| span.end.as_ref().is_none_or(|end| *end > *begin);
        ends_after(one, &other.begin) && ends_after(other, &one.begin)
    }

    /// Compares the walk over two lists with a check of every pair.
    #[test]
    fn lock_lists_conflict_if_any_pair_conflicts() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut found = [0; 2];
        for _ in 0..20_000 {
            let mut list = || {
                let lock = |_| {
                    let (begin, length) = (random.u8(0..40), random.u8(1..6));
                    let end = (random.u8(0..30) > 0).then(|| vec![begin + length].into());
                    let strength =
                        if random.bool() { Strength::Shared } else { Strength::Exclusive };
                    (Span { begin: vec![begin].into(), end }, strength)
                };
                let mut list: Vec<_> = (0..3).map(lock).collect();
                list.sort_by(|one, other| one.0.begin.cmp(&other.0.begin));
                list
            };
            let (one, other) = (list(), list());
            let pairs = one.iter().flat_map(|this| other.iter().map(move |that| (this, that)));
            let expected = pairs.into_iter().any(|((span, strength), (with, held))| {
                overlap(span, with) && strength.conflicts(*held)
            });
            assert_eq!(conflict(&one, &other), expected, "{one:?} and {other:?}");
            found[usize::from(expected)] += 1;
        }
        assert!(found.iter().all(|count| *count > 2_000), "{found:?}");
    }
}
