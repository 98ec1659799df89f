//! Raft (Ongaro's thesis, chapters 3, 4, 6 and 9).
//!
//! The problem: several replicas must agree on one order of commands, although any minority of them
//! may be down or unreachable, and although a replica loses at a crash everything that it had not
//! synced. A primary that copies to backups breaks when two replicas both believe that they are the
//! primary. Raft numbers leaderships (terms).
//!
//! Invariants:
//! - A replica votes once a term, and only for a candidate whose log is at least as complete as its
//!   own. Therefore a leader holds every committed entry.
//! - An entry of the leader's own term is committed once a majority holds it durably.
//! - A replica sends a vote request, a vote or a confirmation of entries only after the write
//!   behind it is durable ([`After::Appends`](crate::After)).
//!
//! The leader sends entries before its own sync and counts itself only after it (thesis §10.2.1),
//! so a majority of the followers may commit first. A leader that stays behind in this way, because
//! its disk is slow, transfers leadership to one of them.
//!
//! Files:
//! - `election`: terms and votes, pre-votes and promises; `transfer`: leadership transfer;
//! - `replicate`: entries and commits; `progress`: flow control for one follower;
//! - `lease`: reads under a lease or after a round, and a leader that has lost its majority;
//! - `change`: learners, and voters by joint consensus.
//!
//! An idle replica runs no timers. [`Peers`](crate::Peers) detects, for all groups at once, whether
//! the shards of a leader or of followers are live, so an idle group gets no ticks and sends
//! nothing. `liveness` also lists the rules that keep leases safe.
//!
//! Left out: witnesses, and reads at followers (safe timestamps serve those without Raft).

mod change;
mod election;
mod lease;
mod message;
mod progress;
mod removal;
mod replicate;
mod transfer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_wire::{Decode, Encode, PeerAddress, RangeId, Reader, Role, WireError};

pub use message::{Body, Message};

use crate::{
    Context, Effects, Entry, EntryKind, Members, Planted, Protocol, ProtocolFault, RecoveredGroup,
    Refusal, Revocation, Revoked, SnapshotPart, contract::Name, entry_log::EntryLog,
    members::Configurations, raft::progress::Progress,
};

/// Default limit of the entries in one message, in bytes.
pub const DEFAULT_MESSAGE_BYTES: usize = 1024 * 1024;

/// Timing and message size of a Raft group.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Interval between messages to a follower that has not yet confirmed everything, in
    /// microseconds.
    pub heartbeat_us: u64,
    /// How much later each next voter in the election order stands, once the leader is suspected,
    /// in microseconds.
    pub stagger_us: u64,
    /// Minimum wait before the next election after one without a winner, in microseconds. The wait
    /// is random, up to twice this. It grows with repeated failures and with a slow disk.
    pub retry_us: u64,
    /// How long after its election a leader does not check that a majority receives its heartbeats,
    /// in microseconds.
    pub grace_us: u64,
    /// A leader transfers leadership if one of its writes takes longer than this while others
    /// commit, in microseconds.
    pub slow_disk_us: u64,
    /// How long a transfer of leadership may take before the leader gives it up, in microseconds.
    pub transfer_us: u64,
    /// Limit of the entries in one message, in bytes. A larger entry is sent alone.
    pub max_message_bytes: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_us: 50_000,
            stagger_us: 40_000,
            retry_us: 100_000,
            grace_us: 300_000,
            slow_disk_us: 300_000,
            transfer_us: 1_000_000,
            max_message_bytes: DEFAULT_MESSAGE_BYTES,
        }
    }
}

/// Payload that may be uncommitted before proposals are refused, in bytes.
const MAX_UNCOMMITTED_BYTES: usize = 32 * 1024 * 1024;

/// How long the other voters of a new group wait for the first one to stand for election.
const FIRST_LEAD_US: u64 = 300_000;

/// A replica of a Raft group.
#[derive(Debug)]
pub struct Raft {
    name: Name,
    me: PeerAddress,
    timing: Timing,
    random: fastrand::Rng,
    planted: Planted<ProtocolFault>,

    term: u64,
    vote: Option<PeerAddress>,
    /// When the last state was written, and how long the last one took until it was durable.
    state_asked_us: u64,
    state_took_us: u64,
    log: EntryLog,
    configurations: Configurations,
    commit_index: u64,
    /// Commit index found at the restart. Its entries are handed out with the first tick.
    recovered_commit: u64,
    uncommitted_bytes: usize,
    /// Members from part 0 of the snapshot that is being written.
    incoming_members: Option<Members>,

