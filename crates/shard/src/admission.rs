//! Decides whether a shard may take part in its groups, and counts its starts.
//!
//! The problem: a shard's log holds its promises, which are votes and acknowledgements. A shard may
//! lose its log (a new disk, a wiped directory) and return under its old address. It could then
//! vote twice in a term, or help to elect a leader that lacks entries that the shard had
//! acknowledged. An empty log does not show whether it is new or was lost.
//!
//! So a shard draws an *incarnation* when its log is created. Its peers durably register the first
//! incarnation that they receive from each address. A new shard takes part only after more than
//! half of its peers have confirmed its present incarnation. Any two such majorities share a peer.
//! If at most a minority of the shards lost their logs, that peer has kept its own, so a second
//! incarnation never gets a majority. The shard is refused once a peer reports another one for it.
//!
//! The same record counts the shard's starts. That number is the *session*: see
//! [`Peers`](palisade_replication::Peers). It is durable before the shard sends a heartbeat or
//! takes part.
//!
//! The record also holds the shape in which the cluster was created. A start with another shape
//! would have another range map, in which existing rows are not found. Peers compare shapes before
//! anything else.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_replication::Append;
use palisade_wire::{Admission as Stage, Decode, Encode, PeerAddress, Reader, WireError};

/// A shard's admission record, and what its peers have confirmed.
#[derive(Debug)]
pub(crate) struct Admission {
    incarnation: u64,
    session: u64,
    /// Encoded shape in which the cluster was created; empty for an embedded database.
    shape: Bytes,
    /// The registered incarnation of each peer.
    registry: BTreeMap<PeerAddress, u64>,
    /// Peers that have registered this shard's incarnation.
    registered_at: BTreeSet<PeerAddress>,
    /// How many peers must have registered it.
    needed: usize,
    refused: bool,
    /// Number of the write that holds the present record, or `None` if it must be written.
    written: Option<u64>,
    is_durable: bool,
    /// True once this session's first record is durable.
    has_begun: bool,
}

impl Admission {
    /// Creates the state for a shard with this many peers, from the session and record in its log
    /// if there are any. `shape` is used only if there are none.
    pub(crate) fn new(
        recovered: Option<(u64, Bytes)>,
        shape: Bytes,
        fresh_incarnation: u64,
        peers: usize,
        trust_empty_log: bool,
    ) -> Result<Self, WireError> {
        let needed = if peers == 0 || trust_empty_log { 0 } else { peers / 2 + 1 };
        let mut admission = Self {
            incarnation: fresh_incarnation.max(1),
            session: 1,
            shape,
            registry: BTreeMap::new(),
            registered_at: BTreeSet::new(),
            needed,
            refused: false,
            written: None,
            is_durable: false,
            has_begun: false,
        };
        if let Some((session, record)) = recovered {
            admission.session = session + 1;
            admission.restore(record)?;
        }
        Ok(admission)
    }

    /// Returns the record if it must be written, as write number `shard_appends + 1` of the shard.
    pub(crate) fn record(&mut self, shard_appends: u64) -> Option<Append> {
        if self.written.is_some() {
            return None;
        }
        self.written = Some(shard_appends + 1);
        self.is_durable = false;
        let mut payload = BytesMut::new();
        payload.put_u64_le(self.incarnation);
        payload.put_u16_le(u16::try_from(self.registry.len()).expect("peers are few"));
        for (peer, incarnation) in &self.registry {
            peer.encode(&mut payload);
            payload.put_u64_le(*incarnation);
        }
        payload.put_u16_le(u16::try_from(self.registered_at.len()).expect("peers are few"));
        for peer in &self.registered_at {
            peer.encode(&mut payload);
        }
        self.shape.encode(&mut payload);
        Some(Append::State { term: self.session, payload: payload.freeze() })
    }

    /// Returns at most how many bytes the record takes in the log.
    pub(crate) fn record_bytes(&self) -> u64 {
        let peers = self.registry.len() + self.registered_at.len();
        (self.shape.len() + 16 * peers + 128) as u64
    }

    /// Requests that the record is written again, unchanged.
    pub(crate) fn rewrite(&mut self) {
        if self.is_durable {
            self.written = None;
        }
    }

    fn restore(&mut self, record: Bytes) -> Result<(), WireError> {
        let mut reader = Reader::new(record);
        self.incarnation = reader.u64()?;
        for _ in 0..reader.u16()? {
            self.registry.insert(PeerAddress::decode(&mut reader)?, reader.u64()?);
        }
        for _ in 0..reader.u16()? {
            self.registered_at.insert(PeerAddress::decode(&mut reader)?);
        }
        self.shape = reader.bytes()?;
        reader.finish()
    }

