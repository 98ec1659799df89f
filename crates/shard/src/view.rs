//! What an observer may see of a replica: for the simulator and for tests.

use palisade_replication::Entry;
use palisade_wire::{Mode, PeerAddress, RangeId, Role};

use crate::replica::Replica;

/// A replica, as it is between two turns. Everything is cheap but the lists of members.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaView<'a> {
    replica: &'a Replica,
}

impl<'a> ReplicaView<'a> {
    pub(crate) fn new(replica: &'a Replica) -> Self {
        Self { replica }
    }

    /// The range.
    pub fn range(&self) -> RangeId {
        self.replica.descriptor.range
    }

    /// How it is replicated.
    pub fn mode(&self) -> Mode {
        self.replica.descriptor.mode
    }

    /// What the replica does in it.
    pub fn role(&self) -> Role {
        self.replica.group.role()
    }

    /// The Raft term, or the chain epoch.
    pub fn term(&self) -> u64 {
        self.replica.group.term()
    }

    /// The chain epoch; 0 in Raft mode.
    pub fn epoch(&self) -> u64 {
        self.replica.group.epoch()
    }

    /// The leader or head, if it is known.
    pub fn leader(&self) -> Option<PeerAddress> {
        self.replica.group.leader()
    }

    /// Index of the last entry known to be committed; all of them are applied.
    pub fn commit_index(&self) -> u64 {
        self.replica.group.commit_index()
    }

    /// Index of the first entry in memory; one after the last if there is none.
    pub fn first_index(&self) -> u64 {
        self.replica.group.first_index()
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.replica.group.last_index()
    }

    /// Index of the last entry known to be durable here with all before it.
    pub fn durable_index(&self) -> u64 {
        self.replica.group.durable_index()
    }

    /// An entry, if it is in memory.
    pub fn entry(&self, index: u64) -> Option<&'a Entry> {
        self.replica.group.entry(index)
    }

    /// A digest of every entry applied so far, in order.
    pub fn digest(&self) -> u32 {
        self.replica.digest()
    }

    /// Who votes, both halves of a joint configuration; or who forms the chain.
    pub fn voters(&self) -> Vec<PeerAddress> {
        self.replica.group.members().0
    }

    /// The sets of which a majority each is needed: one, and two while the voters change. All of a
    /// chain's members are needed.
    pub fn electorates(&self) -> Vec<Vec<PeerAddress>> {
        self.replica.group.electorates()
    }

    /// Who gets the entries without a vote.
    pub fn learners(&self) -> Vec<PeerAddress> {
        self.replica.group.members().1
    }

    /// Whether the replica can do its part: a leader is known, or the chain's links are up.
    pub fn is_ready(&self) -> bool {
        self.replica.group.is_ready()
    }
}