    role: RoleState,
    /// The leader of the current term, and the session of its shard.
    leader: Option<(PeerAddress, u64)>,
    /// The latest term whose leader has revoked its leadership. Its earlier messages may still
    /// arrive.
    abdicated_term: u64,
    /// When the promises to leaders of earlier terms expire.
    promised_until_us: u64,
    /// True if this replica may have given promises before its shard restarted.
    has_past: bool,
    /// When this replica stands for election; `None` if it is not scheduled to.
    election_due_us: Option<u64>,
    /// Elections that this replica has started since it last had a leader.
    elections_in_vain: u32,
    /// When this replica asks whether it was removed, if it has entries that are not committed.
    ask_due_us: u64,
}

#[derive(Debug)]
enum RoleState {
    Follower,
    PreCandidate { votes: BTreeSet<PeerAddress> },
    Candidate { votes: BTreeSet<PeerAddress>, transfer: bool, ask_due_us: u64 },
    Leader(Box<Leader>),
}

#[derive(Debug)]
struct Leader {
    /// Boxed because a node of the map has room for eleven values, and a shard has many groups.
    progress: BTreeMap<PeerAddress, Box<Progress>>,
    /// Index of the first entry of this term.
    first_index: u64,
    /// Until then the leader does not check that a majority receives its heartbeats, because its
    /// voters' shards may not have echoed one yet.
    grace_until_us: u64,
    heartbeat_due_us: u64,
    /// Number of the latest round, in which the leader checks that it still leads.
    round: u64,
    /// Reads that wait for the next round to begin.
    new_reads: Vec<u64>,
    /// Reads that wait for a majority to answer their round, oldest first.
    rounds: VecDeque<ReadRound>,
    transfer: Option<Transfer>,
    /// The target of the last transfer, if it failed.
    failed_successor: Option<PeerAddress>,
    /// True once this leader asked another voter to stand for election: for the rest of the term,
    /// that voter may win votes despite promises.
    gave_up_lease: bool,
    /// Earliest time of the next transfer because of a slow disk.
    slow_disk_due_us: u64,
}

#[derive(Debug)]
struct ReadRound {
    round: u64,
    /// Index that must be committed, and hence applied, before the reads run.
    index: u64,
    tokens: Vec<u64>,
}

#[derive(Debug)]
struct Transfer {
    to: PeerAddress,
    deadline_us: u64,
    /// When the target was asked last to stand for election.
    told_us: Option<u64>,
}

/// The parameters of a new replica.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The group.
    pub range: RangeId,
    /// The address of the replica.
    pub me: PeerAddress,
    /// The initial members. A snapshot or a configuration in the log supersedes them.
    pub members: Members,
    /// The state that recovery found in the log.
    pub recovered: RecoveredGroup,
    /// Seed of the random delays before elections.
    pub random_seed: u64,
    /// A rule to break, in tests.
    pub planted: Planted<ProtocolFault>,
}

impl Raft {
    /// Creates a replica from the state that recovery found in the log.
    ///
    /// In a group without any history the first voter stands for election at the first tick. A
    /// fresh cluster thus does not wait for a timeout, and leaders spread over the nodes.
    ///
    /// # Errors
    ///
    /// [`WireError`] if the recovered state, snapshot or configuration cannot be decoded; not
    /// retryable.
    ///
    /// # Panics
    ///
    /// If the recovered entries have a gap.
    pub fn new(setup: Setup, timing: Timing, now_us: u64) -> Result<Self, WireError> {
        let Setup { range, me, members, recovered, random_seed, planted } = setup;
        let name = Name { range, me };
        let has_past = !recovered.is_empty();
        let (term, (vote, committed)) = match recovered.state {
            None => (0, (None, 0)),
            Some((term, payload)) => (term, decode_state(payload)?),
        };
        let (base, members) = match recovered.snapshot {
            None => ((0, 0), members),
            Some(snapshot) => {
                let head = snapshot.parts.into_iter().next().unwrap_or_default();
                ((snapshot.index, snapshot.term), Members::from_bytes(head)?)
            }
        };
        let mut configurations = Configurations::new(base.0, members);
        for entry in &recovered.entries {
            if entry.kind == EntryKind::Members {
                configurations.push(entry.index, Members::from_bytes(entry.payload.clone())?);
            }
        }
        let log = EntryLog::new(name, base, recovered.entries);
        let first = configurations.current().voters.first() == Some(&me);
        Ok(Self {
            name,
            me,
            timing,
            random: fastrand::Rng::with_seed(random_seed),
            planted,
            // A snapshot may have a later term than the last one that this replica has persisted.
            term: term.max(log.last_term()),
            vote: vote.filter(|_| term >= log.last_term()),
            state_asked_us: 0,
            state_took_us: 0,
            recovered_commit: committed.min(log.last_index()),
            log,
            configurations,
            commit_index: base.0,
            uncommitted_bytes: 0,
            incoming_members: None,
            role: RoleState::Follower,
            leader: None,
            abdicated_term: 0,
            promised_until_us: 0,
            has_past,
            election_due_us: (!has_past).then_some(now_us + if first { 0 } else { FIRST_LEAD_US }),
            elections_in_vain: 0,
            ask_due_us: now_us,
        })
    }

