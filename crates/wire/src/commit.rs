//! The commit of a transaction in one range: writes of several keys, and the conditions under which
//! they take effect.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;

use crate::{
    Decode, Encode, MAX_COMMIT_BYTES, MAX_COMMIT_PARTS, Reader, Rejection, TxnId, WireError,
    check_key, check_value, codec::put_bytes,
};

/// A commit and the fields that make its retries idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRequest {
    /// The idempotency key: the same on every try.
    pub txn: TxnId,
    /// The session waits for no response from this range below this sequence. The range may forget
    /// those outcomes.
    pub settled_below: u64,
    /// The commit takes effect at or before this timestamp, or never. Every try that may take
    /// effect carries the same one. The range remembers the outcome until then or until it is
    /// settled, so a retry gets the outcome or is rejected.
    pub expires_ts: Timestamp,
    /// The conditions and writes.
    pub commit: Commit,
}

/// Writes that take effect together or not at all, and their conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The conditions. If one does not hold, no key is changed.
    pub conditions: Vec<Condition>,
    /// The writes. If several write the same key, the last one takes effect.
    pub writes: Vec<Write>,
}

/// A write of one key: a value or a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key, 1 to [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) bytes.
    pub key: Bytes,
    /// The value, at most [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) bytes, or `None` to delete
    /// the key.
    pub value: Option<Bytes>,
}

/// A condition on one key, evaluated when the commit takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key, 1 to [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES) bytes.
    pub key: Bytes,
    /// The expected state of the key.
    pub expected: Expected,
}

/// The expected state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The key has no value.
    Absent,
    /// The key has this value.
    Value(Bytes),
    /// The key has a value, and that value was written at this timestamp.
    Version(Timestamp),
}

impl Commit {
    /// Creates a commit without conditions or writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a write of a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Adds a delete of a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        self.writes.push(Write { key: key.into(), value: None });
        self
    }

    /// Adds a condition on a key.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Bytes>, expected: Expected) -> Self {
        self.conditions.push(Condition { key: key.into(), expected });
        self
    }

    /// Returns the keys of all conditions and writes, including repeated ones.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let conditions = self.conditions.iter().map(|condition| &condition.key);
        conditions.chain(self.writes.iter().map(|write| &write.key))
    }

    /// Returns true if the commit writes a value. Deletes write none.
    pub fn writes_values(&self) -> bool {
        self.writes.iter().any(|write| write.value.is_some())
    }

    /// Returns true if there are no conditions and no writes.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.writes.is_empty()
    }

    /// Returns all expected and all written values.
    fn values(&self) -> impl Iterator<Item = &Bytes> {
        let expected = self.conditions.iter().filter_map(|condition| match &condition.expected {
            Expected::Value(value) => Some(value),
            Expected::Absent | Expected::Version(_) => None,
        });
        expected.chain(self.writes.iter().filter_map(|write| write.value.as_ref()))
    }

    /// Returns the total size of all keys and values, in bytes.
    pub fn bytes(&self) -> usize {
        self.keys().chain(self.values()).map(Bytes::len).sum()
    }

    /// Returns a copy in newly allocated memory. Keys and values of a decoded commit share the
    /// buffer of their frame, and keep all of it allocated.
    #[must_use]
    pub fn detached(&self) -> Self {
        let copy = Bytes::copy_from_slice;
        let conditions = self.conditions.iter().map(|Condition { key, expected }| Condition {
            key: copy(key),
            expected: match expected {
                Expected::Value(value) => Expected::Value(copy(value)),
                other => other.clone(),
            },
        });
        let writes = self.writes.iter().map(|Write { key, value }| Write {
            key: copy(key),
            value: value.as_deref().map(copy),
        });
        Self { conditions: conditions.collect(), writes: writes.collect() }
    }

    /// Checks the commit against the size limits.
    ///
    /// # Errors
    ///
    /// [`Rejection::KeySize`], [`Rejection::ValueSize`] or [`Rejection::CommitSize`]. None is
    /// retryable.
    pub fn check(&self) -> Result<(), Rejection> {
        let parts = self.conditions.len() + self.writes.len();
        let bytes = self.bytes();
        self.keys().try_for_each(|key| check_key(key))?;
        self.values().try_for_each(|value| check_value(value))?;
        if parts == 0 || parts > MAX_COMMIT_PARTS || bytes > MAX_COMMIT_BYTES {
            let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
            return Err(Rejection::CommitSize { parts: count(parts), bytes: count(bytes) });
        }
        Ok(())
    }
}

const ABSENT: u8 = 0;
const VALUE: u8 = 1;
const VERSION: u8 = 2;

