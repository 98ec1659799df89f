//! Nodes that start, crash, stop as planned, and lose their logs.

use palisade_shard::Input;
use palisade_wire::{Mode, NodeId};

use super::{Event, World};
use crate::{Violation, node::Slot, simulated_log::CrashedLog};

/// Time from a crash at a sync until the node starts again.
const RESTART_US: u64 = 500_000;

/// Time limit of a drain, as in production. Past it, the node stops without having drained.
const DRAIN_US: u64 = 10_000_000;

/// Shards count as having met once all have been admitted for this long: by then even the slowest
/// disk has synced.
const SYNCED_BY_NOW_US: u64 = 5_000_000;

impl World {
    /// Stops a node as SIGTERM does: it drains, stops, and starts again `down_us` later. No effect
    /// if the node is down or drains already.
    pub fn drain(&mut self, node: usize, down_us: u64) {
        if !self.nodes[node].running || self.nodes[node].draining_us.is_some() {
            return;
        }
        self.record.line(self.now_us, || format!("n{node} drains"));
        self.nodes[node].draining_us = Some(down_us);
        for slot in 0..self.nodes[node].shards.len() {
            self.nodes[node].shards[slot].arrived.push(Input::Drain);
            self.turn_soon(node, slot);
        }
        let life = self.nodes[node].life;
        self.schedule(self.now_us + DRAIN_US, Event::Crash { node, life });
    }

    /// Returns true if all shards of a node that is to stop have drained, and none is in a turn.
    pub(super) fn has_drained(&self, node: usize) -> bool {
        let is_drained = |slot: &Slot| {
            slot.turn.is_none() && slot.shard().is_some_and(|shard| shard.is_drained())
        };
        self.nodes[node].draining_us.is_some() && self.nodes[node].shards.iter().all(is_drained)
    }

    /// Ends the process of a node that has drained.
    pub(super) fn stop_drained(&mut self, node: usize) {
        let down_us = self.nodes[node].draining_us.expect("it drains");
        self.record.line(self.now_us, || format!("n{node} stops"));
        self.end_process(node);
        self.start_in(node, down_us);
    }

    /// Crashes a node. A random part of its unsynced log remains. No effect if the node is down.
    pub fn crash(&mut self, node: usize) {
        if self.nodes[node].running {
            self.crashes += 1;
            self.record.line(self.now_us, || format!("n{node} dies"));
            self.end_process(node);
        }
    }

    /// Crashes a node, and starts it again a little later.
    pub(super) fn crash_and_restart(&mut self, node: usize) {
        self.crash(node);
        self.start_in(node, RESTART_US);
    }

    fn end_process(&mut self, node: usize) {
        self.nodes[node].crash(&mut self.disk_random);
        let id = self.nodes[node].id;
        self.invariants.after_crash(id);
        for connection in self.clients.connections_to(id) {
            self.break_later(connection);
        }
    }

    /// Starts a node that is down, unless it is fenced. A node that refuses to start counts as lost
    /// from then on. That is a violation, unless a bit of its log was flipped.
    pub fn start(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        if at.running || at.fenced {
            return;
        }
        if self.have_met && self.schedule.u8(0..8) == 0 {
            self.start_misconfigured(node);
        }
        let at = &mut self.nodes[node];
        match at.start(&self.parameters, &self.parameters.shape(), self.now_us) {
            Ok(()) => {
                let life = at.life;
                self.record.line(self.now_us, || format!("n{node} starts"));
                for slot in &self.nodes[node].shards {
                    let shard = slot.shard().expect("it was started just now");
                    if let Err(violation) = self.invariants.after_start(slot.at, shard) {
                        self.violation.get_or_insert(violation);
                    }
                }
                self.schedule(self.now_us + 1, Event::Tick { node, life });
            }
            Err(reason) => {
                self.record.line(self.now_us, || format!("n{node} refuses to start: {reason}"));
                at.lost = true;
                if !at.damaged {
                    let detail = format!("n{node} refuses to start: {reason}");
                    self.violation =
                        Some(Violation { invariant: "a log that is whole is accepted", detail });
                }
            }
        }
    }

    /// Tries to start a node with a configuration of another shape. The node must refuse, and its
    /// logs must stay as they are.
    fn start_misconfigured(&mut self, node: usize) {
        let mut shape = self.parameters.shape();
        match self.schedule.u8(0..3) {
            0 => shape.ranges_per_mode += 1,
            1 => shape.nodes.push(NodeId(99)),
            _ => shape.only = if shape.only.is_none() { Some(Mode::Raft) } else { None },
        }
        let at = &mut self.nodes[node];
        // A lost log records no shape. A damaged one may be refused before its shape is compared.
        let has_a_past = !at.lost && !at.damaged;
        match at.start(&self.parameters, &shape, self.now_us) {
            Ok(()) if has_a_past => {
                let detail = format!("n{node} starts as {shape:?}");
                let invariant = "a cluster keeps its shape";
                self.violation.get_or_insert(Violation { invariant, detail });
            }
            Ok(()) => at.stop(),
            Err(_) => {}
        }
    }

    /// Erases the logs of a node that is down.
    ///
    /// # Panics
    /// If the node is running.
    pub fn wipe(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        assert!(!at.running, "only a node that is down can lose its logs");
        at.lost = true;
        for slot in &mut at.shards {
            slot.crashed = CrashedLog::blank();
        }
        self.record.line(self.now_us, || format!("n{node} loses its logs"));
        self.invariants.after_loss(self.nodes[node].id);
    }

    /// Starts a node after a wait, unless it has crashed again by then.
    pub(crate) fn start_in(&mut self, node: usize, wait_us: u64) {
        let life = self.nodes[node].life;
        self.schedule(self.now_us + wait_us, Event::Start { node, life });
    }

    /// Updates since when every shard of every node has been running and admitted, and `have_met`.
    pub(crate) fn look_whether_all_have_met(&mut self) {
        let shards = self.nodes.len() * self.nodes[0].shards.len();
        let all = self.shards().filter(|(_, shard)| shard.is_admitted()).count() == shards;
        if !all {
            self.together_since_us = u64::MAX;
        } else if self.together_since_us == u64::MAX {
            self.together_since_us = self.now_us;
        }
        self.have_met |= self.now_us.saturating_sub(self.together_since_us) >= SYNCED_BY_NOW_US;
    }

    /// Returns true once all nodes have met and have recorded that durably. Until then a new
    /// cluster needs all of its nodes.
    pub(crate) fn have_met(&self) -> bool {
        self.have_met
    }
}
