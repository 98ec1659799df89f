//! The network: what becomes of a message.

use std::collections::BTreeSet;

use palisade_wire::NodeId;

use crate::parameters::{Parameters, stream};

/// A message that is delivered once more comes up to this much later.
const MAX_STALE_US: u64 = 60_000_000;

/// A direction between clients and a node.
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
    /// Nothing passes from the first to the second.
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// Nothing passes from clients to these nodes, or from these nodes to clients.
    client_cuts: BTreeSet<(NodeId, ClientLink)>,
    /// Kept for a script to deliver again: between whom.
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

    /// When a message between nodes arrives: not at all, once, or more often.
    pub(crate) fn deliveries(&mut self, from: NodeId, to: NodeId, out: &mut Vec<u64>) {
        let cut = self.cuts.contains(&(from, to));
        self.of_anybody(cut, out);
        if self.stale > 0 && self.random.u32(0..1_000_000) < self.stale {
            out.push(self.random.u64(0..MAX_STALE_US));
        }
    }

    /// When a message between a client and a node arrives.
    pub(crate) fn client_deliveries(&mut self, node: NodeId, link: ClientLink, out: &mut Vec<u64>) {
        let cut = self.client_cuts.contains(&(node, link));
        self.of_anybody(cut, out);
    }

    /// Nothing passes from clients to a node, or back.
    pub(crate) fn cut_clients(&mut self, node: NodeId, requests: bool) {
        let link = if requests { ClientLink::Requests } else { ClientLink::Replies };
        self.client_cuts.insert((node, link));
    }

    fn of_anybody(&mut self, cut: bool, out: &mut Vec<u64>) {
        let lost = self.random.u32(0..10_000) < self.loss;
        if !lost && !cut {
            out.push(self.delay());
        }
        if self.random.u32(0..10_000) < self.duplication && !cut {
            out.push(self.delay());
        }
    }

    fn delay(&mut self) -> u64 {
        // Exponential enough: a few messages take many times as long as most.
        let doublings = self.random.u64(..).trailing_ones().min(10);
        let tail_us = (self.tail_us << doublings) / 4;
        self.delay_us + self.random.u64(0..=tail_us)
    }

    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cuts.insert((from, to));
    }

    /// Parts two sets of nodes.
    pub(crate) fn part(&mut self, one: &[NodeId], other: &[NodeId]) {
        for a in one {
            for b in other {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// Everybody reaches everybody again.
    pub(crate) fn mend(&mut self) {
        self.cuts.clear();
        self.client_cuts.clear();
    }

    /// No message is lost, doubled or stale any more.
    pub(crate) fn calm(&mut self) {
        self.mend();
        (self.loss, self.duplication, self.stale) = (0, 0, 0);
    }
}
