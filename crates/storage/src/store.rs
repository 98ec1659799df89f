//! Keys and their versions.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use palisade_clock::Timestamp;

/// An ordered map from keys to versions.
#[derive(Debug, Default)]
pub struct Store {
    keys: BTreeMap<Bytes, Versions>,
    last_ts: Timestamp,
}

#[derive(Debug)]
struct Versions {
    newest: (Timestamp, Bytes),
    /// Those before it, oldest first.
    older: VecDeque<(Timestamp, Bytes)>,
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The timestamp of the last version written.
    pub fn last_ts(&self) -> Timestamp {
        self.last_ts
    }

    /// Keys that have a version.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key has a version.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Adds a version. Versions of this key that no read at or above `keep_from_ts` can see are
    /// dropped.
    pub fn put(&mut self, key: Bytes, ts: Timestamp, value: Bytes, keep_from_ts: Timestamp) {
        assert!(ts > self.last_ts, "version {ts} was written after {}", self.last_ts);
        self.last_ts = ts;
        match self.keys.get_mut(&key) {
            None => {
                let versions = Versions { newest: (ts, value), older: VecDeque::new() };
                self.keys.insert(key, versions);
            }
            Some(versions) => {
                let before = std::mem::replace(&mut versions.newest, (ts, value));
                versions.older.push_back(before);
                versions.drop_before(keep_from_ts);
            }
        }
    }

    /// Adds a version found in a snapshot, which lists those of a key from the oldest on.
    pub fn restore(&mut self, key: Bytes, ts: Timestamp, value: Bytes) {
        self.last_ts = self.last_ts.max(ts);
        match self.keys.get_mut(&key) {
            None => {
                self.keys.insert(key, Versions { newest: (ts, value), older: VecDeque::new() });
            }
            Some(versions) => {
                assert!(ts > versions.newest.0, "a snapshot lists versions out of order");
                versions.older.push_back(std::mem::replace(&mut versions.newest, (ts, value)));
            }
        }
    }

    /// Keys from `from` on, or all, in order, each with its versions at or below a timestamp, from
    /// the oldest on.
    pub fn keys_from(
        &self,
        from: Option<&[u8]>,
        at_ts: Timestamp,
    ) -> impl Iterator<Item = (&Bytes, impl Iterator<Item = (Timestamp, &Bytes)>)> {
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let keys = self.keys.range::<[u8], _>((from, Bound::Unbounded));
        keys.map(move |(key, versions)| {
            let all = versions.older.iter().chain([&versions.newest]);
            let seen = all.filter(move |(ts, _)| *ts <= at_ts);
            (key, seen.map(|(ts, value)| (*ts, value)))
        })
    }

    /// The newest version at or below a timestamp.
    pub fn get(&self, key: &[u8], at_ts: Timestamp) -> Option<(Timestamp, &Bytes)> {
        let versions = self.keys.get(key)?;
        let (ts, value) = &versions.newest;
        if *ts <= at_ts {
            return Some((*ts, value));
        }
        let (ts, value) = versions.older.iter().rev().find(|(ts, _)| *ts <= at_ts)?;
        Some((*ts, value))
    }
}

impl Versions {
    fn drop_before(&mut self, keep_from_ts: Timestamp) {
        // The newest version at or below the horizon is what a read at the horizon sees.
        let next_ts = |versions: &Self| versions.older.get(1).map_or(versions.newest.0, |v| v.0);
        while !self.older.is_empty() && next_ts(self) <= keep_from_ts {
            self.older.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    #[test]
    fn a_read_sees_what_was_newest_at_its_timestamp() {
        let mut store = Store::new();
        let key = Bytes::from_static(b"k");
        for us in [10, 20, 30] {
            store.put(key.clone(), ts(us), us.to_string().into(), Timestamp::ZERO);
        }
        let seen = |us| store.get(b"k", ts(us)).map(|(_, value)| value.clone());
        assert_eq!(seen(9), None);
        assert_eq!(seen(10), Some("10".into()));
        assert_eq!(seen(29), Some("20".into()));
        assert_eq!(seen(99), Some("30".into()));
        assert_eq!(store.get(b"other", Timestamp::MAX), None);
    }

    /// Against a model that keeps every version for ever.
    #[test]
    fn reads_at_or_above_the_horizon_are_as_if_nothing_was_dropped() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let mut store = Store::new();
            let mut model: BTreeMap<(u8, u64), String> = BTreeMap::new();
            let mut horizon = 0;
            for us in 1..100 {
                let key = random.u8(0..4);
                horizon = horizon.max(us - random.u64(0..us.min(20)));
                let value = us.to_string();
                model.insert((key, us), value.clone());
                let key = Bytes::copy_from_slice(&[key]);
                store.put(key, ts(us), value.into(), ts(horizon));
            }
            for key in 0..4 {
                for at in horizon..100 {
                    let expected = model.range((key, 0)..=(key, at)).next_back();
                    let seen = store.get(&[key], ts(at)).map(|(_, value)| value.clone());
                    assert_eq!(seen, expected.map(|(_, value)| value.clone().into()));
                }
            }
        }
    }
}
