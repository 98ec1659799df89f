//! The members of a Raft group (thesis §4): voters, learners, and joint configurations.
//!
//! The problem: replicas learn of a change of the voters at different times. If each switched when
//! it learned of the change, two disjoint majorities could exist at once, one of the old voters and
//! one of the new. In a joint configuration (thesis §4.3) every decision needs a majority of both,
//! so no two consecutive configurations have disjoint majorities.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_wire::{Decode, Encode, PeerAddress, Reader, WireError};

use crate::quorum::reached_by_majority;

/// A configuration of a Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The replicas that vote and count towards a commit.
    pub voters: Vec<PeerAddress>,
    /// The previous voters while the voters change, otherwise empty. A majority of these is needed
    /// as well.
    pub outgoing: Vec<PeerAddress>,
    /// The replicas that receive the entries without being counted.
    pub learners: Vec<PeerAddress>,
}

/// Maximum number of voters and learners in a proposed configuration.
const MAX_MEMBERS: usize = 64;

impl Members {
    /// Returns a configuration of voters only.
    pub fn of(voters: Vec<PeerAddress>) -> Self {
        Self { voters, ..Self::default() }
    }

    /// Returns true while the voters change.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Returns true if a replica has a vote.
    pub fn is_voter(&self, peer: PeerAddress) -> bool {
        self.voters.contains(&peer) || self.outgoing.contains(&peer)
    }

    /// Returns true if a replica receives the entries.
    pub fn contains(&self, peer: PeerAddress) -> bool {
        self.is_voter(peer) || self.learners.contains(&peer)
    }

    /// Returns all replicas that receive the entries, sorted, each once.
    pub fn all(&self) -> Vec<PeerAddress> {
        let lists = self.voters.iter().chain(&self.outgoing).chain(&self.learners);
        let mut all: Vec<_> = lists.copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the largest value that a majority of the voters has reached. A joint configuration
    /// needs a majority of both lists.
    pub(crate) fn reached(&self, value_of: impl Fn(PeerAddress) -> u64) -> u64 {
        let half = |voters: &[PeerAddress]| {
            let mut values: Vec<_> = voters.iter().map(|voter| value_of(*voter)).collect();
            reached_by_majority(&mut values)
        };
        assert!(!self.voters.is_empty(), "a group has at least one voter");
        half(&self.voters).min(half(&self.outgoing))
    }

    /// Returns true if this can be proposed: it has a voter, no replica is listed twice, and there
    /// are at most `MAX_MEMBERS` replicas.
    pub(crate) fn is_sound(&self) -> bool {
        let listed = self.voters.len() + self.learners.len();
        let mut distinct = [&self.voters[..], &self.learners[..]].concat();
        distinct.sort_unstable();
        distinct.dedup();
        !self.voters.is_empty() && distinct.len() == listed && listed <= MAX_MEMBERS
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        for list in [&self.voters, &self.outgoing, &self.learners] {
            out.put_u16_le(u16::try_from(list.len()).expect("members are few"));
            for member in list {
                member.encode(&mut out);
            }
        }
        out.freeze()
    }

    pub(crate) fn from_bytes(bytes: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let mut list = || {
            let count = reader.u16()?;
            (0..count).map(|_| PeerAddress::decode(&mut reader)).collect::<Result<Vec<_>, _>>()
        };
        let members = Self { voters: list()?, outgoing: list()?, learners: list()? };
        reader.finish()?;
        // A replica that has not received the first configuration yet has an empty one.
        let is_empty = members == Self::default();
        let outgoing = Self::of(members.outgoing.clone());
        if !is_empty && !members.is_sound() || members.is_joint() && !outgoing.is_sound() {
            return Err(WireError::Invalid("a configuration has no voter, or a member twice"));
        }
        Ok(members)
    }

    /// Decodes a configuration of another replica, which has a voter.
    pub(crate) fn from_peer(bytes: Bytes) -> Result<Self, WireError> {
        let members = Self::from_bytes(bytes)?;
        if members.voters.is_empty() {
            return Err(WireError::Invalid("a configuration has no voter"));
        }
        Ok(members)
    }
}

/// The configurations in a log. The latest one applies, committed or not (thesis §4.1).
#[derive(Debug)]
pub(crate) struct Configurations {
    /// Each configuration with the index of its entry. The first one is the base.
    history: Vec<(u64, Members)>,
}

impl Configurations {
    pub(crate) fn new(index: u64, members: Members) -> Self {
        Self { history: vec![(index, members)] }
    }

