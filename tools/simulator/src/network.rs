//! The network: decides when each message arrives, how often, or that it is lost.

use std::collections::BTreeSet;

use palisade_wire::NodeId;

use crate::parameters::{Parameters, stream};

/// The longest delay of a stale copy of a message.
const MAX_STALE_US: u64 = 60_000_000;

/// Shortest and longest time after which a client or node sends a lost packet again.
const MIN_RESEND_US: u64 = 200_000;
const MAX_RESEND_US: u64 = 1_000_000;

/// The longest time until a client notices that a connection is broken.
const MAX_SILENCE_US: u64 = 10_000_000;

/// The longest time from a request until its connection breaks early.
const MAX_EARLY_BREAK_US: u64 = 100_000;

/// The pause before a client tries to connect again, as in production.
const CONNECT_PAUSE_US: u64 = 50_000;

/// A direction of the link between clients and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientLink {
    Requests,
    Replies,
}

#[derive(Debug)]
pub(crate) struct Network {
    random: fastrand::Rng,
    delay_us: u64,
    tail_us: u64,
    loss: u32,
    duplication: u32,
    stale: u32,
    /// Directed links, as (from, to), that lose every message sent. Stale copies still pass.
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// Links between clients and nodes that lose messages, by direction.
    client_cuts: BTreeSet<(NodeId, ClientLink)>,
    /// Sender and receiver whose messages are recorded, for a script to replay.
    pub(crate) recorded: Option<(NodeId, NodeId)>,
}

impl Network {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        Self {
            random: stream(parameters.seed, "network"),
            delay_us: parameters.delay_us,
            tail_us: parameters.delay_tail_us,
            loss: parameters.loss,
            duplication: parameters.duplication,
            stale: parameters.stale,
            cuts: BTreeSet::new(),
            client_cuts: BTreeSet::new(),
            recorded: None,
        }
    }

    /// Adds to `out` the delay of each copy of a message between nodes: none, one or more.
    pub(crate) fn deliveries(&mut self, from: NodeId, to: NodeId, out: &mut Vec<u64>) {
        let cut = self.cuts.contains(&(from, to));
        let lost = self.random.u32(0..10_000) < self.loss;
        if !lost && !cut {
            out.push(self.delay());
        }
        if self.random.u32(0..10_000) < self.duplication && !cut {
            out.push(self.delay());
        }
        if self.stale > 0 && self.random.u32(0..1_000_000) < self.stale {
            out.push(self.random.u64(0..MAX_STALE_US));
        }
    }

    /// Returns the delay of a message between a client and a node, or `None` if the connection
    /// breaks instead. A lost packet is mostly sent again, as TCP does.
    pub(crate) fn client_delay_us(&mut self, node: NodeId, link: ClientLink) -> Option<u64> {
        if self.client_cuts.contains(&(node, link)) {
            return None;
        }
        let is_lost = self.random.u32(0..10_000) < self.loss;
        let resend_us = self.random.u64(MIN_RESEND_US..MAX_RESEND_US);
        let is_resent = self.random.u8(0..4) > 0;
        let delay_us = self.delay();
        match is_lost {
            false => Some(delay_us),
            true => is_resent.then_some(delay_us + resend_us),
        }
    }

    /// Returns when a client notices that its connection is broken: soon, or after a silence.
    pub(crate) fn break_delay_us(&mut self) -> u64 {
        if self.random.bool() { self.delay() } else { self.random.u64(0..MAX_SILENCE_US) }
    }

    /// Returns when a connection breaks on which a request was sent just now.
    pub(crate) fn early_break_delay_us(&mut self) -> u64 {
        let halvings = self.random.u32(0..10);
        self.random.u64(0..MAX_EARLY_BREAK_US >> halvings)
    }

    /// Returns when a client tries to connect after it could not, or a connection broke.
    pub(crate) fn connect_delay_us(&mut self) -> u64 {
        CONNECT_PAUSE_US + self.delay()
    }

    /// Returns true if clients can open a connection to a node.
    pub(crate) fn can_connect(&self, node: NodeId) -> bool {
        let links = [ClientLink::Requests, ClientLink::Replies];
        links.iter().all(|link| !self.client_cuts.contains(&(node, *link)))
    }

    /// Cuts the requests from clients to a node, or the replies from the node to clients.
    pub(crate) fn cut_clients(&mut self, node: NodeId, requests: bool) {
        let link = if requests { ClientLink::Requests } else { ClientLink::Replies };
        self.client_cuts.insert((node, link));
    }

    fn delay(&mut self) -> u64 {
        // Roughly exponential: a few messages take many times as long as most.
        let doublings = self.random.u64(..).trailing_ones().min(10);
        let tail_us = (self.tail_us << doublings) / 4;
        self.delay_us + self.random.u64(0..=tail_us)
    }

    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cuts.insert((from, to));
    }

    /// Cuts all links between two sets of nodes, in both directions.
    pub(crate) fn part(&mut self, one: &[NodeId], other: &[NodeId]) {
        for a in one {
            for b in other {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// Restores all links.
    pub(crate) fn mend(&mut self) {
        self.cuts.clear();
        self.client_cuts.clear();
    }

    /// Restores all links, and ends the loss, duplication and stale delivery of messages.
    pub(crate) fn calm(&mut self) {
        self.mend();
        (self.loss, self.duplication, self.stale) = (0, 0, 0);
    }
}
