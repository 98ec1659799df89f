//! Terms and votes (thesis §3.4), and pre-votes (§9.6).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use palisade_wire::PeerAddress;

use super::{Body, Leader, Message, Raft, RoleState, Timing, progress::Progress};
use crate::{After, Context, Effects, Entry, EntryKind, ProtocolFault, Revocation, Revoked};

/// How often the time between elections doubles at most.
const MAX_DOUBLINGS: u32 = 4;

/// The longest that an election waits for slow disks.
const MAX_DISK_WAIT_US: u64 = 3_000_000;

impl Raft {
    /// Follower: stands for election once its leader is suspected. Voters stand one after another,
    /// so that one can win before the next one stands.
    pub(super) fn tick_follower(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        if !self.stands(cx) || self.leader_is_there(cx) {
            self.election_due_us = None;
            self.ask_if_removed(cx, effects);
            return;
        }
        match self.election_due_us {
            None => {
                let stagger_us = self.timing.stagger_us;
                let wait_us = self.place_in_line() * stagger_us + self.random.u64(0..stagger_us);
                self.election_due_us = Some(cx.now_us + wait_us);
            }
            Some(due_us) => {
                if self.vote.is_some() && !self.log.is_state_durable() {
                    // The candidate waits for this vote.
                    self.election_due_us = Some(due_us.max(cx.now_us + 2 * self.timing.retry_us));
                } else if cx.now_us >= due_us {
                    self.start_pre_vote(cx, effects);
                }
            }
        }
    }

    /// Returns how many voters stand for election before this one. The lost leader is left out, and
    /// the range determines the first voter.
    fn place_in_line(&self) -> u64 {
        let gone = self.leader();
        let mut line = self.members().voters.clone();
        line.retain(|voter| Some(*voter) != gone);
        let first = self.name.range.0 as usize % line.len().max(1);
        line.rotate_left(first);
        line.iter().position(|voter| *voter == self.me).unwrap_or(line.len()) as u64
    }

    /// Returns true if the leader of the term is live, judged by the heartbeats of its shard.
    pub(super) fn leader_is_there(&self, cx: Context<'_>) -> bool {
        self.leader.is_some_and(|(leader, session)| {
            cx.peers.session_of(leader) == session && cx.peers.is_heard(leader)
        })
    }

    /// Returns true if this replica may not vote for `candidate`, since a leader may count on it.
    pub(super) fn has_promised(&self, candidate: PeerAddress, cx: Context<'_>) -> bool {
        let to_leader_us = match self.leader {
            Some((leader, session)) if leader != candidate => {
                cx.peers.promised_until_us(leader, session)
            }
            _ => 0,
        };
        let inherited_us = if self.has_past { cx.peers.inherited_promises_until_us() } else { 0 };
        let until_us = to_leader_us.max(self.promised_until_us).max(inherited_us);
        matches!(self.role, RoleState::Leader(_))
            || (until_us > cx.now_us && !self.planted.is(ProtocolFault::BreakPromises))
    }

    /// Moves to a later term with the given vote, and requests the write of both. Revokes the
    /// support of the earlier term's leader.
    pub(super) fn enter_term(
        &mut self,
        term: u64,
        vote: Option<PeerAddress>,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        assert!(term > self.term, "{}: the term went back", self.name);
        if let Some((leader, session)) = self.leader.filter(|(leader, _)| *leader != self.me) {
            // A promise to a leader outlives its term.
            let promised_us = cx.peers.promised_until_us(leader, session);
            self.promised_until_us = self.promised_until_us.max(promised_us);
            let (range, what) = (self.name.range, Revoked::Support);
            effects.revoked.push((leader, Revocation { range, term, what }));
        }
        self.step_down(effects);
        self.term = term;
        self.vote = vote;
        self.persist_state(cx.now_us, effects);
    }

    /// Candidate: once its own vote is durable, repeats the requests that were not answered. Starts
    /// another election when it is due.
    pub(super) fn tick_candidate(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        if !self.log.is_state_durable() {
            return;
        }
        if self.election_due_us.is_none_or(|due_us| cx.now_us >= due_us) {
            self.start_pre_vote(cx, effects);
        } else {
            self.ask_for_votes(cx, effects);
        }
    }

