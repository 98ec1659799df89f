//! A group of replicas that acts only on the commands of a script.
//!
//! Commands of both protocols, beside `new`. `NODES` is a list such as `1,2`:
//! - `propose NODE TEXT`, `read NODE`: a request to a replica;
//! - `sync NODES`: makes the writes of a node durable;
//! - `crash NODES`, `start NODES`: a crash loses the writes that were not synced;
//! - `deliver [WAY] [twice]`, `drop [WAY]`: the packets in flight now, all or those of a way such
//!   as `1->2`, `1->*` or `*->2`. Packets that a delivery causes stay in flight;
//! - `heartbeats`: delivers the heartbeats between shards, and no other packets;
//! - `tick NODES`: ticks the replicas, and sends the heartbeats that are due;
//! - `pass MILLISECONDS`: advances time, and nothing else;
//! - `wait MILLISECONDS`: advances time in steps of 10 ms. In each step every node is ticked, and
//!   everything is delivered and synced. Prints only events (changes, commits, reads, refusals),
//!   then the states. `settle` prints only the states;
//! - `cut NODE`, `heal`: whether `wait` drops the packets from and to a node;
//! - `flight`: prints the messages in flight, without heartbeats. `show`: prints the states.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{Context, Effects, Refusal};

use crate::{
    network::{Content, Network, Packet, Way},
    node::{Node, Replica, Shared},
    notation::{Aliases, address, parse_nodes},
    output::{Kind, Output},
};

/// Step of `wait`, in microseconds.
const STEP_US: u64 = 10_000;

/// Rounds of deliveries and syncs in a step of `wait`: more than an election with a first commit
/// takes.
const ROUNDS: usize = 20;

/// A protocol with its own commands.
pub(crate) trait Mode: Replica {
    /// Runs a command that only this protocol has. Returns false if it is unknown.
    fn command(cluster: &mut Cluster<Self>, words: &[&str]) -> bool;
}

