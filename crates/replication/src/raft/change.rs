//! Changing the members (thesis §4): learners at once, voters by joint consensus.
//!
//! To replace a voter, add the new replica as a learner. Once it has caught up, propose it as a
//! voter in place of the old one. The leader writes the joint configuration, which applies from
//! when it is in a log. When it is committed, the leader writes the final configuration by itself.
//! A leader that is not a voter of the final configuration steps down once that is committed.

use palisade_wire::PeerAddress;

use super::{Message, Raft, RoleState, progress::Progress};
use crate::{
    Context, Effects, Entry, EntryKind, Members, ProtocolFault, Refusal, quorum::majority,
};

/// How far a learner may be behind to become a voter, in entries.
const MAX_BEHIND_ENTRIES: u64 = 1_000;

impl Raft {
    /// Makes the given replicas the voters and learners. Returns the index and term of the entry
    /// that begins the change. A change of the voters ends with a second entry, which the leader
    /// appends by itself.
    ///
    /// # Errors
    ///
    /// - [`Refusal::NotServing`] if this replica does not lead; retryable.
    /// - [`Refusal::NotNow`] if a change or a transfer is pending, no entry of this term is
    ///   committed, a new voter is not a learner within 1,000 entries of the end of the log, or
    ///   fewer than a majority of the new voters are live; retryable. Lists without a voter, with a
    ///   duplicate or with more than 64 replicas are always refused.
    pub fn change_members(
        &mut self,
        voters: Vec<PeerAddress>,
        learners: Vec<PeerAddress>,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) -> Result<(u64, u64), Refusal> {
        let hint = self.leader();
        let RoleState::Leader(leader) = &self.role else {
            return Err(Refusal::NotServing { hint });
        };
        let current = self.members();
        let under_way = current.is_joint() || self.configurations.index() > self.commit_index;
        // Until an entry of this term is committed, a configuration of an earlier term may still be
        // undone while this change builds on it (a variant of the single-server bug of 2015).
        let settled = self.commit_index >= leader.first_index;
        let caught_up = |peer| {
            let match_index = leader.progress.get(&peer).map_or(0, |p| p.match_index);
            match_index + MAX_BEHIND_ENTRIES >= self.log.last_index() && match_index > 0
        };
        let ready = voters.iter().all(|voter| {
            current.voters.contains(voter) || current.learners.contains(voter) && caught_up(*voter)
        });
        // Without a live majority of the new voters the change could not be completed.
        let there = |voter: &&PeerAddress| **voter == self.me || cx.peers.is_heard(**voter);
        let can_go_on = voters.iter().filter(there).count() >= majority(voters.len());
        let mut target = Members { voters, outgoing: Vec::new(), learners };
        let allowed = target.is_sound() && ready && can_go_on && settled;
        if !allowed || under_way || leader.transfer.is_some() {
            return Err(Refusal::NotNow);
        }
        let same_voters = target.voters.len() == current.voters.len()
            && target.voters.iter().all(|voter| current.voters.contains(voter));
        if !same_voters && !self.planted.is(ProtocolFault::NoJointConsensus) {
            target.outgoing.clone_from(&current.voters);
        }
        Ok(self.append_members(&target, cx, effects))
    }

    fn append_members(
        &mut self,
        members: &Members,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) -> (u64, u64) {
        let (index, term) = (self.log.last_index() + 1, self.term);
        let (kind, payload) = (EntryKind::Members, members.to_bytes());
        self.append(Entry { index, term, kind, payload }, cx.now_us, effects);
        (index, term)
    }

    /// Leader: acts on a committed configuration. Completes a joint one, or steps down if it is
    /// final and this replica is not a voter in it.
    pub(super) fn settle_members(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::Leader(_) = self.role else { return };
        if self.configurations.index() > self.commit_index {
            return;
        }
        if self.members().is_joint() {
            let mut last = self.members().clone();
            last.outgoing.clear();
            self.append_members(&last, cx, effects);
        } else if !self.is_voter() {
            self.step_down(effects);
        }
    }

    /// Leader: adopts the latest configuration. Starts replication to new members, and ends it to
    /// removed ones.
    pub(super) fn members_changed(&mut self) {
        let peers = self.peers();
        let last_index = self.log.last_index();
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.progress.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            leader.progress.entry(peer).or_insert_with(|| Box::new(Progress::new(last_index)));
        }
    }
}
