//! Every path on which a promise is given, renewed, broken or ended, and every path on which a
//! leader counts on one. `docs/design/leases.md` lists them.
#![allow(missing_docs, reason = "a test")]

use bytes::Bytes;
use palisade_replication::{
    Context, Effects, Heartbeat, Members, PeerTiming, Peers, Planted, Protocol, ProtocolFault,
    RecoveredGroup, Revocation, Revoked,
    raft::{Body, Message, Raft, Setup, Timing},
};
use palisade_wire::{NodeId, PeerAddress, RangeId, Role, ShardId};

const RANGE: RangeId = RangeId(1);
const START_US: u64 = 10_000_000;

/// The leader of term 1 in tests where the replica under test is a voter.
const LEADER: PeerAddress = at(0);
const CANDIDATE: PeerAddress = at(2);

const fn at(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

fn promise_us() -> u64 {
    PeerTiming::default().promise_us
}

fn lease_us() -> u64 {
    PeerTiming::default().lease_us
}

/// One of three voters, without disk or network.
struct Replica {
    raft: Raft,
    peers: Peers,
    effects: Effects<Message>,
    now_us: u64,
    writes: u64,
}

impl Replica {
    fn new(node: u16, recovered: RecoveredGroup, planted: Planted<ProtocolFault>) -> Self {
        let me = at(node);
        let members = Members::of((0..3).map(at).collect());
        let setup = Setup { range: RANGE, me, members, recovered, random_seed: 1, planted };
        let raft = Raft::new(setup, Timing::default(), START_US).unwrap();
        let others = (0..3).map(at).filter(|peer| *peer != me);
        let peers = Peers::new(PeerTiming::default(), 1, others, START_US);
        Self { raft, peers, effects: Effects::default(), now_us: START_US, writes: 0 }
    }

    /// Returns a voter that follows the leader of term 1 and has just received its heartbeat.
    fn voter(planted: Planted<ProtocolFault>) -> Self {
        let mut voter = Self::new(1, RecoveredGroup::default(), planted);
        voter.receive_heartbeat(LEADER, 1);
        voter.append(LEADER, 1);
        assert_eq!(voter.raft.leader(), Some(LEADER));
        voter
    }

    /// Returns the leader of term 1, before any follower has confirmed its leadership.
    fn leader() -> Self {
        let mut leader = Self::new(0, RecoveredGroup::default(), Planted::default());
        for peer in [at(1), at(2)] {
            leader.peers.observe(peer, 1).unwrap();
        }
        leader.tick();
        leader.now_us += 1_000;
        leader.tick();
        leader.receive(at(1), 0, Body::PreVote { asked_in: 0 });
        leader.sync();
        leader.receive(at(1), 1, Body::Vote);
        leader.sync();
        assert_eq!(leader.raft.role(), Role::Leader);
        leader
    }

    fn call(&mut self, call: impl FnOnce(&mut Raft, Context<'_>, &mut Effects<Message>)) {
        let cx = Context { now_us: self.now_us, peers: &self.peers };
        call(&mut self.raft, cx, &mut self.effects);
        let before = self.writes;
        self.raft.flush(before, cx, &mut self.effects);
        self.writes += self.effects.appends.drain(..).count() as u64;
    }

    fn tick(&mut self) {
        self.peers.tick(self.now_us);
        self.call(|raft, cx, effects| raft.tick(cx, effects));
    }

    fn receive(&mut self, from: PeerAddress, term: u64, body: Body) {
        self.call(|raft, cx, effects| raft.receive(from, Message { term, body }, cx, effects));
    }

    /// Makes everything durable that was written.
    fn sync(&mut self) {
        let writes = self.writes;
        self.call(|raft, cx, effects| raft.durable(writes, cx, effects));
    }

    /// Receives a heartbeat of a peer's shard, in a session of that shard.
    fn receive_heartbeat(&mut self, from: PeerAddress, session: u64) {
        self.echo(from, session, 0);
    }

    /// Receives a heartbeat that echoes one that this shard sent at `echo_us`.
    fn echo(&mut self, from: PeerAddress, session: u64, echo_us: u64) {
        self.peers.observe(from, session).expect("sessions rise");
        let heartbeat = Heartbeat {
            sent_us: self.now_us,
            draining: false,
            to_session: 1,
            echo_us,
            taken_in: 0,
            confirmed: 0,
            revocations: Vec::new(),
        };
        self.peers.receive(from, &heartbeat, self.now_us);
    }

    fn append(&mut self, from: PeerAddress, term: u64) {
        let body = Body::Append {
            previous_index: 0,
            previous_term: 0,
            commit_index: 0,
            round: 0,
            entries: Vec::new(),
        };
        self.receive(from, term, body);
    }

    fn revoke(&mut self, from: PeerAddress, term: u64, what: Revoked) {
        let revocation = Revocation { range: RANGE, term, what };
        self.call(|raft, cx, effects| raft.revoked(from, revocation, cx, effects));
    }

    /// Returns true if this replica grants a candidate's pre-vote now.
    fn would_vote_for(&mut self, candidate: PeerAddress) -> bool {
        self.effects.sends.clear();
        let (last_index, last_term) = (9, 9);
        let term = self.raft.term();
        self.receive(candidate, term, Body::RequestPreVote { last_index, last_term });
        self.effects.sends.iter().any(|send| matches!(send.message.body, Body::PreVote { .. }))
    }

    /// Returns true if this replica votes for a candidate in the next term.
    fn votes_for(&mut self, candidate: PeerAddress, transfer: bool) -> bool {
        self.effects.sends.clear();
        let body = Body::RequestVote { last_index: 9, last_term: 9, transfer };
        let term = self.raft.term() + 1;
        self.receive(candidate, term, body);
        self.effects.sends.iter().any(|send| send.message.body == Body::Vote)
    }

    fn is_leased(&self) -> bool {
        self.raft.is_leased(Context { now_us: self.now_us, peers: &self.peers })
    }

    /// A follower confirms the leader's first entry, and its shard echoes a heartbeat.
    fn support(&mut self, from: PeerAddress, echo_us: u64) {
        self.receive(from, 1, Body::Matched { index: 1, commit_index: 0, round: 0 });
        self.echo(from, 1, echo_us);
    }
}

#[test]
fn promise_to_followed_leader_blocks_votes_until_expiry() {
    let mut voter = Replica::voter(Planted::default());
    assert!(!voter.would_vote_for(CANDIDATE) && !voter.votes_for(CANDIDATE, false));
    assert_eq!(voter.raft.term(), 1, "not even the term of the request counts");
    voter.now_us += promise_us() - 1;
    assert!(!voter.would_vote_for(CANDIDATE));
    voter.now_us += 1;
    assert!(voter.would_vote_for(CANDIDATE) && voter.votes_for(CANDIDATE, false));
}

#[test]
fn promise_of_leader_to_itself_lasts_while_leading() {
    let mut leader = Replica::leader();
    leader.now_us += 10 * promise_us();
    assert!(!leader.would_vote_for(CANDIDATE));
}

#[test]
fn promise_survives_restart_of_voter() {
    let state = Some((1, Bytes::from_static(&[0; 8])));
    let recovered = RecoveredGroup { state, ..RecoveredGroup::default() };
    let mut voter = Replica::new(1, recovered, Planted::default());
    voter.now_us += promise_us() - 1;
    assert!(!voter.would_vote_for(CANDIDATE));
    voter.now_us += 1;
    assert!(voter.would_vote_for(CANDIDATE));
    // A replica without a past has given no promise.
    assert!(
        Replica::new(1, RecoveredGroup::default(), Planted::default()).would_vote_for(CANDIDATE)
    );
}

#[test]
fn promise_is_renewed_by_each_heartbeat_of_leader_shard() {
    let mut voter = Replica::voter(Planted::default());
    voter.now_us += promise_us() - 1;
    voter.receive_heartbeat(LEADER, 1);
    voter.now_us += promise_us() - 1;
    assert!(!voter.would_vote_for(CANDIDATE));
    voter.now_us += 1;
    assert!(voter.would_vote_for(CANDIDATE));
}

/// A voter starts a pre-vote, then its leader's heartbeat arrives, then the answer. Returns true if
/// the voter stands for election.
fn stands_after_its_promise_was_renewed(planted: Planted<ProtocolFault>) -> bool {
    let mut voter = Replica::voter(planted);
    voter.now_us += 5_000_000;
    for _ in 0..20 {
        voter.tick();
        voter.now_us += 20_000;
    }
    assert_eq!((voter.raft.role(), voter.raft.term()), (Role::Candidate, 1));
    voter.receive_heartbeat(LEADER, 1);
    voter.receive(CANDIDATE, 1, Body::PreVote { asked_in: 1 });
    voter.raft.term() > 1
}

#[test]
fn promise_renewal_prevents_candidacy_after_pre_vote() {
    assert!(!stands_after_its_promise_was_renewed(Planted::default()));
}

#[cfg(feature = "planted-faults")]
#[test]
fn promise_renewal_is_ignored_by_planted_fault() {
    let planted = Planted::new(ProtocolFault::StandUnlooked);
    assert!(stands_after_its_promise_was_renewed(planted));
}

#[test]
fn promise_allows_vote_on_leadership_transfer() {
    let mut voter = Replica::voter(Planted::default());
    assert!(voter.votes_for(CANDIDATE, true));
    assert_eq!(voter.raft.term(), 2);
}

#[test]
fn promise_ends_when_leader_revokes_leadership() {
    let mut voter = Replica::voter(Planted::default());
    voter.revoke(LEADER, 1, Revoked::Leadership);
    assert!(voter.would_vote_for(CANDIDATE));
    // An earlier message of that leader does not restore its leadership.
    voter.append(LEADER, 1);
    assert_eq!(voter.raft.leader(), None);
}

#[test]
fn promise_revocation_is_resent_to_follower_that_missed_it() {
    let mut former = Replica::voter(Planted::default());
    former.receive(CANDIDATE, 1, Body::Matched { index: 1, commit_index: 0, round: 0 });
    let over = Revocation { range: RANGE, term: 1, what: Revoked::Leadership };
    assert!(former.effects.revoked.contains(&(CANDIDATE, over)));
}

#[test]
fn promise_ends_with_restart_of_leader_shard() {
    let mut voter = Replica::voter(Planted::default());
    voter.receive_heartbeat(LEADER, 2);
    assert!(voter.would_vote_for(CANDIDATE));
}

#[test]
fn promise_outlives_term_and_support_is_revoked() {
    let mut voter = Replica::voter(Planted::default());
    voter.append(CANDIDATE, 2);
    let support = Revocation { range: RANGE, term: 2, what: Revoked::Support };
    assert!(voter.effects.revoked.contains(&(LEADER, support)));
    voter.now_us += promise_us() - 1;
    assert!(!voter.would_vote_for(CANDIDATE));
    voter.now_us += 1;
    assert!(voter.would_vote_for(CANDIDATE));
}

#[test]
fn lease_starts_at_send_time_of_echoed_heartbeat() {
    let mut leader = Replica::leader();
    assert!(!leader.is_leased());
    let sent_us = leader.now_us;
    leader.now_us += 10_000;
    // An echo alone does not show that the follower follows this leader, and a confirmation alone
    // does not show until when.
    leader.echo(at(1), 1, sent_us);
    assert!(!leader.is_leased());
    leader.receive(at(2), 1, Body::Matched { index: 1, commit_index: 0, round: 0 });
    assert!(!leader.is_leased());
    leader.support(at(1), sent_us);
    assert!(leader.is_leased());
    leader.now_us = sent_us + lease_us() - 1;
    assert!(leader.is_leased());
    leader.now_us += 1;
    assert!(!leader.is_leased());
}

#[test]
fn lease_ends_when_follower_revokes_support() {
    let mut leader = Replica::leader();
    leader.support(at(1), leader.now_us);
    assert!(leader.is_leased());
    leader.revoke(at(1), 2, Revoked::Support);
    assert!(!leader.is_leased());
    assert_eq!((leader.raft.role(), leader.raft.term()), (Role::Follower, 2));
}

#[test]
fn lease_ends_when_follower_session_changes() {
    let mut leader = Replica::leader();
    leader.support(at(1), leader.now_us);
    leader.echo(at(1), 2, leader.now_us);
    assert!(!leader.is_leased());
}

#[test]
fn lease_ends_for_rest_of_term_after_transfer_offer() {
    let mut leader = Replica::leader();
    leader.support(at(1), leader.now_us);
    leader.tick();
    assert!(leader.is_leased());
    leader.call(|raft, cx, effects| raft.transfer(at(1), cx, effects).unwrap());
    assert!(!leader.is_leased());
    // The offer is given up, but its message may be late by any time.
    leader.now_us += Timing::default().transfer_us;
    leader.support(at(1), leader.now_us);
    leader.tick();
    assert!(!leader.is_leased());
}