    /// Returns the replica's role in its group.
    pub fn role(&self) -> Role {
        match self.role {
            RoleState::Follower if self.may_stand() => Role::Follower,
            RoleState::Follower if self.members().contains(self.me) => Role::Learner,
            RoleState::Follower => Role::Removed,
            RoleState::PreCandidate { .. } | RoleState::Candidate { .. } => Role::Candidate,
            RoleState::Leader(_) => Role::Leader,
        }
    }

    /// Returns the current term.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Returns the leader of the current term, if known.
    pub fn leader(&self) -> Option<PeerAddress> {
        self.leader.map(|(leader, _)| leader)
    }

    /// Returns the latest configuration in the log, committed or not.
    pub fn members(&self) -> &Members {
        self.configurations.current()
    }

    /// Returns the index of the first entry in memory.
    pub fn first_index(&self) -> u64 {
        self.log.first_index()
    }

    /// Returns the index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    /// Returns the index of the last entry that is durable here with all entries before it.
    pub fn durable_index(&self) -> u64 {
        self.log.durable_index()
    }

    /// Returns the index of the last entry known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.commit_index
    }

    /// Returns an entry, if it is in memory.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.log.entry(index)
    }

    fn is_voter(&self) -> bool {
        self.members().is_voter(self.me)
    }

    /// Returns true if this replica may stand for election: it is a voter of the latest
    /// configuration, or of the one at the commit index. The remaining voters may lack the latest
    /// configuration, and then need a leader that has it (thesis §4.2.2).
    fn may_stand(&self) -> bool {
        self.is_voter() || self.configurations.at(self.commit_index).is_voter(self.me)
    }

    /// Returns true if this replica would stand for election now. One whose shard is about to stop
    /// does not.
    fn stands(&self, cx: Context<'_>) -> bool {
        self.may_stand() && !cx.peers.is_draining()
    }

    fn peers(&self) -> Vec<PeerAddress> {
        self.members().all().into_iter().filter(|member| *member != self.me).collect()
    }

    /// Returns the largest value that a majority of the voters has reached.
    fn reached(&self, value_of: impl Fn(PeerAddress) -> u64) -> u64 {
        let members = self.members();
        if self.planted.is(ProtocolFault::CountLearners) {
            return Members::of(members.all()).reached(value_of);
        }
        members.reached(value_of)
    }

    fn message(&self, body: Body) -> Message {
        Message { term: self.term, body }
    }

    /// Hands out all entries up to `index` as committed.
    fn commit_to(&mut self, index: u64, effects: &mut Effects<Message>) {
        assert!(index <= self.log.last_index(), "{}: commits what it does not hold", self.name);
        while self.commit_index < index {
            self.commit_index += 1;
            let entry = self.log.entry(self.commit_index).expect("it is not forgotten before");
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(entry.payload.len());
            effects.committed.push(entry.clone());
        }
    }

    fn persist_state(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        let payload = encode_state(self.vote, self.commit_index);
        self.log.append_state(self.term, payload, now_us, effects);
        self.state_asked_us = now_us;
    }

    /// Appends an entry. A configuration takes effect at once.
    fn append(&mut self, entry: Entry, now_us: u64, effects: &mut Effects<Message>) {
        let index = entry.index;
        let members = (entry.kind == EntryKind::Members).then(|| entry.payload.clone());
        self.log.append(entry, now_us, effects);
        if let Some(members) = members {
            let members = Members::from_bytes(members).expect("only whole ones are let in");
            self.configurations.push(index, members);
            self.members_changed();
        }
    }
}

