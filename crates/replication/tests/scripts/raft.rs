//! Raft in scripts.
//!
//! Its own commands:
//! - `new VOTERS [LEARNERS]`: creates a group;
//! - `stand NODE`: advances time by at least 3 s, and ticks one node alone until it requests
//!   pre-votes;
//! - `members NODE VOTERS [LEARNERS]`: proposes a change of the members;
//! - `transfer NODE TO`: transfers leadership.

use bytes::Bytes;
use palisade_replication::{
    Append, Context, Effects, Members, Planted, RecoveredGroup, Revocation,
    raft::{Body, Message, Raft, Setup, Timing},
};
use palisade_wire::{PeerAddress, RangeId, Role};

use crate::{
    harness::{Cluster, Mode, node},
    network::{Content, Packet},
    node::Replica,
    notation::{self, Aliases, address, parse_nodes},
    output::Kind,
};

const CANDIDATE: &str = "candidate";
const PRE_CANDIDATE: &str = "pre-candidate";
const LEADER: &str = "leader";

pub(crate) struct Status {
    role: &'static str,
    term: u64,
    leader: Option<PeerAddress>,
    members: Members,
    is_leased: bool,
}

/// Returns the role. [`Role::Candidate`] includes pre-candidates, which their effects reveal: a
/// candidate writes its vote for itself, and a pre-candidate requests pre-votes.
fn role(raft: &Raft, before: Option<&Status>, effects: &Effects<Message>) -> &'static str {
    let role = raft.role();
    if role != Role::Candidate {
        return notation::role(role);
    }
    let is_pre_vote = |body: &Body| matches!(body, Body::RequestPreVote { .. });
    if effects.appends.iter().any(|write| matches!(write, Append::State { .. })) {
        CANDIDATE
    } else if effects.sends.iter().any(|send| is_pre_vote(&send.message.body)) {
        PRE_CANDIDATE
    } else {
        before.map_or(CANDIDATE, |before| before.role)
    }
}

impl Replica for Raft {
    type Group = Members;
    type Status = Status;
    const HEARTBEATS: bool = true;

    fn start(
        group: Members,
        me: PeerAddress,
        recovered: RecoveredGroup,
        _session: u64,
        now_us: u64,
    ) -> Self {
        // One seed for all nodes: the order of the voters determines which one stands first.
        let (range, random_seed, planted) = (RangeId(1), 1, Planted::default());
        let setup = Setup { range, me, members: group, recovered, random_seed, planted };
        Self::new(setup, Timing::default(), now_us).expect("it can read its own writes")
    }

    fn status(
        &self,
        before: Option<&Status>,
        effects: &Effects<Message>,
        cx: Context<'_>,
    ) -> Status {
        Status {
            role: role(self, before, effects),
            term: self.term(),
            leader: self.leader(),
            members: self.members().clone(),
            is_leased: self.is_leased(cx),
        }
    }

    fn changes(before: &Status, now: &Status) -> Vec<String> {
        let leads = now.role == LEADER;
        let mut of_role = Vec::new();
        if now.role != before.role {
            let term = if leads { format!(" of term {}", now.term) } else { String::new() };
            of_role.push(format!("{} -> {}{term}", before.role, now.role));
        }
        if now.term != before.term {
            of_role.push(format!("term {} -> {}", before.term, now.term));
        }
        if now.leader != before.leader && !leads {
            of_role.push(format!("led by {}", notation::node_or_none(now.leader)));
        }
        let mut lines = Vec::new();
        if !of_role.is_empty() {
            lines.push(of_role.join(", "));
        }
        if now.members != before.members {
            let [from, to] = [before, now].map(|status| notation::members(&status.members));
            lines.push(format!("members {from} -> {to}"));
        }
        if now.is_leased != before.is_leased {
            let change = if now.is_leased { "lease begins" } else { "lease ends" };
            lines.push(change.to_owned());
        }
        lines
    }

    fn summary(&self, status: &Status) -> String {
        let entries = (self.first_index()..=self.last_index()).filter_map(|at| self.entry(at));
        let log = notation::log(entries, self.durable_index());
        let leader = match status.role {
            LEADER if status.is_leased => " leased".to_owned(),
            LEADER => String::new(),
            _ => format!(" leader={}", notation::node_or_none(status.leader)),
        };
        let (role, term, commit_index) = (status.role, status.term, self.commit_index());
        format!("{role} term={term}{leader} commit={commit_index} log={log}")
    }

    fn describe_message(message: &Message, _: &mut Aliases) -> String {
        notation::raft_message(message)
    }

    fn describe_state(term: u64, payload: &Bytes) -> String {
        notation::raft_state(term, payload)
    }

    fn handle_revocation(
        &mut self,
        from: PeerAddress,
        revocation: Revocation,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        self.revoked(from, revocation, cx, effects);
    }
}

impl Mode for Raft {
    fn command(cluster: &mut Cluster<Self>, words: &[&str]) -> bool {
        match words {
            ["new", voters] => create(cluster, voters, Vec::new()),
            ["new", voters, learners] => create(cluster, voters, parse_nodes(learners)),
            ["stand", at] => stand(cluster, node(at)),
            ["members", at, voters] => change_members(cluster, node(at), voters, Vec::new()),
            ["members", at, voters, learners] => {
                change_members(cluster, node(at), voters, addresses(learners));
            }
            ["transfer", at, to] => {
                let target = address(node(to));
                let request = format!("transfer to {to}");
                cluster.request(node(at), &request, |raft, cx, effects| {
                    raft.transfer(target, cx, effects)
                });
            }
            _ => return false,
        }
        true
    }
}

fn addresses(list: &str) -> Vec<PeerAddress> {
    parse_nodes(list).into_iter().map(address).collect()
}

fn create(cluster: &mut Cluster<Raft>, voters: &str, learners: Vec<u16>) {
    let mut members = Members::of(addresses(voters));
    members.learners = learners.iter().copied().map(address).collect();
    let mut nodes = parse_nodes(voters);
    nodes.extend(learners);
    cluster.create(members, &nodes);
}

fn change_members(cluster: &mut Cluster<Raft>, at: u16, voters: &str, learners: Vec<PeerAddress>) {
    let voters = addresses(voters);
    cluster.request(at, "change of the members", |raft, cx, effects| {
        raft.change_members(voters, learners, cx, effects).map(|_| ())
    });
}

/// Advances time by 3 s, and then ticks one node alone until it requests pre-votes. Its heartbeats
/// are not printed.
fn stand(cluster: &mut Cluster<Raft>, at: u16) {
    cluster.limit_output(Kind::Effect);
    cluster.pass(3_000_000);
    let requested = requested_pre_votes(cluster, at);
    for _ in 0..100 {
        cluster.tick(at);
        cluster.pass(10_000);
        if requested_pre_votes(cluster, at) > requested {
            return;
        }
    }
    panic!("node {at} does not stand for election");
}

fn requested_pre_votes(cluster: &Cluster<Raft>, at: u16) -> usize {
    let is_request = |packet: &&Packet<Message>| {
        packet.from == at
            && matches!(&packet.content, Content::Message(message)
                if matches!(message.body, Body::RequestPreVote { .. }))
    };
    cluster.in_flight().iter().filter(is_request).count()
}
