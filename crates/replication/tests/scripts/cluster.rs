//! A Raft group that acts only on the commands of a script.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{
    After, Append, Context, Effects, Entry, EntryKind, Heartbeat, Members, PeerTiming, Peers,
    Planted, Protocol, RecoveredGroup,
    raft::{Body, Message, Raft, Setup, Timing},
};
use palisade_wire::{NodeId, PeerAddress, RangeId, ShardId};

/// One replica, its disk, and its view of the others.
struct Node {
    raft: Option<Raft>,
    peers: Peers,
    writes: Vec<Append>,
    durable: usize,
    at_start: usize,
    held: Vec<(usize, u16, Message)>,
    committed: Vec<u64>,
}

enum Packet {
    Raft(Message),
    Heartbeat(Heartbeat),
}

struct InFlight {
    from: u16,
    to: u16,
    session: u64,
    packet: Packet,
}

#[derive(Default)]
pub(crate) struct Cluster {
    nodes: BTreeMap<u16, Node>,
    members: Members,
    now_us: u64,
    network: Vec<InFlight>,
    told: Vec<String>,
    next_read: u64,
    /// `wait` drops every packet to or from this node.
    cut: Option<u16>,
}

fn at(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

fn numbers(list: &str) -> Vec<u16> {
    list.split(',').map(|number| number.parse().expect("a list of nodes")).collect()
}

impl Cluster {
    /// Runs a command and returns the lines to record after it.
    pub(crate) fn run(&mut self, command: &str) -> Vec<String> {
        let words: Vec<_> = command.split_whitespace().collect();
        let node = |place: usize| words[place].parse::<u16>().expect("the number of a node");
        match words[0] {
            "new" => self.create(&numbers(words[1]), words.get(2).map(|list| numbers(list))),
            "stand" => self.stand(node(1)),
            "wait" => self.wait(words[1].parse().expect("milliseconds")),
            "cut" => self.cut = Some(node(1)),
            "mend" => self.cut = None,
            "pass" => self.now_us += 1_000 * words[1].parse::<u64>().expect("milliseconds"),
            "deliver" => self.deliver(words.get(1).copied(), words.get(2).copied()),
            "hear" => self.hear(),
            "tick" => self.tick(node(1)),
            "drop" => self.network.retain(|packet| !packet.is_of(words.get(1).copied())),
            "sync" => self.sync(node(1)),
            "crash" => self.crash(node(1)),
            "start" => self.start(node(1)),
            "propose" => {
                let payload = Bytes::from(words[2].to_owned());
                self.call(node(1), |raft, cx, effects| {
                    raft.propose(payload, cx, effects).err().map(|refusal| format!("{refusal:?}"))
                });
            }
            "read" => {
                self.next_read += 1;
                let token = self.next_read;
                self.call(node(1), |raft, _, effects| {
                    raft.read(token, effects).err().map(|refusal| format!("{refusal:?}"))
                });
            }
            "members" => {
                let voters: Vec<_> = numbers(words[2]).into_iter().map(at).collect();
                let learners = words.get(3).map_or(Vec::new(), |list| numbers(list));
                let learners = learners.into_iter().map(at).collect();
                self.call(node(1), |raft, cx, effects| {
                    let changed = raft.change_members(voters, learners, cx, effects);
                    changed.err().map(|refusal| format!("{refusal:?}"))
                });
            }
            "transfer" => {
                let to = at(node(2));
                self.call(node(1), |raft, cx, effects| {
                    raft.transfer(to, cx, effects).err().map(|refusal| format!("{refusal:?}"))
                });
            }
            "flight" => self.tell_flight(),
            "show" => {}
            other => panic!("there is no command {other}"),
        }
        if words[0] == "show" || words[0] == "wait" {
            self.show();
        }
        std::mem::take(&mut self.told)
    }

    fn create(&mut self, voters: &[u16], learners: Option<Vec<u16>>) {
        let learners = learners.unwrap_or_default();
        self.members = Members::of(voters.iter().copied().map(at).collect());
        self.members.learners = learners.iter().copied().map(at).collect();
        self.now_us = 1_000_000;
        for node in voters.iter().chain(&learners) {
            let created = Node {
                raft: None,
                peers: Peers::new(PeerTiming::default(), 0, [], 0),
                writes: Vec::new(),
                durable: 0,
                at_start: 0,
                held: Vec::new(),
                committed: Vec::new(),
            };
            self.nodes.insert(*node, created);
        }
        let all: Vec<_> = self.nodes.keys().copied().collect();
        all.iter().for_each(|node| self.start(*node));
    }

    fn start(&mut self, node: u16) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|n| *n != node).map(at).collect();
        let (members, now_us) = (self.members.clone(), self.now_us);
        let this = self.nodes.get_mut(&node).expect("it was created");
        let mut recovered = RecoveredGroup::default();
        for write in &this.writes {
            match write {
                Append::Entry(entry) => {
                    recovered.entries.truncate(entry.index as usize - 1);
                    recovered.entries.push(entry.clone());
                }
                Append::State { term, payload } => {
                    recovered.state = Some((*term, payload.clone()));
                }
                Append::Snapshot { .. } => unreachable!("scripts take no snapshots"),
            }
        }
        this.peers = Peers::new(PeerTiming::default(), this.peers.session() + 1, others, now_us);
        this.at_start = this.writes.len();
        let (range, me) = (RangeId(1), at(node));
        let setup =
            Setup { range, me, members, recovered, random_seed: 1, planted: Planted::default() };
        let raft = Raft::new(setup, Timing::default(), now_us).expect("it wrote this itself");
        this.raft = Some(raft);
    }

    fn crash(&mut self, node: u16) {
        let this = self.nodes.get_mut(&node).expect("it was created");
        this.raft = None;
        this.held.clear();
        this.committed.clear();
        this.writes.truncate(this.durable);
    }

    /// Advances time for one node alone, until it stands for election.
    fn stand(&mut self, node: u16) {
        self.now_us += 3_000_000;
        for _ in 0..100 {
            self.tick(node);
            self.now_us += 10_000;
            let this = &self.nodes[&node];
            let asks = |packet: &InFlight| {
                packet.from == node
                    && matches!(&packet.packet, Packet::Raft(message)
                        if matches!(message.body, Body::RequestPreVote { .. }))
            };
            if this.raft.is_some() && self.network.iter().any(asks) {
                return;
            }
        }
    }

    /// Advances time for all nodes. Everything is delivered and synced at once.
    fn wait(&mut self, duration_ms: u64) {
        for _ in 0..duration_ms / 10 {
            self.now_us += 10_000;
            for node in self.all() {
                self.tick(node);
            }
            for _ in 0..20 {
                let cut = self.cut;
                let passes = |packet: &InFlight| cut != Some(packet.from) && cut != Some(packet.to);
                self.network.retain(passes);
                self.deliver(None, None);
                for node in self.all() {
                    self.sync(node);
                }
            }
        }
        self.told.retain(|line| !line.contains("commits"));
    }

    fn all(&self) -> Vec<u16> {
        self.nodes.keys().copied().collect()
    }

    fn tick(&mut self, node: u16) {
        let now_us = self.now_us;
        let this = self.nodes.get_mut(&node).expect("it was created");
        if this.raft.is_none() {
            return;
        }
        this.peers.tick(now_us);
        self.call(node, |raft, cx, effects| {
            if raft.wants_ticks(cx) {
                raft.tick(cx, effects);
            }
            None
        });
        let this = self.nodes.get_mut(&node).expect("it was created");
        let session = this.peers.session();
        for (to, heartbeat) in this.peers.heartbeats(now_us) {
            let packet = Packet::Heartbeat(heartbeat);
            self.network.push(InFlight { from: node, to: to.node.0, session, packet });
        }
    }

    fn call(
        &mut self,
        node: u16,
        call: impl FnOnce(&mut Raft, Context<'_>, &mut Effects<Message>) -> Option<String>,
    ) {
        let this = self.nodes.get_mut(&node).expect("it was created");
        let Some(raft) = &mut this.raft else { return };
        let cx = Context { now_us: self.now_us, peers: &this.peers };
        let mut effects = Effects::default();
        let refused = call(raft, cx, &mut effects);
        raft.flush(cx, &mut effects);
        self.told.extend(refused.map(|refused| format!("{node}: {refused}")));
        for (peer, revocation) in effects.revoked {
            this.peers.revoke(peer, revocation);
        }
        this.writes.extend(effects.appends);
        let (written, session) = (this.writes.len(), this.peers.session());
        for send in effects.sends {
            let to = send.to.node.0;
            if send.after == After::Appends && this.durable < written {
                this.held.push((written, to, send.message));
            } else {
                let packet = Packet::Raft(send.message);
                self.network.push(InFlight { from: node, to, session, packet });
            }
        }
        for entry in effects.committed {
            this.committed.push(entry.index);
            self.told.push(format!("{node} commits {}", told_entry(&entry)));
        }
        for token in effects.reads {
            self.told.push(format!("{node} serves read {token}"));
        }
        for token in effects.refused_reads {
            self.told.push(format!("{node} refuses read {token}"));
        }
    }

    fn sync(&mut self, node: u16) {
        let this = self.nodes.get_mut(&node).expect("it was created");
        if this.raft.is_none() || this.durable == this.writes.len() {
            return;
        }
        this.durable = this.writes.len();
        let (appends, session) = ((this.durable - this.at_start) as u64, this.peers.session());
        for (_, to, message) in std::mem::take(&mut this.held) {
            let packet = Packet::Raft(message);
            self.network.push(InFlight { from: node, to, session, packet });
        }
        self.call(node, |raft, cx, effects| {
            raft.durable(appends, cx, effects);
            None
        });
    }

    /// Delivers the packets that are in flight now: all of them, or those on one way (`1->2`).
    /// Delivers messages twice if `twice` is given.
    fn deliver(&mut self, way: Option<&str>, twice: Option<&str>) {
        let in_flight = std::mem::take(&mut self.network);
        let (now, later): (Vec<_>, Vec<_>) = in_flight.into_iter().partition(|p| p.is_of(way));
        self.network = later;
        for InFlight { from, to, session, packet } in now {
            let this = self.nodes.get_mut(&to).expect("it was created");
            if this.raft.is_none() || this.peers.observe(at(from), session).is_none() {
                continue;
            }
            match packet {
                Packet::Raft(message) => {
                    for _ in 0..=usize::from(twice.is_some()) {
                        let message = message.clone();
                        self.call(to, |raft, cx, effects| {
                            raft.receive(at(from), message, cx, effects);
                            None
                        });
                    }
                }
                Packet::Heartbeat(heartbeat) => {
                    for revocation in this.peers.receive(at(from), &heartbeat, self.now_us) {
                        self.call(to, |raft, cx, effects| {
                            raft.revoked(at(from), revocation, cx, effects);
                            None
                        });
                    }
                }
            }
        }
    }

    /// Delivers heartbeats alone. Other messages stay in flight.
    fn hear(&mut self) {
        let (heartbeats, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.network)
            .into_iter()
            .partition(|packet| matches!(packet.packet, Packet::Heartbeat(_)));
        self.network = heartbeats;
        self.deliver(None, None);
        self.network.splice(..0, others);
    }

    fn tell_flight(&mut self) {
        for packet in &self.network {
            if let Packet::Raft(message) = &packet.packet {
                let (from, to) = (packet.from, packet.to);
                self.told.push(format!("{from}->{to} {}", told_message(message)));
            }
        }
    }

    fn show(&mut self) {
        for (node, this) in &self.nodes {
            let Some(raft) = &this.raft else {
                self.told.push(format!("{node} is down"));
                continue;
            };
            let entries = (raft.first_index()..=raft.last_index())
                .filter_map(|index| raft.entry(index))
                .map(|entry| format!("{}@{}", entry.index, entry.term));
            let leader = raft.leader().map_or("none".to_owned(), |l| l.node.0.to_string());
            self.told.push(format!(
                "{node} {:?} of term {}, led by {leader}, committed {}, log {}",
                raft.role(),
                raft.term(),
                raft.commit_index(),
                entries.collect::<Vec<_>>().join(" ")
            ));
        }
    }
}

impl InFlight {
    fn is_of(&self, way: Option<&str>) -> bool {
        let Some((from, to)) = way.and_then(|way| way.split_once("->")) else { return true };
        let fits = |wanted: &str, node: u16| wanted == "*" || wanted == node.to_string();
        fits(from, self.from) && fits(to, self.to)
    }
}

fn told_entry(entry: &Entry) -> String {
    let Entry { index, term, kind, payload } = entry;
    match kind {
        EntryKind::Members => format!("{index}@{term} (members)"),
        EntryKind::Command if payload.is_empty() => format!("{index}@{term} (begins the term)"),
        EntryKind::Command => format!("{index}@{term} {}", String::from_utf8_lossy(payload)),
    }
}

fn told_message(message: &Message) -> String {
    let term = message.term;
    match &message.body {
        Body::Append { previous_index, previous_term, commit_index, entries, .. } => {
            let entries: Vec<_> =
                entries.iter().map(|entry| format!("{}@{}", entry.index, entry.term)).collect();
            format!(
                "term {term}: append after {previous_index}@{previous_term}: [{}], committed \
                 {commit_index}",
                entries.join(" ")
            )
        }
        body => format!("term {term}: {body:?}"),
    }
}