    /// Ends this replica's role in its term and makes it a follower without a leader. The time of
    /// its next election is kept, because otherwise a candidate that cannot win could keep delaying
    /// those that can.
    pub(super) fn step_down(&mut self, effects: &mut Effects<Message>) {
        let role = std::mem::replace(&mut self.role, RoleState::Follower);
        if let RoleState::Leader(leader) = role {
            let waiting = leader.rounds.into_iter().flat_map(|round| round.tokens);
            effects.refused_reads.extend(waiting.chain(leader.new_reads));
            let (range, term, what) = (self.name.range, self.term, Revoked::Leadership);
            let revocation = Revocation { range, term, what };
            effects.revoked.extend(leader.progress.into_keys().map(|peer| (peer, revocation)));
        }
        self.leader = None;
        self.uncommitted_bytes = 0;
    }

    /// Handles a peer's revocation of its leadership or support.
    pub fn revoked(
        &mut self,
        from: PeerAddress,
        revocation: Revocation,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let Revocation { term, what, .. } = revocation;
        match what {
            // At an equal term this replica may have been elected since: it keeps its leadership.
            Revoked::Support if term > self.term => self.enter_term(term, None, cx, effects),
            Revoked::Leadership => {
                self.abdicated_term = self.abdicated_term.max(term);
                if term == self.term && self.leader() == Some(from) {
                    self.leader = None;
                }
            }
            Revoked::Support => {}
        }
    }

    /// Starts a pre-vote, which asks whether this replica could win, before it disturbs others with
    /// a new term.
    pub(super) fn start_pre_vote(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let retry_us = self.timing.retry_us;
        self.election_due_us = Some(cx.now_us + self.random.u64(retry_us..2 * retry_us));
        self.role = RoleState::Follower;
        if self.leader_is_there(cx) || !self.stands(cx) || self.has_promised(self.me, cx) {
            return;
        }
        self.role = RoleState::PreCandidate { votes: BTreeSet::from([self.me]) };
        self.request_pre_votes(effects);
        self.stand_if_it_could_win(cx, effects);
    }

    pub(super) fn request_pre_votes(&self, effects: &mut Effects<Message>) {
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peers() {
            let request = self.message(Body::RequestPreVote { last_index, last_term });
            effects.send(peer, request, After::Nothing);
        }
    }

    pub(super) fn consider_pre_vote(
        &mut self,
        from: PeerAddress,
        term: u64,
        last: (u64, u64),
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        if term < self.term {
            self.reject_stale_term(from, effects);
        } else if self.is_complete(last) && !self.has_promised(from, cx) {
            effects.send(from, self.message(Body::PreVote { asked_in: term }), After::Nothing);
        }
    }

    pub(super) fn count_pre_vote(
        &mut self,
        from: PeerAddress,
        asked_in: u64,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        if let RoleState::PreCandidate { votes } = &mut self.role
            && asked_in == self.term
        {
            votes.insert(from);
            self.stand_if_it_could_win(cx, effects);
        }
    }

    fn stand_if_it_could_win(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::PreCandidate { votes } = &self.role else { return };
        if self.reached(|voter| u64::from(votes.contains(&voter))) == 0 {
            return;
        }
        // A heartbeat may have renewed the promise since the pre-vote began. A vote for itself
        // would break it, as any other vote would.
        let unlooked = self.planted.is(ProtocolFault::StandUnlooked);
        if !self.stands(cx) || self.has_promised(self.me, cx) && !unlooked {
            self.role = RoleState::Follower;
            return;
        }
        self.campaign(false, cx, effects);
    }

    /// Enters the next term as a candidate, votes for itself and requests votes.
    pub(super) fn campaign(
        &mut self,
        transfer: bool,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        self.enter_term(self.term + 1, Some(self.me), cx, effects);
        let retry_us = self.count_election();
        self.election_due_us = Some(cx.now_us + self.random.u64(retry_us..2 * retry_us));
        self.role = RoleState::Candidate { votes: BTreeSet::new(), transfer, ask_due_us: 0 };
        self.ask_for_votes(cx, effects);
    }

    /// Candidate: requests the votes that it lacks, at most once per `retry_us`. A request or a
    /// reply may be lost, and the next election may be far.
    fn ask_for_votes(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::Candidate { votes, transfer, ask_due_us } = &mut self.role else { return };
        if cx.now_us < *ask_due_us {
            return;
        }
        *ask_due_us = cx.now_us + self.timing.retry_us;
        let (votes, transfer) = (votes.clone(), *transfer);
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peers().into_iter().filter(|peer| !votes.contains(peer)) {
            let request = self.message(Body::RequestVote { last_index, last_term, transfer });
            effects.send(peer, request, self.after_vote());
        }
    }