    /// Returns the encoded shape in which the cluster was created.
    pub(crate) fn shape(&self) -> &Bytes {
        &self.shape
    }

    /// Returns the checksum by which messages compare shapes.
    pub(crate) fn shape_checksum(&self) -> u32 {
        crc32fast::hash(&self.shape)
    }

    /// Records that the shard's first `shard_appends` writes are durable.
    pub(crate) fn durable(&mut self, shard_appends: u64) {
        if self.written.is_some_and(|written| written <= shard_appends) {
            self.is_durable = true;
            self.has_begun = true;
        }
    }

    /// Processes a peer's incarnation, and the one that the peer has registered for this shard.
    /// Returns true if the peer's incarnation is the one registered here.
    pub(crate) fn receive(&mut self, from: PeerAddress, incarnation: u64, registered: u64) -> bool {
        let mut changed = false;
        let known = *self.registry.entry(from).or_insert_with(|| {
            changed = true;
            incarnation
        });
        if registered == self.incarnation {
            changed |= self.registered_at.insert(from);
        } else if registered != 0 && !self.is_admitted() {
            self.refused = true;
        }
        if changed {
            self.written = None;
            self.is_durable = false;
        }
        known == incarnation
    }

    /// Returns this incarnation, and the one that is durably registered for the peer, or 0.
    pub(crate) fn introduction(&self, to: PeerAddress) -> (u64, u64) {
        let registered = if self.is_durable { self.registry.get(&to) } else { None };
        (self.incarnation, registered.copied().unwrap_or(0))
    }

    /// Returns the number of this start of the shard.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Returns true if the session is durable, so that peers may receive it.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Returns true if the shard's replicas may take part in their groups.
    pub(crate) fn is_admitted(&self) -> bool {
        self.has_begun && !self.refused && self.registered_at.len() >= self.needed
    }

    pub(crate) fn stage(&self) -> Stage {
        match (self.refused, self.is_admitted()) {
            (true, _) => Stage::Refused,
            (false, true) => Stage::Admitted,
            (false, false) => Stage::Joining,
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{NodeId, ShardId};

    use super::*;

    fn at(node: u16) -> PeerAddress {
        PeerAddress { node: NodeId(node), shard: ShardId(0) }
    }

    fn shape() -> Bytes {
        Bytes::from_static(b"shape")
    }

    fn begun(incarnation: u64, peers: usize) -> Admission {
        let mut admission = Admission::new(None, shape(), incarnation, peers, false).unwrap();
        admission.record(0).expect("a start is recorded");
        admission.durable(1);
        admission
    }

    #[test]
    fn admission_needs_more_than_half_of_peers() {
        let mut shard = begun(5, 4);
        for (peer, expected) in [(1, false), (2, false), (3, true)] {
            assert!(shard.receive(at(peer), 100, 5));
            assert_eq!(shard.is_admitted(), expected, "after {peer}");
        }
        assert!(begun(5, 0).is_admitted());
    }

    #[test]
    fn second_incarnation_is_refused_after_registration() {
        let mut peer = begun(9, 2);
        assert!(peer.receive(at(0), 5, 0));
        // The registration is not sent before it is durable.
        assert_eq!(peer.introduction(at(0)), (9, 0));
        peer.record(1).expect("the registry has changed");
        peer.durable(2);
        assert_eq!(peer.introduction(at(0)), (9, 5));
        assert!(!peer.receive(at(0), 6, 0));
        let mut wiped = begun(6, 2);
        wiped.receive(at(1), 9, 5);
        assert_eq!(wiped.stage(), Stage::Refused);
    }

    #[test]
    fn restart_increments_session_and_keeps_registry() {
        let mut shard = begun(5, 2);
        shard.receive(at(1), 100, 5);
        shard.receive(at(2), 100, 5);
        let Some(Append::State { term, payload }) = shard.record(1) else { panic!("changed") };
        let mut again = Admission::new(Some((term, payload)), Bytes::new(), 77, 2, false).unwrap();
        assert_eq!((again.session(), again.shape()), (2, &shape()));
        assert!(!again.is_admitted());
        again.record(0).expect("a start is recorded");
        again.durable(1);
        assert!(again.is_admitted());
        assert_eq!(again.introduction(at(1)), (5, 100));
    }
}
