//! Encodes the state of a range in parts while it changes, and rebuilds it from the parts.
//!
//! The problem: a snapshot must show the state at one timestamp, but writing it takes many turns in
//! which entries are applied. Copying the whole state at once would block the core for as long as
//! that takes. So the reader notes the timestamp of the last commit at its start, and reads some
//! keys each turn as of that timestamp. The store keeps those versions meanwhile. Earlier versions
//! are left out: a restored state is readable from that timestamp on. The outcomes are not
//! versioned, so they are copied at the start.

use std::{collections::VecDeque, ops::Bound};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_control::RangeMap;
use palisade_storage::Store;
use palisade_txn::OutcomeTable;
use palisade_wire::{Encode, RangeId, Reader, WireError};

use crate::state_machine::StateMachine;

/// Target size of a snapshot part in production, in bytes. A part may be larger by one item.
pub const SNAPSHOT_PART_BYTES: usize = 256 * 1024;

const DIGEST: u8 = 1;
const OUTCOMES: u8 = 2;
const VERSION: u8 = 3;
const RANGE_MAP: u8 = 4;
const LAST_TS: u8 = 5;

/// Reads the state as it was when the reader was created, part by part.
#[derive(Debug)]
pub(crate) struct StateReader {
    at_ts: Timestamp,
    /// Encoded items that precede the keys.
    items: VecDeque<Bytes>,
    /// The last key read.
    read: Option<Bytes>,
    keys_left: bool,
    part_bytes: usize,
}

impl StateReader {
    /// Creates a reader. `digest` covers the applied entries; `part_bytes` is a part's target size.
    pub(crate) fn new(
        state: &StateMachine,
        digest: u32,
        part_bytes: usize,
        forget_outcomes: bool,
    ) -> Self {
        let mut items = VecDeque::from([item(DIGEST, |out| out.put_u32_le(digest))]);
        let mut at_ts = Timestamp::ZERO;
        match state {
            StateMachine::Keys { store, outcomes } => {
                at_ts = store.last_ts();
                items.push_back(item(LAST_TS, |out| out.put_u64_le(at_ts.to_bits())));
                if !forget_outcomes {
                    let pieces = outcomes.to_pieces();
                    items.extend(pieces.map(|piece| item(OUTCOMES, |out| piece.encode(out))));
                }
            }
            StateMachine::Control(map) => {
                items.push_back(item(RANGE_MAP, |out| map.to_bytes().encode(out)));
            }
        }
        let keys_left = matches!(state, StateMachine::Keys { .. });
        Self { at_ts, items, read: None, keys_left, part_bytes }
    }

    /// Returns the timestamp that is read at. Versions visible there must be kept.
    pub(crate) fn protected_ts(&self) -> Timestamp {
        self.at_ts
    }

    /// Returns the next part, and whether it is the last.
    pub(crate) fn next_part(&mut self, state: &StateMachine) -> (Bytes, bool) {
        let mut part = BytesMut::new();
        while part.len() < self.part_bytes
            && let Some(item) = self.items.pop_front()
        {
            part.extend_from_slice(&item);
        }
        if let StateMachine::Keys { store, .. } = state
            && self.keys_left
            && part.len() < self.part_bytes
        {
            self.read_keys(store, &mut part);
        }
        (part.freeze(), self.items.is_empty() && !self.keys_left)
    }

    fn read_keys(&mut self, store: &Store, part: &mut BytesMut) {
        let after = self.read.take();
        let after = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let span = (after, Bound::Unbounded);
        let keys = store.scan(span, self.at_ts).expect("versions are kept for this reader");
        for (key, ts, value) in keys {
            part.put_u8(VERSION);
            key.encode(part);
            part.put_u64_le(ts.to_bits());
            value.encode(part);
            if part.len() >= self.part_bytes {
                self.read = Some(key.clone());
                return;
            }
        }
        self.keys_left = false;
    }
}

fn item(tag: u8, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(tag);
    write(&mut out);
    out.freeze()
}

/// Rebuilds a state from its parts.
#[derive(Debug)]
pub(crate) struct StateBuilder {
    range: RangeId,
    store: Box<Store>,
    outcomes: OutcomeTable,
    map: Option<RangeMap>,
    digest: u32,
    last_ts: Timestamp,
    /// The last key restored. Keys come in order, each once.
    last_key: Option<Bytes>,
    bytes: u64,
}

/// A state rebuilt from all parts of a snapshot.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) state: StateMachine,
    /// Digest of the entries that led to the state.
    pub(crate) digest: u32,
    /// Timestamp of the last commit in the state.
    pub(crate) last_ts: Timestamp,
    /// Total size of the parts.
    pub(crate) bytes: u64,
}

impl StateBuilder {
    /// Starts to rebuild the state of a range.
    pub(crate) fn new(range: RangeId) -> Self {
        Self {
            range,
            store: Box::default(),
            outcomes: OutcomeTable::new(),
            map: None,
            digest: 0,
            last_ts: Timestamp::ZERO,
            last_key: None,
            bytes: 0,
        }
    }

