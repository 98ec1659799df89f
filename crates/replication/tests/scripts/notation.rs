//! The notation of the scripts: one line an effect, in the order in which a driver carries it out.
//!
//! ```text
//! 2@1 x                                  the entry at index 2, of term 1 (Raft) or epoch 1 (chain)
//! 2 candidate -> leader of term 2        a change of the role, term, leader or epoch
//! 1 writes 2@1 x                         requests the durable write of an entry
//! 1 writes state term=2 vote=1 commit=1  requests the durable write of the protocol's state
//! 1 -> 2 Vote term=2                     sends a message
//! 1 -> 2 Vote term=2 (after its sync)    holds a message until the writes before it are durable
//! 1 syncs 2@1 x                          makes the writes durable
//! 1 -> 2 Vote term=2 (released)          sends a message that was held
//! 1 -> 2 Vote term=2 (dropped)           loses a message in the network
//! 1 -> 2 Vote term=2 (lost)              loses a held message in a crash
//! 2 <- 1 Vote term=2                     receives a message; the lines after it are its effects
//! 1 revokes at 2: leadership of term 1   adds a revocation to the heartbeats for node 2
//! 2 <- 1 heartbeat revokes ...           receives a revocation for the first time
//! 1 commits 2@1 x                        hands out an entry as committed
//! log=[1@1 2@1 | 3@1]                    the entries after the bar are not durable yet
//! (3 4)&&(1 2) learners=(5)              voters 3 and 4, outgoing voters 1 and 2, learner 5
//! session=#1 link=#2                     random numbers, numbered by the first message with them
//! ```

use bytes::Bytes;
use palisade_replication::{
    Append, Entry, EntryKind, Members, Refusal, Revocation, Revoked, chain, raft,
};
use palisade_wire::{Decode, NodeId, PeerAddress, Reader, Role, ShardId};

pub(crate) fn address(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

/// Parses a list such as `1,2,3`.
pub(crate) fn parse_nodes(list: &str) -> Vec<u16> {
    list.split(',').map(|node| node.parse().expect("a list of nodes such as 1,2,3")).collect()
}

fn joined(items: impl Iterator<Item = String>, separator: &str) -> String {
    items.collect::<Vec<_>>().join(separator)
}

fn numbers(peers: &[PeerAddress], separator: &str) -> String {
    joined(peers.iter().map(|peer| peer.node.0.to_string()), separator)
}

pub(crate) fn nodes(peers: &[PeerAddress]) -> String {
    numbers(peers, ",")
}

pub(crate) fn node_or_none(peer: Option<PeerAddress>) -> String {
    peer.map_or("none".to_owned(), |peer| peer.node.0.to_string())
}

pub(crate) fn entry(entry: &Entry) -> String {
    let Entry { index, term, kind, payload } = entry;
    match kind {
        EntryKind::Members => format!("{index}@{term} members"),
        EntryKind::Command if payload.is_empty() => format!("{index}@{term} no-op"),
        EntryKind::Command => format!("{index}@{term} {}", String::from_utf8_lossy(payload)),
    }
}

fn entries(entries: &[Entry]) -> String {
    format!("[{}]", joined(entries.iter().map(entry), ", "))
}

/// Returns the positions of the entries of a log, with a bar before those that are not durable.
pub(crate) fn log<'a>(entries: impl Iterator<Item = &'a Entry>, durable_index: u64) -> String {
    let (durable, pending): (Vec<_>, Vec<_>) =
        entries.partition(|entry| entry.index <= durable_index);
    let positions = |entries: Vec<&Entry>| {
        joined(entries.iter().map(|entry| format!("{}@{}", entry.index, entry.term)), " ")
    };
    match (positions(durable), positions(pending)) {
        (durable, pending) if pending.is_empty() => format!("[{durable}]"),
        (durable, pending) if durable.is_empty() => format!("[| {pending}]"),
        (durable, pending) => format!("[{durable} | {pending}]"),
    }
}

pub(crate) fn write(write: &Append, state: impl FnOnce(u64, &Bytes) -> String) -> String {
    match write {
        Append::Entry(written) => entry(written),
        Append::State { term, payload } => state(*term, payload),
        Append::Snapshot { .. } => unreachable!("scripts take no snapshots"),
    }
}

pub(crate) fn refusal(refusal: Refusal) -> String {
    match refusal {
        Refusal::NotServing { hint: Some(hint) } => format!("NotServing, hint {}", hint.node.0),
        Refusal::NotServing { hint: None } => "NotServing".to_owned(),
        Refusal::Overloaded => "Overloaded".to_owned(),
        Refusal::NotNow => "NotNow".to_owned(),
    }
}

pub(crate) fn revocation(revocation: Revocation) -> String {
    let Revocation { term, what, .. } = revocation;
    match what {
        Revoked::Leadership => format!("leadership of term {term}"),
        Revoked::Support => format!("support before term {term}"),
    }
}

pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::Learner => "learner",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Head => "head",
        Role::Middle => "middle",
        Role::Tail => "tail",
        Role::Single => "single",
        Role::Removed => "removed",
    }
}

