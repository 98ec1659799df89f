//! Terms and votes (thesis §3.4).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use palisade_wire::PeerAddress;

use super::{Body, Candidate, Follower, Leader, Message, Raft, RoleState, encode_vote};
use crate::{After, Effects, Entry, quorum::majority};

impl Raft {
    /// Draws the next election deadline: timeouts that differ let one candidate win before the
    /// next one stands.
    pub(super) fn reset_election_timer(&mut self, now_us: u64) {
        let election_us = self.timing.election_us;
        self.election_due_us = now_us + self.random.u64(election_us..2 * election_us);
    }

    /// Moves to a later term, in which nothing was said or promised yet.
    pub(super) fn enter_term(&mut self, term: u64, now_us: u64, effects: &mut Effects<Message>) {
        assert!(term > self.term, "{}: the term went back", self.name);
        // Hearing of a term is no reason to wait longer: candidates that can't win would keep those
        // that can from standing. A leader has no deadline running, and needs one.
        if matches!(self.role, RoleState::Leader(_)) {
            self.reset_election_timer(now_us);
        }
        self.step_down(effects);
        self.term = term;
        self.vote = None;
        self.leader = None;
        self.persist_state(effects);
    }

    fn step_down(&mut self, effects: &mut Effects<Message>) {
        let role = std::mem::replace(&mut self.role, RoleState::Follower);
        if let RoleState::Leader(leader) = role {
            let waiting = leader.rounds.into_iter().flat_map(|round| round.tokens);
            effects.refused_reads.extend(waiting.chain(leader.new_reads));
        }
        self.uncommitted_bytes = 0;
    }

    fn persist_state(&mut self, effects: &mut Effects<Message>) {
        let payload: Bytes = encode_vote(self.vote);
        self.log.append_state(self.term, payload, effects);
        self.state_append = self.log.appends();
    }

    /// Stands for election.
    pub(super) fn campaign(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        self.enter_term(self.term + 1, now_us, effects);
        self.reset_election_timer(now_us);
        self.vote = Some(self.me);
        self.persist_state(effects);
        self.role = RoleState::Candidate(Candidate { votes: BTreeSet::new() });
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peers() {
            let request = self.message(Body::RequestVote { last_index, last_term });
            effects.send(peer, request, After::Appends);
        }
    }

    /// Votes, once a term, for a candidate whose log is at least as complete as this one.
    pub(super) fn consider_vote(
        &mut self,
        from: PeerAddress,
        last_index: u64,
        last_term: u64,
        now_us: u64,
        effects: &mut Effects<Message>,
    ) {
        let complete = (last_term, last_index) >= (self.log.last_term(), self.log.last_index());
        let free = self.vote.is_none_or(|candidate| candidate == from);
        if !complete || !free {
            return;
        }
        if self.vote.is_none() {
            self.vote = Some(from);
            self.persist_state(effects);
        }
        self.reset_election_timer(now_us);
        effects.send(from, self.message(Body::Vote), After::Appends);
    }

    pub(super) fn count_vote(&mut self, from: PeerAddress, effects: &mut Effects<Message>) {
        if let RoleState::Candidate(candidate) = &mut self.role {
            candidate.votes.insert(from);
            self.try_to_win(effects);
        }
    }

    /// Becomes the leader once a majority voted for it, itself included once that is durable.
    pub(super) fn try_to_win(&mut self, effects: &mut Effects<Message>) {
        let RoleState::Candidate(candidate) = &mut self.role else { return };
        if self.log.is_durable(self.state_append) {
            candidate.votes.insert(self.me);
        }
        if candidate.votes.len() < majority(self.membership.members.len()) {
            return;
        }
        let next_index = self.log.last_index() + 1;
        let follower = |peer| {
            let follower =
                Follower { match_index: 0, next_index, probing: true, paused: false, round: 0 };
            (peer, follower)
        };
        let followers: BTreeMap<_, _> = self.peers().into_iter().map(follower).collect();
        self.leader = Some(self.me);
        self.role = RoleState::Leader(Leader {
            followers,
            first_index: next_index,
            heartbeat_due_us: 0,
            round: 0,
            new_reads: Vec::new(),
            rounds: VecDeque::new(),
        });
        // An entry of the new term: with it, and only with it, those of earlier terms are
        // committed (thesis §3.6.2).
        let entry = Entry { index: next_index, term: self.term, payload: Bytes::new() };
        self.log.append(entry, effects);
    }

    /// Follows the leader of the current term.
    pub(super) fn follow(
        &mut self,
        from: PeerAddress,
        now_us: u64,
        effects: &mut Effects<Message>,
    ) {
        assert!(
            !matches!(self.role, RoleState::Leader(_)),
            "{}: two leaders in term {}: this one and {from}",
            self.name,
            self.term
        );
        self.step_down(effects);
        self.leader = Some(from);
        self.reset_election_timer(now_us);
    }
}
