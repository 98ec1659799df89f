//! The versions of every key, as commits and reads show them.

use std::collections::BTreeMap;

use super::operation::{Order, Saw, TimestampViolation, TimestampedOperation};

/// The versions of every key.
#[derive(Debug, Default)]
pub(super) struct Versions {
    keys: BTreeMap<u32, Key>,
}

#[derive(Debug, Default)]
struct Key {
    /// The versions by timestamp: a value, or `None` for a delete.
    at: BTreeMap<u64, Option<u64>>,
    /// The timestamp at which each value was written.
    written_at: BTreeMap<u64, u64>,
    /// The earliest start of a write of unknown outcome, deletes included.
    unknown_write_ns: Option<u64>,
    /// The earliest start of a delete of unknown outcome.
    unknown_delete_ns: Option<u64>,
}

impl Versions {
    /// Gathers the versions of a history, and checks that every value read was written.
    pub(super) fn gather(history: &[TimestampedOperation]) -> Result<Self, TimestampViolation> {
        let mut versions = Self::default();
        for operation in history {
            for (key, value) in &operation.writes {
                match operation.order {
                    Order::Commit(ts) => versions.note(*key, ts, *value, operation)?,
                    Order::Unknown => versions.note_unknown(*key, *value, operation),
                    _ => {}
                }
            }
            for (key, saw) in &operation.reads {
                if let Saw::Value { ts, value } = *saw {
                    versions.note(*key, ts, Some(value), operation)?;
                }
            }
        }
        versions.check_writers(history)?;
        Ok(versions)
    }

    fn note(
        &mut self,
        key: u32,
        ts: u64,
        value: Option<u64>,
        operation: &TimestampedOperation,
    ) -> Result<(), TimestampViolation> {
        let known = self.keys.entry(key).or_default();
        let first = *known.at.entry(ts).or_insert(value);
        if first != value {
            let (second, operation) = (value, Box::new(operation.clone()));
            return Err(TimestampViolation::TwoVersions { key, ts, first, second, operation });
        }
        if let Some(value) = value {
            let first = *known.written_at.entry(value).or_insert(ts);
            if first != ts {
                let second = ts;
                return Err(TimestampViolation::AppliedTwice { key, value, first, second });
            }
        }
        Ok(())
    }

    fn note_unknown(&mut self, key: u32, value: Option<u64>, operation: &TimestampedOperation) {
        let known = self.keys.entry(key).or_default();
        let start_ns = operation.start_ns;
        let earliest = |known: Option<u64>| Some(known.map_or(start_ns, |ns| ns.min(start_ns)));
        known.unknown_write_ns = earliest(known.unknown_write_ns);
        if value.is_none() {
            known.unknown_delete_ns = earliest(known.unknown_delete_ns);
        }
    }

    /// Checks that every value read was written by an operation that did not fail.
    fn check_writers(&self, history: &[TimestampedOperation]) -> Result<(), TimestampViolation> {
        let mut writers = BTreeMap::new();
        for operation in history {
            for (key, value) in &operation.writes {
                if let Some(value) = value {
                    writers.insert((*key, *value), operation);
                }
            }
        }
        for operation in history {
            for (key, saw) in &operation.reads {
                let Saw::Value { value, .. } = *saw else { continue };
                match writers.get(&(*key, value)) {
                    None => {
                        let (key, reader) = (*key, Box::new(operation.clone()));
                        return Err(TimestampViolation::Unwritten { key, value, reader });
                    }
                    Some(writer) if writer.order == Order::Failed => {
                        let (key, writer) = (*key, Box::new((*writer).clone()));
                        return Err(TimestampViolation::FailedButSeen { key, value, writer });
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Returns the timestamp at which a value was written, or `None` if no version of it is known.
    pub(super) fn written_at(&self, key: u32, value: u64) -> Option<u64> {
        self.keys.get(&key)?.written_at.get(&value).copied()
    }

    /// Returns the lowest timestamp from `from` on at which a read of a key holds, if there is one.
    pub(super) fn first_fit(
        &self,
        operation: &TimestampedOperation,
        key: u32,
        saw: Saw,
        from: u64,
    ) -> Option<u64> {
        let none = Key::default();
        let known = self.keys.get(&key).unwrap_or(&none);
        let may_have = |since: Option<u64>| since.is_some_and(|ns| ns < operation.end_ns);
        let next_after = |ts: u64| known.at.range(ts + 1..).next().map(|(next, _)| *next);
        match saw {
            Saw::Value { ts, .. } => {
                let fit = from.max(ts);
                next_after(ts).is_none_or(|next| fit < next).then_some(fit)
            }
            Saw::Absent => {
                let newest = known.at.range(..=from).next_back();
                let absent = newest.is_none_or(|(_, value)| value.is_none());
                if absent || may_have(known.unknown_delete_ns) {
                    return Some(from);
                }
                let mut later = known.at.range(from + 1..);
                later.find(|(_, value)| value.is_none()).map(|(ts, _)| *ts)
            }
            Saw::NotVersion { ts } => {
                let newest = known.at.range(..=from).next_back();
                let replaced = newest.is_none_or(|(at, _)| *at != ts);
                if replaced || may_have(known.unknown_write_ns) {
                    return Some(from);
                }
                next_after(ts)
            }
        }
    }

    /// Returns the number of versions of all keys.
    pub(super) fn len(&self) -> usize {
        self.keys.values().map(|key| key.at.len()).sum()
    }
}