pub(crate) fn members(members: &Members) -> String {
    let group = |peers: &[PeerAddress]| format!("({})", numbers(peers, " "));
    let mut text = group(&members.voters);
    if members.is_joint() {
        text += &format!("&&{}", group(&members.outgoing));
    }
    if !members.learners.is_empty() {
        text += &format!(" learners={}", group(&members.learners));
    }
    text
}

/// Returns the name of a message and its term or epoch.
pub(crate) fn heading(message: &str) -> String {
    joined(message.split(' ').take(2).map(str::to_owned), " ")
}

pub(crate) fn raft_message(message: &raft::Message) -> String {
    let term = message.term;
    let in_round = |round: u64| if round > 0 { format!(" round={round}") } else { String::new() };
    match &message.body {
        raft::Body::RequestPreVote { last_index, last_term } => {
            format!("RequestPreVote term={term} last={last_index}@{last_term}")
        }
        raft::Body::PreVote { asked_in } => format!("PreVote term={term} asked_in={asked_in}"),
        raft::Body::RequestVote { last_index, last_term, transfer } => {
            let transfer = if *transfer { " transfer" } else { "" };
            format!("RequestVote term={term} last={last_index}@{last_term}{transfer}")
        }
        raft::Body::Vote => format!("Vote term={term}"),
        raft::Body::Append {
            previous_index,
            previous_term,
            commit_index,
            round,
            entries: sent,
        } => {
            let (round, sent) = (in_round(*round), entries(sent));
            let previous = format!("prev={previous_index}@{previous_term}");
            format!("Append term={term} {previous} commit={commit_index}{round} {sent}")
        }
        raft::Body::Matched { index, commit_index, round } => {
            let round = in_round(*round);
            format!("Matched term={term} index={index} commit={commit_index}{round}")
        }
        raft::Body::Mismatched { previous_index, try_index, round } => {
            let round = in_round(*round);
            format!("Mismatched term={term} prev={previous_index} try={try_index}{round}")
        }
        raft::Body::Outdated => format!("Outdated term={term}"),
        raft::Body::Transfer => format!("Transfer term={term}"),
    }
}

/// Decodes Raft's state: the commit index, then the vote if there is one.
pub(crate) fn raft_state(term: u64, payload: &Bytes) -> String {
    let mut reader = Reader::new(payload.clone());
    let commit_index = reader.u64().expect("a state begins with the commit index");
    let vote = (payload.len() > size_of::<u64>())
        .then(|| PeerAddress::decode(&mut reader).expect("a state ends with the vote"));
    format!("state term={term} vote={} commit={commit_index}", node_or_none(vote))
}

pub(crate) fn chain_message(message: &chain::Message, aliases: &mut Aliases) -> String {
    let epoch = message.epoch;
    match &message.body {
        chain::Body::Hello => format!("Hello epoch={epoch}"),
        chain::Body::Probe { session } => {
            format!("Probe epoch={epoch} session={}", aliases.of(*session))
        }
        chain::Body::Attach { session, link, last_index, last_term, commit_index } => {
            let (session, link) = (aliases.of(*session), aliases.of(*link));
            let ends = format!("last={last_index}@{last_term} commit={commit_index}");
            format!("Attach epoch={epoch} session={session} link={link} {ends}")
        }
        chain::Body::Fetch { session, from_index } => {
            format!("Fetch epoch={epoch} session={} from={from_index}", aliases.of(*session))
        }
        chain::Body::Fetched { session, entries: sent } => {
            format!("Fetched epoch={epoch} session={} {}", aliases.of(*session), entries(sent))
        }
        chain::Body::Forward {
            link,
            previous_index,
            previous_term,
            stable_index,
            entries: sent,
        } => {
            let (link, sent) = (aliases.of(*link), entries(sent));
            let previous = format!("prev={previous_index}@{previous_term}");
            format!("Forward epoch={epoch} link={link} {previous} stable={stable_index} {sent}")
        }
        chain::Body::Committed { index } => format!("Committed epoch={epoch} index={index}"),
    }
}

/// Decodes a chain's state: the members, from head to tail.
pub(crate) fn chain_state(epoch: u64, payload: &Bytes) -> String {
    let mut reader = Reader::new(payload.clone());
    let mut members = Vec::new();
    while reader.remaining() > 0 {
        members.push(PeerAddress::decode(&mut reader).expect("a state is a list of members"));
    }
    format!("state epoch={epoch} members={}", nodes(&members))
}

/// Short names for random numbers: `#1` is the first that a message carried, printed or not.
#[derive(Default)]
pub(crate) struct Aliases {
    numbers: Vec<u64>,
}

impl Aliases {
    fn of(&mut self, number: u64) -> String {
        let known = self.numbers.iter().position(|other| *other == number);
        let place = known.unwrap_or_else(|| {
            self.numbers.push(number);
            self.numbers.len() - 1
        });
        format!("#{}", place + 1)
    }
}