    pub(crate) fn current(&self) -> &Members {
        &self.history.last().expect("there is always a base").1
    }

    /// Returns the index of the entry that holds the current configuration.
    pub(crate) fn index(&self) -> u64 {
        self.history.last().expect("there is always a base").0
    }

    /// Returns the configuration that applies at an index.
    pub(crate) fn at(&self, index: u64) -> &Members {
        let after = self.history.partition_point(|(from, _)| *from <= index);
        &self.history[after.max(1) - 1].1
    }

    pub(crate) fn push(&mut self, index: u64, members: Members) {
        assert!(index > self.index(), "configurations come in the order of their entries");
        self.history.push((index, members));
    }

    /// Drops the configurations of entries from `index` on, which the log no longer holds.
    pub(crate) fn truncate(&mut self, index: u64) {
        while self.history.len() > 1 && self.index() >= index {
            self.history.pop();
        }
    }

    /// Drops every configuration older than the one that applies at `index`.
    pub(crate) fn forget_before(&mut self, index: u64) {
        let after = self.history.partition_point(|(from, _)| *from <= index);
        self.history.drain(..after.max(1) - 1);
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{NodeId, ShardId};

    use super::*;

    fn at(node: u16) -> PeerAddress {
        PeerAddress { node: NodeId(node), shard: ShardId(0) }
    }

    fn members(voters: &[u16], outgoing: &[u16], learners: &[u16]) -> Members {
        let list = |nodes: &[u16]| nodes.iter().copied().map(at).collect();
        Members { voters: list(voters), outgoing: list(outgoing), learners: list(learners) }
    }

    #[test]
    fn joint_configuration_needs_both_majorities() {
        let joint = members(&[1, 2, 3], &[3, 4, 5], &[6]);
        let table: [(&[u16], bool); 5] = [
            (&[1, 2, 3], false),
            (&[3, 4, 5], false),
            (&[1, 3, 4], true),
            (&[1, 2, 4, 5], true),
            (&[6, 1, 2], false),
        ];
        for (yes, expected) in table {
            let decided = joint.reached(|peer| u64::from(yes.contains(&peer.node.0))) > 0;
            assert_eq!(decided, expected, "{yes:?}");
        }
    }

    #[test]
    fn members_encoding_round_trips() {
        let joint = members(&[1, 2], &[2, 3], &[9]);
        assert_eq!(Members::from_bytes(joint.to_bytes()).unwrap(), joint);
        assert!(Members::from_bytes(Bytes::from_static(&[9, 0, 1])).is_err());
        let none = Members::default();
        assert_eq!(Members::from_bytes(none.to_bytes()).unwrap(), none, "none was received yet");
        assert!(Members::from_peer(none.to_bytes()).is_err(), "no voter");
        let learners = Members { learners: joint.voters.clone(), ..none };
        assert!(Members::from_bytes(learners.to_bytes()).is_err(), "learners alone");
        let mut twice = joint;
        twice.outgoing.push(twice.outgoing[0]);
        assert!(Members::from_bytes(twice.to_bytes()).is_err(), "a voter twice");
    }

    #[test]
    fn latest_configuration_applies_until_truncated() {
        let mut all = Configurations::new(0, members(&[1], &[], &[]));
        all.push(5, members(&[2], &[1], &[]));
        all.push(8, members(&[2], &[], &[]));
        assert_eq!(all.at(4), &members(&[1], &[], &[]));
        assert_eq!(all.at(7), &members(&[2], &[1], &[]));
        assert_eq!(all.current(), &members(&[2], &[], &[]));
        all.truncate(8);
        assert_eq!(all.index(), 5);
        all.forget_before(6);
        all.truncate(1);
        assert_eq!(all.current(), &members(&[2], &[1], &[]));
    }

    #[test]
    fn soundness_requires_voters_without_duplicates() {
        assert!(members(&[1, 2], &[], &[3]).is_sound());
        assert!(!members(&[], &[], &[3]).is_sound());
        assert!(!members(&[1, 1], &[], &[]).is_sound());
        assert!(!members(&[1], &[], &[1]).is_sound());
    }
}