impl Protocol for Raft {
    type Message = Message;

    fn tick(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        self.commit_to(self.recovered_commit.max(self.commit_index), effects);
        match &self.role {
            RoleState::Leader(_) => self.tick_leader(cx, effects),
            RoleState::Follower => self.tick_follower(cx, effects),
            RoleState::PreCandidate { .. } | RoleState::Candidate { .. } => {
                self.tick_candidate(cx, effects);
            }
        }
    }

    fn wants_ticks(&self, cx: Context<'_>) -> bool {
        if self.commit_index < self.recovered_commit {
            return true;
        }
        match &self.role {
            RoleState::Leader(leader) => self.leader_wants_ticks(leader, cx),
            RoleState::Follower => {
                self.may_be_removed() || self.stands(cx) && !self.leader_is_there(cx)
            }
            RoleState::PreCandidate { .. } | RoleState::Candidate { .. } => true,
        }
    }

    fn receive(
        &mut self,
        from: PeerAddress,
        message: Message,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        if from == self.me {
            return;
        }
        let Message { term, body } = message;
        let member = self.members().contains(from);
        match &body {
            // The candidate may belong to a configuration that has not arrived here yet.
            Body::RequestPreVote { last_index, last_term } => {
                let last = (*last_term, *last_index);
                return match self.role {
                    RoleState::Leader(_) if !member => self.inform_removed(from, last, effects),
                    _ => self.consider_pre_vote(from, term, last, cx, effects),
                };
            }
            Body::PreVote { asked_in } => {
                return self.count_pre_vote(from, *asked_in, cx, effects);
            }
            // Ignores the request and its term: this replica has promised not to vote against its
            // leader.
            Body::RequestVote { transfer: false, .. }
                if term > self.term && self.has_promised(from, cx) =>
            {
                return;
            }
            Body::RequestVote { .. } | Body::Append { .. } => {}
            // Replies count only if they come from members.
            _ if !member => {
                return self.answer_removed(from, &Message { term, body }, effects);
            }
            _ => {}
        }
        if term > self.term {
            self.enter_term(term, None, cx, effects);
        }
        if term < self.term {
            if matches!(body, Body::Append { .. } | Body::RequestVote { .. }) {
                self.reject_stale_term(from, effects);
            }
            return;
        }
        match body {
            Body::RequestVote { last_index, last_term, transfer } => {
                self.consider_vote(from, (last_term, last_index), transfer, cx, effects);
            }
            Body::Vote => self.count_vote(from, cx, effects),
            Body::Append { previous_index, previous_term, commit_index, round, entries } => {
                self.follow(from, cx, effects);
                let previous = (previous_index, previous_term);
                let incoming = replicate::Incoming { from, previous, commit_index, round, entries };
                self.accept(incoming, cx, effects);
            }
            // The follower missed the revocation of this leadership, for example over a restart.
            Body::Matched { .. } | Body::Mismatched { .. }
                if !matches!(self.role, RoleState::Leader(_)) =>
            {
                let (range, term, what) = (self.name.range, self.term, Revoked::Leadership);
                effects.revoked.push((from, Revocation { range, term, what }));
            }
            Body::Matched { index, commit_index, round } => {
                self.matched(from, index, commit_index, round, cx, effects);
            }
            Body::Mismatched { previous_index, try_index, round } => {
                self.mismatched(from, previous_index, try_index, round, cx, effects);
            }
            Body::Transfer => self.take_over(from, cx, effects),
            // `Outdated` only carries its term, and the pre-vote messages returned above.
            Body::Outdated | Body::RequestPreVote { .. } | Body::PreVote { .. } => {}
        }
    }

    fn durable(&mut self, number: u64, cx: Context<'_>, effects: &mut Effects<Message>) {
        let waited = !self.log.is_state_durable();
        self.log.set_durable(number);
        if waited && self.log.is_state_durable() {
            self.state_took_us = cx.now_us - self.state_asked_us;
        }
        match &self.role {
            RoleState::Leader(_) => self.advance_commit(cx, effects),
            RoleState::Candidate { .. } => self.try_to_win(cx, effects),
            RoleState::Follower | RoleState::PreCandidate { .. } => {}
        }
    }

