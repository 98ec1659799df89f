//! The store: keys, their versions, reads and garbage collection.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, RangeBounds},
};

use bytes::Bytes;
use palisade_clock::Timestamp;
use thiserror::Error;

use crate::{
    history::{Dated, History},
    index::KeyIndex,
    key_hash::KeyHash,
    slots::{Slot, SlotId, Slots},
};

/// An ordered map from keys to versions.
///
/// The newest version of a key is stored with the key and found by the key's hash. The tree serves
/// scans; a write changes it only when it adds a key, and collection only when it removes one.
#[derive(Debug, Default)]
pub struct Store {
    index: KeyIndex,
    keys: BTreeMap<Bytes, SlotId>,
    slots: Slots,
    history: History,
    /// Tombstones awaiting collection, oldest first. An entry may be stale, because its slot was
    /// overwritten or reused; `collect_deleted` rechecks.
    deleted: VecDeque<(Timestamp, SlotId)>,
    last_ts: Timestamp,
    horizon_ts: Timestamp,
    live: LiveData,
}

/// The keys that have a value, according to their newest versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveData {
    /// Number of these keys.
    pub keys: u64,
    /// Bytes of these keys and their newest values.
    pub bytes: u64,
}

impl LiveData {
    fn add(&mut self, key: &[u8], value: Option<&Bytes>) {
        if let Some(value) = value {
            self.keys += 1;
            self.bytes += (key.len() + value.len()) as u64;
        }
    }

    fn remove(&mut self, key: &[u8], value: Option<&Bytes>) {
        if let Some(value) = value {
            self.keys -= 1;
            self.bytes -= (key.len() + value.len()) as u64;
        }
    }
}

/// A version of a key, as a read returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version<'a> {
    /// Timestamp of the write.
    pub ts: Timestamp,
    /// The value, or `None` for a delete.
    pub value: Option<&'a Bytes>,
}

/// Where a page of a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEnd<'a> {
    /// The first key that is not in the page, or `None` at the end of the span.
    pub next: Option<&'a Bytes>,
    /// Number of keys that were read, including those without a value.
    pub keys: usize,
}

/// A read was below the horizon: the versions that it needs may have been collected. Retryable at a
/// later timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a read at {at_ts} is below {horizon_ts}, from where on versions are kept")]
pub struct Collected {
    /// Timestamp of the read.
    pub at_ts: Timestamp,
    /// The lowest timestamp that can be read.
    pub horizon_ts: Timestamp,
}

impl Store {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the timestamp of the last transaction.
    pub fn last_ts(&self) -> Timestamp {
        self.last_ts
    }

    /// Returns the lowest timestamp that can be read.
    pub fn horizon_ts(&self) -> Timestamp {
        self.horizon_ts
    }

    /// Returns the number of keys, including deleted ones that were not collected yet.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns the keys that have a value, and their size.
    pub fn live(&self) -> LiveData {
        self.live
    }

    /// Returns true if there are no keys, deleted ones included.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Starts the writes of one transaction at `ts`.
    ///
    /// # Panics
    /// Panics if `ts` is not above the timestamp of the last transaction.
    pub fn begin(&mut self, ts: Timestamp) {
        assert!(ts > self.last_ts, "a transaction at {ts} was applied after {}", self.last_ts);
        self.last_ts = ts;
    }

    /// Writes a version of a key, or a delete if `value` is `None`, at the timestamp passed to
    /// [`Store::begin`]. The last write of a key in a transaction wins.
    ///
    /// # Panics
    /// Panics if the key has a version above that timestamp.
    pub fn write(&mut self, key: &[u8], value: Option<Bytes>) {
        let ts = self.last_ts;
        let deletes = value.is_none();
        let hash = self.index.hash(key);
        let Some(id) = self.find(hash, key) else {
            // The delete of a key that does not exist has no effect.
            if !deletes {
                // Copied, because the key outlives the value, whose memory it may share.
                self.add(Bytes::copy_from_slice(key), hash, (ts, value));
            }
            return;
        };
        let slot = &mut self.slots[id];
        self.live.remove(key, slot.newest.1.as_ref());
        self.live.add(key, value.as_ref());
        if slot.newest.0 == ts {
            slot.newest.1 = value;
        } else {
            assert!(slot.newest.0 < ts, "a version was written below one that is there");
            let replaced = std::mem::replace(&mut slot.newest, (ts, value));
            slot.previous = Some(self.history.push(replaced, ts, slot.previous));
        }
        if deletes {
            self.deleted.push_back((ts, id));
        }
    }