impl Encode for CommitRequest {
    fn encode(&self, out: &mut BytesMut) {
        let count = |n: usize| u16::try_from(n).expect("checked before it is sent");
        let Commit { conditions, writes } = &self.commit;
        self.txn.encode(out);
        out.put_u64_le(self.settled_below);
        out.put_u64_le(self.expires_ts.to_bits());
        out.put_u16_le(count(conditions.len()));
        out.put_u16_le(count(writes.len()));
        for Condition { key, expected } in conditions {
            put_bytes(out, key);
            match expected {
                Expected::Absent => out.put_u8(ABSENT),
                Expected::Value(value) => {
                    out.put_u8(VALUE);
                    put_bytes(out, value);
                }
                Expected::Version(ts) => {
                    out.put_u8(VERSION);
                    out.put_u64_le(ts.to_bits());
                }
            }
        }
        for Write { key, value } in writes {
            put_bytes(out, key);
            match value {
                None => out.put_u8(ABSENT),
                Some(value) => {
                    out.put_u8(VALUE);
                    put_bytes(out, value);
                }
            }
        }
    }
}

impl Decode for CommitRequest {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let txn = TxnId::decode(reader)?;
        let settled_below = reader.u64()?;
        let expires_ts = Timestamp::from_bits(reader.u64()?);
        let (conditions, writes) = (reader.u16()?, reader.u16()?);
        // Nothing is reserved from the counts, because they are untrusted.
        let mut commit = Commit { conditions: Vec::new(), writes: Vec::with_capacity(1) };
        for _ in 0..conditions {
            let key = reader.bytes()?;
            let expected = match reader.u8()? {
                ABSENT => Expected::Absent,
                VALUE => Expected::Value(reader.bytes()?),
                VERSION => Expected::Version(Timestamp::from_bits(reader.u64()?)),
                tag => return Err(WireError::UnknownTag { what: "condition", tag }),
            };
            commit.conditions.push(Condition { key, expected });
        }
        for _ in 0..writes {
            let key = reader.bytes()?;
            let value = match reader.u8()? {
                ABSENT => None,
                VALUE => Some(reader.bytes()?),
                tag => return Err(WireError::UnknownTag { what: "write", tag }),
            };
            commit.writes.push(Write { key, value });
        }
        Ok(Self { txn, settled_below, expires_ts, commit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_KEY_BYTES, MAX_VALUE_BYTES, SessionId};

    fn commit(conditions: Vec<Condition>, writes: Vec<Write>) -> Commit {
        Commit { conditions, writes }
    }

    fn put(key: &'static str, bytes: usize) -> Write {
        Write { key: key.into(), value: Some(vec![1; bytes].into()) }
    }

    #[test]
    fn commit_encoding_round_trips_all_parts() {
        let expected =
            [Expected::Absent, Expected::Value("v".into()), Expected::Version(Timestamp::MAX)];
        let condition = |expected| Condition { key: "c".into(), expected };
        let conditions = expected.map(condition).to_vec();
        let commit = commit(conditions, vec![put("a", 0), Write { key: "b".into(), value: None }]);
        let txn = TxnId { session: SessionId(7), sequence: 9 };
        let expires_ts = Timestamp::from_physical_us(9);
        let sent = CommitRequest { txn, settled_below: 3, expires_ts, commit };
        let mut out = BytesMut::new();
        sent.encode(&mut out);
        let bytes = out.freeze();
        let mut reader = Reader::new(bytes.clone());
        assert_eq!(CommitRequest::decode(&mut reader).unwrap(), sent);
        reader.finish().unwrap();
        for end in 0..bytes.len() {
            assert!(CommitRequest::decode(&mut Reader::new(bytes.slice(..end))).is_err());
        }
    }

    #[test]
    fn commit_limits_apply_to_total_size() {
        assert!(commit(vec![], vec![put("a", 10)]).check().is_ok());
        let size = |refused: Result<(), Rejection>| match refused {
            Err(Rejection::CommitSize { parts, bytes }) => (parts, bytes),
            other => panic!("{other:?}"),
        };
        assert_eq!(size(commit(vec![], vec![]).check()), (0, 0));
        let many = vec![put("a", 0); MAX_COMMIT_PARTS + 1];
        assert_eq!(size(commit(vec![], many).check()), (1025, 1025));
        let large = vec![put("a", MAX_VALUE_BYTES), put("b", MAX_KEY_BYTES)];
        let bytes = u32::try_from(MAX_COMMIT_BYTES + 2).unwrap();
        assert_eq!(size(commit(vec![], large).check()), (2, bytes));
        let no_key = commit(vec![], vec![put("", 1)]).check();
        assert!(matches!(no_key, Err(Rejection::KeySize { .. })));
    }
}