    fn propose(
        &mut self,
        payload: Bytes,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) -> Result<(u64, u64), Refusal> {
        let RoleState::Leader(leader) = &self.role else {
            return Err(Refusal::NotServing { hint: self.leader() });
        };
        if let Some(transfer) = &leader.transfer {
            return Err(Refusal::NotServing { hint: Some(transfer.to) });
        }
        if self.uncommitted_bytes + payload.len() > MAX_UNCOMMITTED_BYTES {
            return Err(Refusal::Overloaded);
        }
        self.uncommitted_bytes += payload.len();
        let (index, term) = (self.log.last_index() + 1, self.term);
        self.append(Entry { index, term, kind: EntryKind::Command, payload }, cx.now_us, effects);
        Ok((index, term))
    }

    fn read(&mut self, token: u64, _effects: &mut Effects<Message>) -> Result<(), Refusal> {
        let hint = self.leader();
        let RoleState::Leader(leader) = &mut self.role else {
            return Err(Refusal::NotServing { hint });
        };
        leader.new_reads.push(token);
        Ok(())
    }

    fn flush(&mut self, written: u64, cx: Context<'_>, effects: &mut Effects<Message>) {
        if let RoleState::Leader(_) = self.role {
            self.begin_reads(cx, effects);
            self.send_entries(cx, effects);
            self.release_reads(effects);
        }
        self.log.number_writes(written);
    }

    fn last_unsynced(&self) -> u64 {
        self.log.last_unsynced()
    }

    fn entries_bytes(&self) -> u64 {
        self.log.entries_bytes()
    }

    fn snapshot_head(&self, index: u64) -> SnapshotPart {
        assert!(index <= self.commit_index, "{}: a snapshot of uncommitted entries", self.name);
        let term = self.log.term_at(index).expect("what was applied last is not forgotten");
        let payload = self.configurations.at(index).to_bytes();
        SnapshotPart { index, term, part: 0, last: false, payload }
    }

    fn write_state(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        self.persist_state(cx.now_us, effects);
    }

    fn accepts_snapshot(&self, part: &SnapshotPart) -> bool {
        // A leader holds all committed entries. The first part holds the members.
        let is_leader = matches!(self.role, RoleState::Leader(_));
        !is_leader && (part.part > 0 || Members::from_peer(part.payload.clone()).is_ok())
    }

    fn write_snapshot(
        &mut self,
        part: SnapshotPart,
        keep_bytes: usize,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let SnapshotPart { index, term, last, .. } = part;
        if term > self.term {
            self.enter_term(term, None, cx, effects);
        }
        if part.part == 0 {
            self.incoming_members = Members::from_bytes(part.payload.clone()).ok();
        }
        let members = if last { self.incoming_members.take() } else { None };
        let replaced = self.log.append_snapshot(part, keep_bytes, cx.now_us, effects);
        if replaced {
            assert!(
                !matches!(self.role, RoleState::Leader(_)),
                "{}: a leader lacks what a snapshot holds",
                self.name
            );
            let members = members.expect("a snapshot begins with the members");
            self.configurations = Configurations::new(index, members);
            self.uncommitted_bytes = 0;
        } else if last {
            self.configurations.forget_before(self.log.first_index() - 1);
        }
        if last {
            // A snapshot holds committed entries only, and its receiver installs all at once.
            self.commit_index = self.commit_index.max(index);
        }
    }

    fn orders_writes(&self) -> bool {
        matches!(self.role, RoleState::Leader(_))
    }

    fn holds_proposals(&self) -> bool {
        self.orders_writes()
    }
}

fn encode_state(vote: Option<PeerAddress>, commit_index: u64) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(commit_index);
    if let Some(candidate) = vote {
        candidate.encode(&mut out);
    }
    out.freeze()
}

fn decode_state(payload: Bytes) -> Result<(Option<PeerAddress>, u64), WireError> {
    let has_vote = payload.len() > size_of::<u64>();
    let mut reader = Reader::new(payload);
    let commit_index = reader.u64()?;
    let vote = if has_vote { Some(PeerAddress::decode(&mut reader)?) } else { None };
    reader.finish()?;
    Ok((vote, commit_index))
}