    /// Adds the next part.
    ///
    /// # Errors
    ///
    /// [`WireError`] if the part cannot be decoded, or has an item of another kind of range.
    pub(crate) fn push(&mut self, part: Bytes) -> Result<(), WireError> {
        let mut left = part.len();
        self.bytes += left as u64;
        let mut reader = Reader::new(part);
        let is_control = self.range == RangeId::CONTROL;
        while left > 0 {
            let tag = reader.u8()?;
            if is_control != (tag == RANGE_MAP) && !matches!(tag, DIGEST | LAST_TS) {
                return Err(WireError::Invalid("a snapshot of another kind of range"));
            }
            match tag {
                DIGEST => self.digest = reader.u32()?,
                LAST_TS => self.last_ts = Timestamp::from_bits(reader.u64()?),
                OUTCOMES => self.outcomes.restore(reader.bytes()?)?,
                RANGE_MAP => self.map = Some(RangeMap::from_bytes(&reader.bytes()?)?),
                VERSION => {
                    let key = reader.payload()?;
                    if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                        return Err(WireError::Invalid("the keys of a snapshot are not in order"));
                    }
                    let ts = Timestamp::from_bits(reader.u64()?);
                    self.store.restore(key.clone(), ts, reader.payload()?);
                    self.last_key = Some(key);
                }
                tag => return Err(WireError::UnknownTag { what: "part of a snapshot", tag }),
            }
            left = reader.remaining();
        }
        Ok(())
    }

    /// Returns the state. Call it after all parts were pushed.
    ///
    /// # Errors
    ///
    /// [`WireError`] if a snapshot of the control plane's range has no range map.
    pub(crate) fn finish(self) -> Result<Built, WireError> {
        let Self { range, mut store, outcomes, map, digest, last_ts, last_key: _, bytes } = self;
        store.restored(last_ts);
        let state = match map {
            Some(map) => StateMachine::Control(map),
            None if range != RangeId::CONTROL => StateMachine::Keys { store, outcomes },
            None => return Err(WireError::Invalid("a snapshot has no range map")),
        };
        Ok(Built { state, digest, last_ts, bytes })
    }
}

#[cfg(test)]
mod tests {
    use palisade_replication::Planted;
    use palisade_txn::CommitCommand;
    use palisade_wire::{Commit, CommitRequest, Outcome, SessionId, TxnId};

    use super::*;
    use crate::work::{TURN_WORK, Work};

    fn put(state: &mut StateMachine, sequence: u64, protected_ts: Timestamp) {
        let key = Bytes::from(format!("key {:03}", sequence % 300));
        // Every seventh write is a delete. Some of these keys are written again later.
        let commit = if sequence.is_multiple_of(7) {
            Commit::new().delete(key)
        } else {
            Commit::new().put(key, vec![sequence as u8; 3_000])
        };
        let request = CommitRequest {
            txn: TxnId { session: SessionId(sequence % 5), sequence },
            settled_below: 0,
            expires_ts: Timestamp::MAX,
            commit,
        };
        let proposed_ts = Timestamp::from_physical_us(sequence * 100_000);
        state.apply(
            CommitCommand { proposed_ts, request }.to_payload(),
            protected_ts,
            Planted::default(),
            &mut Work::new(TURN_WORK),
        );
    }

    fn values(state: &StateMachine) -> Vec<Option<Bytes>> {
        let mut work = Work::new(TURN_WORK);
        let get = |key: u32| match state.get(format!("key {key:03}").as_bytes(), false, &mut work) {
            Outcome::Value { value, .. } => value,
            other => panic!("{other:?}"),
        };
        (0..300).map(get).collect()
    }

    #[test]
    fn snapshot_is_consistent_during_concurrent_writes() {
        let mut state = StateMachine::keys();
        for sequence in 1..400 {
            put(&mut state, sequence, Timestamp::MAX);
        }
        let expected = values(&state);
        let mut reader = StateReader::new(&state, 77, SNAPSHOT_PART_BYTES, false);
        let mut builder = StateBuilder::new(RangeId(1));
        let (mut sequence, mut parts) = (400, 0);
        loop {
            let (part, last) = reader.next_part(&state);
            builder.push(part).unwrap();
            parts += 1;
            if last {
                break;
            }
            for _ in 0..100 {
                put(&mut state, sequence, reader.protected_ts());
                sequence += 1;
            }
        }
        assert!(parts > 2, "{parts} parts");
        let built = builder.finish().unwrap();
        assert_eq!((built.digest, built.last_ts), (77, reader.protected_ts()));
        assert_eq!(values(&built.state), expected);
        assert_ne!(values(&state), expected);
        let StateMachine::Keys { outcomes, .. } = built.state else { panic!("it holds keys") };
        assert_eq!(outcomes.to_pieces().count(), 5);
    }

    #[test]
    fn part_with_repeated_items_or_of_another_kind_is_refused() {
        let mut state = StateMachine::keys();
        (1..9).for_each(|sequence| put(&mut state, sequence, Timestamp::MAX));
        let (part, _) = StateReader::new(&state, 0, SNAPSHOT_PART_BYTES, false).next_part(&state);
        let mut builder = StateBuilder::new(RangeId(1));
        builder.push(part.clone()).unwrap();
        assert!(builder.push(part.clone()).is_err(), "sessions or keys come twice");
        assert!(StateBuilder::new(RangeId::CONTROL).push(part).is_err(), "keys in range 0");
        assert!(StateBuilder::new(RangeId::CONTROL).finish().is_err(), "no range map");
        let map = item(RANGE_MAP, |out| Bytes::new().encode(out));
        assert!(StateBuilder::new(RangeId(1)).push(map).is_err(), "a range map among keys");
    }
}
