//! A read-only view of a replica, for the simulator and for tests.

use palisade_replication::Entry;
use palisade_wire::{Mode, PeerAddress, RangeId, Role};

use crate::replica::Replica;

/// A replica between two turns. All getters are cheap, except those that return lists of members.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaView<'a> {
    replica: &'a Replica,
}

impl<'a> ReplicaView<'a> {
    pub(crate) fn new(replica: &'a Replica) -> Self {
        Self { replica }
    }

    /// Returns the range.
    pub fn range(&self) -> RangeId {
        self.replica.descriptor.range
    }

    /// Returns the replication mode of the range.
    pub fn mode(&self) -> Mode {
        self.replica.descriptor.mode
    }

    /// Returns the replica's role in its group.
    pub fn role(&self) -> Role {
        self.replica.group.role()
    }

    /// Returns the Raft term, or the chain epoch.
    pub fn term(&self) -> u64 {
        self.replica.group.term()
    }

    /// Returns the chain epoch; 0 in Raft mode.
    pub fn epoch(&self) -> u64 {
        self.replica.group.epoch()
    }

    /// Returns Raft's leader if it is known, or the chain's head.
    pub fn leader(&self) -> Option<PeerAddress> {
        self.replica.group.leader()
    }

    /// Returns the index of the last entry that is applied.
    pub fn applied_index(&self) -> u64 {
        self.replica.last_applied()
    }

    /// Returns the index of the last entry known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.replica.group.commit_index()
    }

    /// Returns the index of the first entry in memory; one after the last index if there is none.
    pub fn first_index(&self) -> u64 {
        self.replica.group.first_index()
    }

    /// Returns the index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.replica.group.last_index()
    }

    /// Returns the index of the last entry that is durable here together with all earlier ones.
    pub fn durable_index(&self) -> u64 {
        self.replica.group.durable_index()
    }

    /// Returns an entry, or `None` if it is not in memory.
    pub fn entry(&self, index: u64) -> Option<&'a Entry> {
        self.replica.group.entry(index)
    }

    /// Returns a digest of all applied entries, in order.
    pub fn digest(&self) -> u32 {
        self.replica.digest()
    }

    /// Returns the voters, of both halves of a joint configuration; or the members of the chain.
    pub fn voters(&self) -> Vec<PeerAddress> {
        self.replica.group.members().0
    }

    /// Returns the sets of members that decide. In Raft a majority of each is needed: one set, or
    /// two while the voters change. In a chain all members are needed.
    pub fn electorates(&self) -> Vec<Vec<PeerAddress>> {
        self.replica.group.electorates()
    }

    /// Returns the members that receive entries but do not vote.
    pub fn learners(&self) -> Vec<PeerAddress> {
        self.replica.group.members().1
    }

    /// Returns true if Raft's leader is known and not lost, or if the chain's links are up.
    pub fn is_ready(&self) -> bool {
        self.replica.group.is_ready()
    }
}
