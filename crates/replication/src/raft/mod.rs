//! Raft (Ongaro's thesis, chapter 3, with the linearizable reads of §6.4).
//!
//! The problem: several replicas must agree on one order of commands although any minority of them
//! may be down or unreachable, and although each forgets, at a crash, whatever it had not synced.
//! The naive way, a primary that copies to backups, breaks when two replicas both believe they are
//! the primary. Raft numbers leaderships (terms); a replica votes once a term, and only for a log
//! at least as complete as its own; so a leader holds every committed entry, and an entry of its
//! own term that a majority holds durably is committed.
//!
//! Where the disk comes in: a replica that asks for votes, votes, or confirms entries does so only
//! after the write behind it is durable ([`After::Appends`]). The leader sends entries before its
//! own sync and counts itself only after it (thesis §10.2.1), so a majority of followers may commit
//! first.
//!
//! Reads: the leader notes its commit index, asks all followers in one round whether it still
//! leads, and lets every read of the batch through once a majority answered and the noted index is
//! applied. Before the first entry of its own term is committed it lets nothing through: it may not
//! know yet what is committed.
//!
//! Left out so far: pre-vote, leader leases, leadership transfer, membership change, snapshots and
//! log truncation.

mod election;
mod message;
mod replicate;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use palisade_wire::{Decode, Encode, PeerAddress, RangeId, Reader, Role, WireError};

pub use message::{Body, Message};

use crate::{
    After, Effects, Entry, Membership, Protocol, RecoveredGroup, Refusal, contract::Name,
    entry_log::EntryLog,
};

/// How a Raft group paces itself.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two messages of a leader that has nothing to send.
    pub heartbeat_us: u64,
    /// A follower that has heard nothing for this long, plus up to as much again at random, stands
    /// for election.
    pub election_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_us: 50_000, election_us: 300_000 }
    }
}

/// Payload that may be uncommitted before proposals are refused, in bytes.
const MAX_UNCOMMITTED_BYTES: usize = 32 * 1024 * 1024;

/// A replica of a Raft group.
#[derive(Debug)]
pub struct Raft {
    name: Name,
    me: PeerAddress,
    membership: Membership,
    timing: Timing,
    random: fastrand::Rng,

    term: u64,
    vote: Option<PeerAddress>,
    /// The write that holds the term and vote.
    state_append: u64,
    log: EntryLog,
    commit_index: u64,
    uncommitted_bytes: usize,

    role: RoleState,
    leader: Option<PeerAddress>,
    election_due_us: u64,
}

#[derive(Debug)]
enum RoleState {
    Follower,
    Candidate(Candidate),
    Leader(Leader),
}

#[derive(Debug)]
struct Candidate {
    votes: BTreeSet<PeerAddress>,
}

#[derive(Debug)]
struct Leader {
    followers: BTreeMap<PeerAddress, Follower>,
    /// Index of the first entry of this term.
    first_index: u64,
    heartbeat_due_us: u64,
    /// The latest round of asking whether this replica still leads.
    round: u64,
    /// Reads that wait for the next round to begin.
    new_reads: Vec<u64>,
    /// Reads that wait for a round to be answered, oldest first.
    rounds: VecDeque<ReadRound>,
}

#[derive(Debug)]
struct ReadRound {
    round: u64,
    /// Must be applied before the reads run.
    index: u64,
    tokens: Vec<u64>,
}

/// What a leader knows of a follower.
#[derive(Debug)]
struct Follower {
    /// Durable there, and equal to the leader's log.
    match_index: u64,
    /// The next entry to send.
    next_index: u64,
    /// Where the logs meet is not known: one message at a time, until one matches.
    probing: bool,
    /// While probing: a message is under way.
    paused: bool,
    /// The latest round that it answered.
    round: u64,
}

impl Raft {
    /// A replica with what it finds in the log.
    ///
    /// A group that has never had a term elects its first member at once, so that fresh clusters
    /// don't sit out an election timeout and leaders spread over the nodes.
    pub fn new(
        range: RangeId,
        me: PeerAddress,
        membership: Membership,
        recovered: RecoveredGroup,
        timing: Timing,
        random_seed: u64,
        now_us: u64,
    ) -> Result<Self, WireError> {
        let name = Name { range, me };
        assert!(membership.members.contains(&me), "{name}: not a member of its own group");
        let fresh = recovered.state.is_none() && recovered.entries.is_empty();
        let (term, vote) = match recovered.state {
            None => (0, None),
            Some((term, payload)) => (term, decode_vote(payload)?),
        };
        let log = EntryLog::new(name, recovered.entries);
        assert!(log.last_term() <= term, "{name}: an entry is of a later term than the state");
        let mut raft = Self {
            name,
            me,
            timing,
            random: fastrand::Rng::with_seed(random_seed),
            term,
            vote,
            state_append: 0,
            log,
            commit_index: 0,
            uncommitted_bytes: 0,
            role: RoleState::Follower,
            leader: None,
            election_due_us: 0,
            membership,
        };
        raft.reset_election_timer(now_us);
        if fresh && raft.membership.members.first() == Some(&me) {
            raft.election_due_us = now_us;
        }
        Ok(raft)
    }