    /// Raises the horizon to `horizon_ts`, but not above the last transaction: the next one may be
    /// older than the caller expects, and reads at the horizon must not change. Then drops at most
    /// `max_writes` versions and tombstones that no read can see. Returns true if more can be
    /// dropped.
    pub fn collect(&mut self, horizon_ts: Timestamp, max_writes: usize) -> bool {
        self.horizon_ts = self.horizon_ts.max(horizon_ts.min(self.last_ts));
        for _ in 0..max_writes {
            // History first: the version that a delete replaced is due no later than the delete.
            let collected = self.history.collect(self.horizon_ts) || self.collect_deleted();
            if !collected {
                return false;
            }
        }
        let is_due = |(ts, _): &(Timestamp, SlotId)| *ts <= self.horizon_ts;
        self.history.is_due(self.horizon_ts) || self.deleted.front().is_some_and(is_due)
    }

    /// Takes the oldest tombstone if it is at or below the horizon, and removes its key if that was
    /// not written since. Returns true if it took a tombstone.
    fn collect_deleted(&mut self) -> bool {
        let due = self.deleted.pop_front_if(|(ts, _)| *ts <= self.horizon_ts);
        let Some((ts, id)) = due else { return false };
        if self.slots.get(id).is_some_and(|slot| slot.newest == (ts, None)) {
            let Slot { key, hash, .. } = self.slots.remove(id);
            self.index.remove(hash, id);
            self.keys.remove(&key);
        }
        true
    }

    /// Adds a key from a snapshot.
    ///
    /// # Panics
    /// Panics if the key exists already.
    pub fn restore(&mut self, key: Bytes, ts: Timestamp, value: Bytes) {
        let hash = self.index.hash(&key);
        self.add(key, hash, (ts, Some(value)));
    }

    fn add(&mut self, key: Bytes, hash: KeyHash, newest: Dated) {
        self.live.add(&key, newest.1.as_ref());
        let id = self.slots.insert(Slot { key: key.clone(), hash, newest, previous: None });
        self.index.insert(hash, id);
        let before = self.keys.insert(key, id);
        assert!(before.is_none(), "a key was added twice");
    }

    fn find(&self, hash: KeyHash, key: &[u8]) -> Option<SlotId> {
        self.index.find(hash, |id| self.slots[id].key == key)
    }

    fn slot(&self, key: &[u8]) -> Option<&Slot> {
        let id = self.find(self.index.hash(key), key)?;
        Some(&self.slots[id])
    }

    /// Returns the newest version of a key at or below `at_ts`.
    fn version_at<'a>(&'a self, slot: &'a Slot, at_ts: Timestamp) -> Option<&'a Dated> {
        if slot.newest.0 <= at_ts {
            return Some(&slot.newest);
        }
        self.history.at(slot.previous, at_ts)
    }

    /// Ends a restore: sets the last transaction and the horizon to `last_ts`. Call this after
    /// every key of the snapshot was restored.
    pub fn restored(&mut self, last_ts: Timestamp) {
        (self.last_ts, self.horizon_ts) = (last_ts, last_ts);
    }

    /// Returns the number of replaced versions and tombstones that await collection.
    pub fn garbage(&self) -> usize {
        self.history.len() + self.deleted.len()
    }

    /// Drops up to `max_keys` keys and as many replaced versions of a store that is no longer
    /// needed. Returns false once all are dropped. Dropping a large store at once takes long.
    pub fn drop_keys(&mut self, max_keys: usize) -> bool {
        for _ in 0..max_keys {
            self.history.drop_first();
            if let Some((_, id)) = self.keys.pop_first() {
                self.slots.remove(id);
            }
        }
        !self.keys.is_empty() || self.history.len() > 0
    }