pub(crate) struct Cluster<R: Replica> {
    group: Option<R::Group>,
    nodes: BTreeMap<u16, Node<R>>,
    shared: Shared<R::Message>,
    /// The token of the latest read.
    last_read: u64,
    /// `wait` drops every packet from or to this node.
    cut: Option<u16>,
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

pub(crate) fn node(word: &str) -> u16 {
    word.parse().expect("the number of a node")
}

impl<R: Mode> Cluster<R>
where
    R::Message: Clone,
{
    pub(crate) fn new() -> Self {
        let shared = Shared {
            now_us: 1_000_000,
            network: Network::new(),
            output: Output::new(),
            aliases: Aliases::default(),
        };
        Self { group: None, nodes: BTreeMap::new(), shared, last_read: 0, cut: None }
    }

    /// Runs a command and returns the lines that it prints.
    pub(crate) fn run(&mut self, command: &str) -> Vec<String> {
        let words: Vec<_> = command.split_whitespace().collect();
        match words.as_slice() {
            ["propose", at, payload] => self.propose(node(at), payload),
            ["read", at] => self.read(node(at)),
            ["sync", list] => self.each(list, Node::sync),
            ["crash", list] => self.each(list, Node::crash),
            ["tick", list] => self.each(list, Node::tick),
            ["start", list] => parse_nodes(list).into_iter().for_each(|at| self.start(at)),
            ["deliver"] => self.deliver(Way::default(), 1),
            ["deliver", "twice"] => self.deliver(Way::default(), 2),
            ["deliver", way] => self.deliver(Way::parse(way), 1),
            ["deliver", way, "twice"] => self.deliver(Way::parse(way), 2),
            ["drop"] => self.drop_packets(Way::default()),
            ["drop", way] => self.drop_packets(Way::parse(way)),
            ["heartbeats"] => self.deliver_heartbeats(),
            ["pass", milliseconds] => self.pass(1_000 * number(milliseconds)),
            ["wait", milliseconds] => self.wait(1_000 * number(milliseconds), Kind::Event),
            ["settle", milliseconds] => self.wait(1_000 * number(milliseconds), Kind::State),
            ["cut", at] => self.cut = Some(node(at)),
            ["heal"] => self.cut = None,
            ["flight"] => self.show_flight(),
            ["show"] => self.show(),
            words => assert!(R::command(self, words), "unknown command: {command}"),
        }
        self.shared.output.take()
    }

    /// Creates the nodes of a group and starts them. Prints nothing, because all of them are empty.
    pub(crate) fn create(&mut self, group: R::Group, nodes: &[u16]) {
        self.limit_output(Kind::State);
        self.group = Some(group);
        self.nodes = nodes.iter().map(|number| (*number, Node::new(*number))).collect();
        nodes.iter().for_each(|number| self.start(*number));
    }

    fn start(&mut self, at: u16) {
        let group = self.group.clone().expect("`new` is the first command");
        let others = self.nodes.keys().copied().filter(|other| *other != at).map(address);
        let others = others.collect();
        let (node, shared) = self.at(at);
        node.start(group, others, shared);
    }

    /// Returns a node, and what it shares with the others.
    fn at(&mut self, at: u16) -> (&mut Node<R>, &mut Shared<R::Message>) {
        let node = self.nodes.get_mut(&at).expect("`new` lists the node");
        (node, &mut self.shared)
    }

    fn each(&mut self, list: &str, act: impl Fn(&mut Node<R>, &mut Shared<R::Message>)) {
        for at in parse_nodes(list) {
            let (node, shared) = self.at(at);
            act(node, shared);
        }
    }

    fn propose(&mut self, at: u16, payload: &str) {
        let bytes = Bytes::copy_from_slice(payload.as_bytes());
        self.request(at, &format!("proposal {payload}"), |replica, cx, effects| {
            replica.propose(bytes, cx, effects).map(|_| ())
        });
    }

    fn read(&mut self, at: u16) {
        self.last_read += 1;
        let token = self.last_read;
        self.request(at, &format!("read {token}"), |replica, _, effects| {
            replica.read(token, effects)
        });
    }

    /// Makes a call at a node and carries out the effects. `request` names it in a refusal.
    pub(crate) fn request(
        &mut self,
        at: u16,
        request: &str,
        call: impl FnOnce(&mut R, Context<'_>, &mut Effects<R::Message>) -> Result<(), Refusal>,
    ) {
        let (node, shared) = self.at(at);
        node.request(request, shared, call);
    }

    fn deliver(&mut self, way: Way, copies: usize) {
        let packets = self.shared.network.take(|packet| way.includes(packet));
        self.receive(packets, copies);
    }

    fn deliver_heartbeats(&mut self) {
        let is_heartbeat = |packet: &Packet<_>| matches!(packet.content, Content::Heartbeat(_));
        let heartbeats = self.shared.network.take(is_heartbeat);
        self.receive(heartbeats, 1);
    }

    fn receive(&mut self, packets: Vec<Packet<R::Message>>, copies: usize) {
        for packet in packets {
            let (node, shared) = self.at(packet.to);
            node.receive(packet, copies, shared);
        }
    }

    fn drop_packets(&mut self, way: Way) {
        let Shared { network, output, aliases, .. } = &mut self.shared;
        for Packet { from, to, content, .. } in network.take(|packet| way.includes(packet)) {
            let (kind, text) = match &content {
                Content::Message(message) => (Kind::Effect, R::describe_message(message, aliases)),
                Content::Heartbeat(_) => (Kind::Heartbeat, "heartbeat".to_owned()),
            };
            output.print(kind, format!("{from} -> {to} {text} (dropped)"));
        }
    }

    pub(crate) fn tick(&mut self, at: u16) {
        let (node, shared) = self.at(at);
        node.tick(shared);
    }

    pub(crate) fn pass(&mut self, duration_us: u64) {
        self.shared.now_us += duration_us;
        for node in self.nodes.values_mut() {
            node.observe(&Effects::default(), &mut self.shared);
        }
    }

    fn wait(&mut self, duration_us: u64, limit: Kind) {
        assert_eq!(duration_us % STEP_US, 0, "`wait` takes steps of 10 ms");
        self.limit_output(limit);
        for _ in 0..duration_us / STEP_US {
            self.pass(STEP_US);
            for node in self.nodes.values_mut() {
                node.tick(&mut self.shared);
            }
            for _ in 0..ROUNDS {
                let cut = self.cut;
                let is_cut = |end: u16| cut == Some(end);
                self.shared.network.take(|packet| is_cut(packet.from) || is_cut(packet.to));
                self.deliver(Way::default(), 1);
                for node in self.nodes.values_mut() {
                    node.sync(&mut self.shared);
                }
            }
        }
        self.show();
    }

    /// Omits lines more detailed than `limit` until the end of the command.
    pub(crate) fn limit_output(&mut self, limit: Kind) {
        self.shared.output.limit(limit);
    }

    pub(crate) fn in_flight(&self) -> &[Packet<R::Message>] {
        self.shared.network.in_flight()
    }

    fn show_flight(&mut self) {
        let Shared { network, output, aliases, .. } = &mut self.shared;
        for Packet { from, to, content, .. } in network.in_flight() {
            if let Content::Message(message) = content {
                let text = R::describe_message(message, aliases);
                output.print(Kind::State, format!("{from} -> {to} {text}"));
            }
        }
    }

    fn show(&mut self) {
        for node in self.nodes.values() {
            self.shared.output.print(Kind::State, node.summary());
        }
    }
}