    /// What the replica does in its group.
    pub fn role(&self) -> Role {
        match self.role {
            RoleState::Follower => Role::Follower,
            RoleState::Candidate(_) => Role::Candidate,
            RoleState::Leader(_) => Role::Leader,
        }
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Who leads the current term, if that is known.
    pub fn leader(&self) -> Option<PeerAddress> {
        self.leader
    }

    /// Who replicates the group.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    /// Index of the last entry known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.commit_index
    }

    fn peers(&self) -> Vec<PeerAddress> {
        self.membership.members.iter().copied().filter(|member| *member != self.me).collect()
    }

    fn message(&self, body: Body) -> Message {
        Message { term: self.term, body }
    }

    /// Hands out everything up to `index` as committed.
    fn commit_to(&mut self, index: u64, effects: &mut Effects<Message>) {
        assert!(index <= self.log.last_index(), "{}: commits what it does not hold", self.name);
        while self.commit_index < index {
            self.commit_index += 1;
            let entry = self.log.entry(self.commit_index).clone();
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(entry.payload.len());
            effects.committed.push(entry);
        }
    }
}

impl Protocol for Raft {
    type Message = Message;

    fn tick(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        match &self.role {
            RoleState::Leader(leader) => {
                if now_us >= leader.heartbeat_due_us {
                    self.heartbeat(now_us, effects);
                }
            }
            RoleState::Follower | RoleState::Candidate(_) => {
                if now_us >= self.election_due_us {
                    self.campaign(now_us, effects);
                }
            }
        }
    }

    fn receive(
        &mut self,
        from: PeerAddress,
        message: Message,
        now_us: u64,
        effects: &mut Effects<Message>,
    ) {
        // A replica that is not a member has no say, not even over the term.
        if from == self.me || !self.membership.members.contains(&from) {
            return;
        }
        if message.term > self.term {
            self.enter_term(message.term, now_us, effects);
        }
        if message.term < self.term {
            if matches!(message.body, Body::Append { .. } | Body::RequestVote { .. }) {
                effects.send(from, self.message(Body::Outdated), After::Appends);
            }
            return;
        }
        match message.body {
            Body::RequestVote { last_index, last_term } => {
                self.consider_vote(from, last_index, last_term, now_us, effects);
            }
            Body::Vote => self.count_vote(from, effects),
            Body::Append { previous_index, previous_term, commit_index, round, entries } => {
                self.follow(from, now_us, effects);
                self.accept(
                    replicate::Incoming {
                        from,
                        previous_index,
                        previous_term,
                        commit_index,
                        round,
                        entries,
                    },
                    effects,
                );
            }
            Body::Matched { index, round } => self.matched(from, index, round, effects),
            Body::Mismatched { previous_index, try_index, round } => {
                self.mismatched(from, previous_index, try_index, round, effects);
            }
            // Its term told everything.
            Body::Outdated => {}
        }
    }

    fn durable(&mut self, appends: u64, effects: &mut Effects<Message>) {
        self.log.set_durable(appends);
        match &self.role {
            RoleState::Leader(_) => self.advance_commit(effects),
            RoleState::Candidate(_) => self.try_to_win(effects),
            RoleState::Follower => {}
        }
    }

    fn propose(
        &mut self,
        payload: Bytes,
        effects: &mut Effects<Message>,
    ) -> Result<(u64, u64), Refusal> {
        let RoleState::Leader(_) = self.role else {
            return Err(Refusal::NotServing { hint: self.leader });
        };
        if self.uncommitted_bytes + payload.len() > MAX_UNCOMMITTED_BYTES {
            return Err(Refusal::Overloaded);
        }
        self.uncommitted_bytes += payload.len();
        let (index, term) = (self.log.last_index() + 1, self.term);
        self.log.append(Entry { index, term, payload }, effects);
        Ok((index, term))
    }

    fn read(&mut self, token: u64, _effects: &mut Effects<Message>) -> Result<(), Refusal> {
        let RoleState::Leader(leader) = &mut self.role else {
            return Err(Refusal::NotServing { hint: self.leader });
        };
        leader.new_reads.push(token);
        Ok(())
    }

    fn flush(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        if let RoleState::Leader(_) = self.role {
            self.begin_read_round(now_us, effects);
            self.send_entries(now_us, effects);
            self.release_reads(effects);
        }
    }

    fn orders_writes(&self) -> bool {
        matches!(self.role, RoleState::Leader(_))
    }

    fn holds_proposals(&self) -> bool {
        self.orders_writes()
    }
}

fn encode_vote(vote: Option<PeerAddress>) -> Bytes {
    let mut out = BytesMut::new();
    if let Some(candidate) = vote {
        candidate.encode(&mut out);
    }
    out.freeze()
}

fn decode_vote(payload: Bytes) -> Result<Option<PeerAddress>, WireError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let mut reader = Reader::new(payload);
    let vote = PeerAddress::decode(&mut reader)?;
    reader.finish()?;
    Ok(Some(vote))
}