    /// Returns the newest version of a key. If the key was never written, or its delete was
    /// collected, returns a delete at the horizon: the real delete can't be later.
    pub fn newest(&self, key: &[u8]) -> Version<'_> {
        let absent = Version { ts: self.horizon_ts, value: None };
        self.slot(key).map_or(absent, |Slot { newest: (ts, value), .. }| Version {
            ts: *ts,
            value: value.as_ref(),
        })
    }

    /// Returns the newest version of a key at or below `at_ts`, or `None` if there is none. The
    /// version may be a delete.
    ///
    /// # Errors
    /// [`Collected`] if `at_ts` is below the horizon. Retryable at a later timestamp.
    pub fn get(&self, key: &[u8], at_ts: Timestamp) -> Result<Option<Version<'_>>, Collected> {
        self.check(at_ts)?;
        let found = self.slot(key).and_then(|slot| self.version_at(slot, at_ts));
        Ok(found.map(|(ts, value)| Version { ts: *ts, value: value.as_ref() }))
    }

    /// Returns the keys of a span that have a value at `at_ts`, with the version's timestamp and
    /// value. The keys are in order, and can be read from either end.
    ///
    /// # Errors
    /// [`Collected`] if `at_ts` is below the horizon. Retryable at a later timestamp.
    pub fn scan(
        &self,
        span: impl RangeBounds<[u8]>,
        at_ts: Timestamp,
    ) -> Result<impl DoubleEndedIterator<Item = (&Bytes, Timestamp, &Bytes)>, Collected> {
        self.check(at_ts)?;
        let bounds = (span.start_bound(), span.end_bound());
        // `BTreeMap::range` panics if a span ends before it begins.
        let empty = match bounds {
            (Bound::Included(begin), Bound::Included(end)) => begin > end,
            (Bound::Included(begin) | Bound::Excluded(begin), Bound::Excluded(end))
            | (Bound::Excluded(begin), Bound::Included(end)) => begin >= end,
            _ => false,
        };
        let keys = (!empty).then(|| self.keys.range::<[u8], _>(bounds)).into_iter().flatten();
        Ok(keys.filter_map(move |(key, id)| {
            let (ts, value) = self.version_at(&self.slots[*id], at_ts)?;
            Some((key, *ts, value.as_ref()?))
        }))
    }

    /// Reads a page of a span at `at_ts`. Passes rows to `take` in order, or in reverse order if
    /// `backward`, until `take` returns false or `max_keys` keys were read. A row for which
    /// `take` returns false is not in the page.
    ///
    /// # Errors
    /// [`Collected`] if `at_ts` is below the horizon. Retryable at a later timestamp.
    pub fn page<'a>(
        &'a self,
        (begin, end): (&[u8], Option<&[u8]>),
        at_ts: Timestamp,
        backward: bool,
        max_keys: usize,
        mut take: impl FnMut(&'a Bytes, Timestamp, &'a Bytes) -> bool,
    ) -> Result<PageEnd<'a>, Collected> {
        self.check(at_ts)?;
        if end.is_some_and(|end| begin >= end) {
            return Ok(PageEnd { next: None, keys: 0 });
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys = self.keys.range::<[u8], _>((Bound::Included(begin), end));
        let mut next = || if backward { keys.next_back() } else { keys.next() };
        for keys in 0..max_keys {
            let Some((key, id)) = next() else { return Ok(PageEnd { next: None, keys }) };
            if let Some((ts, Some(value))) = self.version_at(&self.slots[*id], at_ts)
                && !take(key, *ts, value)
            {
                return Ok(PageEnd { next: Some(key), keys: keys + 1 });
            }
        }
        Ok(PageEnd { next: next().map(|(key, _)| key), keys: max_keys })
    }

    fn check(&self, at_ts: Timestamp) -> Result<(), Collected> {
        if at_ts < self.horizon_ts {
            return Err(Collected { at_ts, horizon_ts: self.horizon_ts });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    fn value(store: &Store, key: &[u8], us: u64) -> Option<Bytes> {
        store.get(key, ts(us)).unwrap().and_then(|version| version.value.cloned())
    }

    #[test]
    fn read_returns_newest_version_at_timestamp() {
        let mut store = Store::new();
        let key = Bytes::from_static(b"k");
        for (us, written) in [(10, Some("10")), (20, None), (30, Some("30"))] {
            store.begin(ts(us));
            store.write(&key, written.map(Bytes::from));
        }
        assert_eq!(value(&store, b"k", 9), None);
        assert_eq!(value(&store, b"k", 10), Some("10".into()));
        assert_eq!(value(&store, b"k", 29), None);
        assert_eq!(value(&store, b"k", 99), Some("30".into()));
        assert_eq!(store.get(b"other", Timestamp::MAX), Ok(None));
        let deleted = store.get(b"k", ts(25)).unwrap().unwrap();
        assert_eq!((deleted.ts, deleted.value), (ts(20), None));
    }

    #[test]
    fn live_data_counts_keys_with_values() {
        let mut store = Store::new();
        let writes = [("a", Some("1")), ("bb", Some("22")), ("a", Some("333")), ("bb", None)];
        for (us, (key, value)) in (1..).zip(writes) {
            store.begin(ts(us));
            store.write(key.as_bytes(), value.map(Bytes::from));
        }
        assert_eq!(store.live(), LiveData { keys: 1, bytes: 4 });
        store.begin(ts(9));
        store.write(b"c", Some("1".into()));
        store.write(b"c", None);
        store.write(b"none", None);
        store.collect(ts(9), 99);
        assert_eq!(store.live(), LiveData { keys: 1, bytes: 4 });
        store.restore("d".into(), ts(3), "4".into());
        assert_eq!(store.live(), LiveData { keys: 2, bytes: 6 });
    }

    #[test]
    fn transaction_writes_are_atomic_and_last_write_wins() {
        let mut store = Store::new();
        store.begin(ts(5));
        store.write(b"a", Some("1".into()));
        store.write(b"b", Some("2".into()));
        store.write(b"a", Some("3".into()));
        store.write(b"b", None);
        assert_eq!(value(&store, b"a", 5), Some("3".into()));
        assert_eq!(value(&store, b"b", 5), None);
        assert_eq!(store.scan(.., ts(4)).unwrap().count(), 0);
        assert_eq!(store.scan(.., ts(5)).unwrap().count(), 1);
    }

    #[test]
    fn read_below_horizon_is_refused() {
        let mut store = Store::new();
        store.begin(ts(5));
        store.write(b"a", Some("1".into()));
        store.collect(ts(4), 10);
        let refused = Collected { at_ts: ts(3), horizon_ts: ts(4) };
        assert_eq!(store.get(b"a", ts(3)), Err(refused));
        assert_eq!(store.scan(.., ts(3)).err(), Some(refused));
        assert_eq!(value(&store, b"a", 4), None);
        // The horizon stops at the last transaction: the next one may have any later timestamp.
        store.collect(ts(9), 10);
        assert_eq!(store.horizon_ts(), ts(5));
        store.begin(ts(6));
    }

    #[test]
    fn store_is_dropped_in_steps() {
        let mut store = Store::new();
        for us in 1..=9 {
            store.begin(ts(us));
            store.write(&[us as u8 % 5], Some("1".into()));
        }
        assert_eq!((store.len(), store.garbage()), (5, 4));
        assert!(store.drop_keys(2) && store.drop_keys(2));
        assert_eq!((store.len(), store.garbage()), (1, 0));
        assert!(!store.drop_keys(2));
    }

    #[test]
    fn tombstone_is_collected_once_below_horizon() {
        let mut store = Store::new();
        for (us, written) in [(5, Some("1".into())), (6, None)] {
            store.begin(ts(us));
            store.write(b"a", written);
        }
        assert!(!store.collect(ts(5), 10));
        assert_eq!((store.len(), value(&store, b"a", 5)), (1, Some("1".into())));
        assert!(!store.collect(ts(6), 10));
        assert!(store.is_empty());
    }

    #[test]
    fn pages_are_contiguous_in_both_directions() {
        let mut store = Store::new();
        for key in 0..20_u8 {
            store.begin(ts(u64::from(key) + 1));
            store.write(&[key], Some("v".into()));
        }
        for key in [3_u8, 4, 5, 6, 18] {
            store.begin(ts(100 + u64::from(key)));
            store.write(&[key], None);
        }
        let kept = (2..19_u8).filter(|key| !matches!(key, 3..=6 | 18));
        for (backward, max_keys, max_rows) in
            [(false, 3, 9), (false, 9, 2), (true, 3, 9), (true, 1, 1), (false, 99, 99)]
        {
            let (mut begin, mut end) = (vec![2], Some(vec![19]));
            let mut found = Vec::new();
            loop {
                let mut rows = 0;
                let span = (&begin[..], end.as_deref());
                let take = |key: &Bytes, _, _: &Bytes| {
                    rows += 1;
                    if rows <= max_rows {
                        found.push(key[0]);
                    }
                    rows <= max_rows
                };
                let stopped = store.page(span, Timestamp::MAX, backward, max_keys, take);
                match stopped.unwrap().next {
                    None => break,
                    // The end is exclusive, so the next page ends at the successor of this key.
                    Some(key) if backward => end = Some([key, &b"\0"[..]].concat()),
                    Some(key) => begin = key.to_vec(),
                }
            }
            let mut expected: Vec<_> = kept.clone().collect();
            if backward {
                expected.reverse();
            }
            assert_eq!(found, expected, "{backward} {max_keys} {max_rows}");
        }
    }

    /// A model that keeps every version: values by key and timestamp.
    type Model = BTreeMap<(u8, u64), Option<String>>;

    fn seen_in(model: &Model, key: u8, at: u64) -> Option<Bytes> {
        let newest = model.range((key, 0)..=(key, at)).next_back();
        newest.and_then(|(_, value)| value.clone()).map(Bytes::from)
    }

    /// Compares reads with the model, over snapshots, collections of any size, deletes, and spans
    /// of any shape.
    #[test]
    fn collection_preserves_reads_at_or_above_horizon() {
        const KEYS: u8 = 5;
        let mut random = fastrand::Rng::with_seed(3);
        for round in 0..300 {
            let (mut store, mut model) = (Store::new(), Model::new());
            let mut horizon = 0;
            for us in 1..80 {
                store.begin(ts(us));
                for _ in 0..random.usize(1..3) {
                    let key = random.u8(0..KEYS);
                    let value = (random.u8(0..3) > 0).then(|| us.to_string());
                    model.insert((key, us), value.clone());
                    store.write(&[key], value.map(Bytes::from));
                }
                horizon = horizon.max(us - random.u64(0..us.min(20)));
                store.collect(ts(horizon), random.usize(0..4));
                if random.u8(0..30) == 0 {
                    store = copy(&store);
                    horizon = us;
                }
            }
            while store.collect(ts(horizon), 1) {}
            for at in horizon..80 {
                for key in 0..KEYS {
                    let expected = seen_in(&model, key, at);
                    assert_eq!(value(&store, &[key], at), expected, "round {round}: {key} at {at}");
                }
                let span = (bound(&mut random), bound(&mut random));
                let (begin, end) = (as_slice(&span.0), as_slice(&span.1));
                let scan = || store.scan((begin, end), ts(at)).unwrap();
                let found: Vec<_> = scan().map(|(key, _, v)| (key[0], v.clone())).collect();
                let expected: Vec<_> = (0..KEYS)
                    .filter(|key| RangeBounds::<[u8]>::contains(&(begin, end), &[*key][..]))
                    .filter_map(|key| Some((key, seen_in(&model, key, at)?)))
                    .collect();
                assert_eq!(found, expected, "round {round}: {span:?} at {at}");
                let mut backward: Vec<_> =
                    scan().rev().map(|(key, _, v)| (key[0], v.clone())).collect();
                backward.reverse();
                assert_eq!(backward, expected);
            }
            // Everything that can be collected was. Each key keeps the version seen at the horizon
            // and all later ones. A delete seen at the horizon is kept only if there is a later
            // version.
            let needed = (0..KEYS).map(|key| {
                let later = model.range((key, horizon + 1)..=(key, u64::MAX)).count();
                let at_horizon = match seen_in(&model, key, horizon) {
                    Some(_) => 1,
                    None => usize::from(later > 0),
                };
                later + at_horizon
            });
            let kept = store.history.len() + store.len();
            assert!(kept <= needed.sum(), "round {round}: too much is kept");
        }
    }

    fn bound(random: &mut fastrand::Rng) -> Bound<Vec<u8>> {
        let key = vec![random.u8(0..6)];
        match random.u8(0..3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(key),
            _ => Bound::Excluded(key),
        }
    }

    fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
        match bound {
            Bound::Unbounded => Bound::Unbounded,
            Bound::Included(key) => Bound::Included(key),
            Bound::Excluded(key) => Bound::Excluded(key),
        }
    }

    fn copy(store: &Store) -> Store {
        let mut copy = Store::new();
        for (key, ts, value) in store.scan(.., store.last_ts()).unwrap() {
            copy.restore(key.clone(), ts, value.clone());
        }
        copy.restored(store.last_ts());
        copy
    }
}
