//! Who replicates a Raft group (thesis §4): voters, learners, and joint configurations.
//!
//! The problem: replicas learn of a change of the voters at different times. The naive way, each
//! switching when it learns, lets two disjoint majorities exist at once: of the old voters and of
//! the new. In a joint configuration (thesis §4.3) every decision needs a majority of both, so
//! that any two configurations that follow each other have no disjoint majorities.

use bytes::{BufMut, Bytes, BytesMut};
use palisade_wire::{Decode, Encode, PeerAddress, Reader, WireError};

use crate::quorum::reached_by_majority;

/// A configuration of a Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Who votes and is counted.
    pub voters: Vec<PeerAddress>,
    /// While the voters change: who voted before. A majority of these is needed as well.
    pub outgoing: Vec<PeerAddress>,
    /// Who gets the entries without being counted.
    pub learners: Vec<PeerAddress>,
}

/// Replicas of a group, all lists together. Bounds what a damaged message can ask for.
const MAX_MEMBERS: usize = 64;

impl Members {
    /// A configuration of voters only.
    pub fn of(voters: Vec<PeerAddress>) -> Self {
        Self { voters, ..Self::default() }
    }

    /// Whether the voters are changing.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether a replica has a vote.
    pub fn is_voter(&self, peer: PeerAddress) -> bool {
        self.voters.contains(&peer) || self.outgoing.contains(&peer)
    }

    /// Whether a replica gets the entries.
    pub fn contains(&self, peer: PeerAddress) -> bool {
        self.is_voter(peer) || self.learners.contains(&peer)
    }

    /// Everybody who gets the entries, in order, each once.
    pub fn all(&self) -> Vec<PeerAddress> {
        let lists = self.voters.iter().chain(&self.outgoing).chain(&self.learners);
        let mut all: Vec<_> = lists.copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The largest value that the voters have reached: a majority, and while joint a majority of
    /// both halves.
    pub(crate) fn reached(&self, value_of: impl Fn(PeerAddress) -> u64) -> u64 {
        let half = |voters: &[PeerAddress]| {
            let mut values: Vec<_> = voters.iter().map(|voter| value_of(*voter)).collect();
            reached_by_majority(&mut values)
        };
        assert!(!self.voters.is_empty(), "a group has at least one voter");
        half(&self.voters).min(half(&self.outgoing))
    }

    /// Whether this can be proposed: somebody votes, and nobody is listed twice.
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
        Ok(members)
    }
}

/// The configurations in a log: the latest one counts, committed or not (thesis §4.1).
#[derive(Debug)]
pub(crate) struct Configurations {
    /// With the index of the entry that brought each; the first one is the base.
    history: Vec<(u64, Members)>,
}

impl Configurations {
    pub(crate) fn new(index: u64, members: Members) -> Self {
        Self { history: vec![(index, members)] }
    }

    pub(crate) fn current(&self) -> &Members {
        &self.history.last().expect("there is always a base").1
    }

    /// Index of the entry that brought the current one.
    pub(crate) fn index(&self) -> u64 {
        self.history.last().expect("there is always a base").0
    }

    /// The configuration as of an index.
    pub(crate) fn at(&self, index: u64) -> &Members {
        let after = self.history.partition_point(|(from, _)| *from <= index);
        &self.history[after.max(1) - 1].1
    }

    pub(crate) fn push(&mut self, index: u64, members: Members) {
        assert!(index > self.index(), "configurations come in the order of their entries");
        self.history.push((index, members));
    }

    /// Entries from `index` on are gone.
    pub(crate) fn truncate(&mut self, index: u64) {
        while self.history.len() > 1 && self.index() >= index {
            self.history.pop();
        }
    }

    /// Everything before the configuration as of `index` is not asked for any more.
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
    fn a_joint_configuration_needs_both_majorities() {
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
    fn encodings_come_back() {
        let joint = members(&[1, 2], &[2, 3], &[9]);
        assert_eq!(Members::from_bytes(joint.to_bytes()).unwrap(), joint);
        assert!(Members::from_bytes(Bytes::from_static(&[9, 0, 1])).is_err());
    }

    #[test]
    fn the_latest_configuration_counts_until_its_entry_is_gone() {
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
    fn what_makes_no_sense_is_not_sound() {
        assert!(members(&[1, 2], &[], &[3]).is_sound());
        assert!(!members(&[], &[], &[3]).is_sound());
        assert!(!members(&[1, 1], &[], &[]).is_sound());
        assert!(!members(&[1], &[], &[1]).is_sound());
    }
}
