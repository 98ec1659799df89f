//! Whether a shard may take part, and which life of it this is.
//!
//! The problem: votes and confirmations are promises that a shard remembers in its log. A shard
//! whose log was lost (a new disk, a wiped directory) and that comes back under its old address
//! would break them without knowing: vote twice in a term, or help to elect a leader that lacks
//! what it had confirmed. An empty log alone does not tell a lost one from a new one.
//!
//! So a shard draws an *incarnation* when its log is made, and its peers remember, durably, the
//! first incarnation that they hear at an address. A new shard takes part only once more than half
//! of its peers have told it that they know it by its present incarnation: any two such sets
//! share a peer that was not lost, so a second incarnation never gets there. It learns from the
//! first peer that knows another one that it is refused.
//!
//! The same record counts the shard's starts. That number, the session, tells its lives apart:
//! see [`Peers`](palisade_replication::Peers). It is durable before anything is sent.
//!
//! The record also holds the shape in which the cluster was created, for the same reason: a start
//! with another shape would have another range map, in which the rows of the first are not found.
//! Peers compare shapes before anything else.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_replication::Append;
use palisade_wire::{Admission as Stage, Decode, Encode, PeerAddress, Reader, WireError};

/// What a shard knows of its own place among its peers.
#[derive(Debug)]
pub(crate) struct Admission {
    incarnation: u64,
    session: u64,
    /// In which the cluster was created; empty for a database that is no cluster's.
    shape: Bytes,
    /// The incarnation of each peer that was heard.
    registry: BTreeMap<PeerAddress, u64>,
    /// The peers that know this incarnation.
    registered_at: BTreeSet<PeerAddress>,
    /// How many of them are enough.
    needed: usize,
    refused: bool,
    /// The shard's write that holds the present record.
    written: Option<u64>,
    is_durable: bool,
    /// Whether the record of this session was ever durable.
    has_begun: bool,
}

impl Admission {
    /// A shard with the record that it finds in its log, if any, and so many peers. `shape` counts
    /// if the log holds none.
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

    /// The record to write, if it has changed.
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

    /// Has the record written again, as it is.
    pub(crate) fn write_anew(&mut self) {
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

    /// The shape in which the cluster was created, as its encoding.
    pub(crate) fn shape(&self) -> &Bytes {
        &self.shape
    }

    /// Tells shapes apart, in messages.
    pub(crate) fn shape_checksum(&self) -> u32 {
        crc32fast::hash(&self.shape)
    }

    /// The first so many writes of the shard are durable.
    pub(crate) fn durable(&mut self, shard_appends: u64) {
        if self.written.is_some_and(|written| written <= shard_appends) {
            self.is_durable = true;
            self.has_begun = true;
        }
    }

    /// Takes in what a peer says of both; tells whether the peer is the one that is known.
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

    /// What to tell a peer: this incarnation, and the one under which the peer is known.
    pub(crate) fn introduction(&self, to: PeerAddress) -> (u64, u64) {
        let registered = if self.is_durable { self.registry.get(&to) } else { None };
        (self.incarnation, registered.copied().unwrap_or(0))
    }

    /// Which life of the shard this is.
    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// Whether the session is durable, so that peers may hear of it.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether the shard's replicas may take part.
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
    fn a_new_shard_waits_for_more_than_half_of_its_peers() {
        let mut shard = begun(5, 4);
        for (peer, expected) in [(1, false), (2, false), (3, true)] {
            assert!(shard.receive(at(peer), 100, 5));
            assert_eq!(shard.is_admitted(), expected, "after {peer}");
        }
        assert!(begun(5, 0).is_admitted());
    }

    #[test]
    fn a_second_incarnation_is_refused_and_said_so() {
        let mut peer = begun(9, 2);
        assert!(peer.receive(at(0), 5, 0));
        // Not before it is durable.
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
    fn a_restart_counts_and_remembers() {
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