    /// Counts an election and returns its base timeout in microseconds. The timeout is at least the
    /// time of two state writes on this disk, limited to `MAX_DISK_WAIT_US`. Each election without
    /// a winner doubles it, up to `MAX_DOUBLINGS` times, because other disks may be slower or
    /// several candidates may compete.
    fn count_election(&mut self) -> u64 {
        let Timing { retry_us, .. } = self.timing;
        let patience_us = retry_us << self.elections_in_vain.min(MAX_DOUBLINGS);
        self.elections_in_vain += 1;
        patience_us.max((2 * self.state_took_us).min(MAX_DISK_WAIT_US))
    }

    fn after_vote(&self) -> After {
        if self.planted.is(ProtocolFault::UnsyncedVote) { After::Nothing } else { After::Appends }
    }

    /// Returns true if a log whose last entry has this term and index holds every entry that this
    /// replica may have committed.
    fn is_complete(&self, last: (u64, u64)) -> bool {
        last >= (self.log.last_term(), self.log.last_index())
            || self.planted.is(ProtocolFault::IncompleteLeader)
    }

    /// Votes, once a term, for a candidate whose log is at least as complete as this one.
    pub(super) fn consider_vote(
        &mut self,
        from: PeerAddress,
        last: (u64, u64),
        transfer: bool,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let free = self.vote.is_none_or(|candidate| candidate == from);
        let promised = !transfer && self.has_promised(from, cx);
        if !free || promised || !self.is_complete(last) {
            return;
        }
        if self.vote.is_none() {
            self.vote = Some(from);
            self.persist_state(cx.now_us, effects);
        }
        // Gives the candidate time to win. `tick_follower` extends it until the vote is durable.
        self.election_due_us = Some(cx.now_us + 2 * self.timing.retry_us);
        effects.send(from, self.message(Body::Vote), self.after_vote());
    }

    pub(super) fn count_vote(
        &mut self,
        from: PeerAddress,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        if let RoleState::Candidate { votes, .. } = &mut self.role {
            votes.insert(from);
            self.try_to_win(cx, effects);
        }
    }

    /// Becomes the leader once a majority has voted for it. Its own vote counts once it is durable.
    pub(super) fn try_to_win(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::Candidate { votes, .. } = &mut self.role else { return };
        if self.log.is_state_durable() {
            votes.insert(self.me);
        }
        let votes = votes.clone();
        if self.reached(|voter| u64::from(votes.contains(&voter))) == 0 {
            return;
        }
        let next_index = self.log.last_index() + 1;
        let progress: BTreeMap<_, _> = self
            .peers()
            .into_iter()
            .map(|peer| (peer, Box::new(Progress::new(next_index))))
            .collect();
        self.leader = Some((self.me, cx.peers.session()));
        self.elections_in_vain = 0;
        self.election_due_us = None;
        self.uncommitted_bytes = self.log.payload_bytes_after(self.commit_index);
        self.role = RoleState::Leader(Box::new(Leader {
            progress,
            first_index: next_index,
            grace_until_us: cx.now_us + self.timing.grace_us,
            heartbeat_due_us: 0,
            round: 0,
            new_reads: Vec::new(),
            rounds: VecDeque::new(),
            transfer: None,
            failed_successor: None,
            gave_up_lease: false,
            slow_disk_due_us: 0,
        }));
        // Entries of earlier terms are committed only together with an entry of the new term
        // (thesis §3.6.2).
        let (term, kind) = (self.term, EntryKind::Command);
        let entry = Entry { index: next_index, term, kind, payload: Bytes::new() };
        self.append(entry, cx.now_us, effects);
    }

    /// Follows the leader of the current term, unless that leader has revoked its leadership.
    pub(super) fn follow(
        &mut self,
        from: PeerAddress,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        assert!(
            !matches!(self.role, RoleState::Leader(_)),
            "{}: two leaders in term {}: this one and {from}",
            self.name,
            self.term
        );
        self.step_down(effects);
        self.informed(cx);
        if self.abdicated_term < self.term {
            self.leader = Some((from, cx.peers.session_of(from)));
            self.elections_in_vain = 0;
            self.election_due_us = None;
        }
    }

    /// Replies to a message of an earlier term with the current term.
    pub(super) fn reject_stale_term(&self, to: PeerAddress, effects: &mut Effects<Message>) {
        effects.send(to, self.message(Body::Outdated), After::Appends);
    }
}
