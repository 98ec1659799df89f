//! Injects faults into a cluster at random times.

use palisade_wire::{Mode, NodeId};

use crate::{
    World,
    operator::Operator,
    parameters::{FaultKind, Parameters, stream},
};

/// Longest interval between two checks for faults that end and for work of the operator.
const OPERATOR_US: u64 = 100_000;

/// The faults of a run: which, when, and which of them last.
#[derive(Debug)]
pub(crate) struct Faults {
    random: fastrand::Rng,
    kinds: Vec<FaultKind>,
    interval_us: u64,
    length_us: u64,
    next_us: u64,
    operator_interval_us: u64,
    next_change_us: u64,
    /// When the current network fault ends.
    mend_us: u64,
    /// Nodes whose clocks report a larger error bound, and until when.
    unsure: Vec<(usize, u64)>,
    pub(crate) operator: Operator,
}

impl Faults {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let changes = parameters.faults.contains(&FaultKind::Operator);
        Self {
            random: stream(parameters.seed, "faults"),
            kinds: parameters.faults.clone(),
            interval_us: parameters.fault_interval_us,
            length_us: parameters.fault_length_us,
            next_us: 0,
            operator_interval_us: parameters.operator_interval_us,
            next_change_us: if changes { 0 } else { u64::MAX },
            mend_us: 0,
            unsure: Vec::new(),
            operator: Operator::new(parameters),
        }
    }

    /// Runs the world for `fault_us`, and injects faults meanwhile.
    pub(crate) fn inject(&mut self, world: &mut World) {
        let end_us = world.parameters.fault_us;
        while world.now_us < end_us && world.violation.is_none() {
            if world.now_us >= self.next_us {
                self.next_us = world.now_us + self.random.u64(1..=2 * self.interval_us);
                if !self.kinds.is_empty() {
                    let kind = self.kinds[self.random.usize(0..self.kinds.len())];
                    self.inject_one(kind, world);
                }
            }
            if world.now_us >= self.mend_us {
                world.network.mend();
            }
            self.make_sure(world, world.now_us);
            if world.now_us >= self.next_change_us {
                self.next_change_us =
                    world.now_us + self.random.u64(1..=2 * self.operator_interval_us);
                self.operator.change_something(world, &mut self.random);
            }
            world.look_whether_all_have_met();
            self.operator.act(world);
            let next_us = self.next_us.min(self.next_change_us);
            world.run_until((world.now_us + OPERATOR_US).min(next_us).min(end_us));
        }
    }

    fn inject_one(&mut self, kind: FaultKind, world: &mut World) {
        let node = self.random.usize(0..world.nodes.len());
        let length_us = self.random.u64(1_000..=2 * self.length_us);
        world.record.line(world.now_us, || format!("fault: {kind:?} at n{node}, {length_us} us"));
        let until_us = world.now_us + length_us;
        match kind {
            FaultKind::Crash => {
                world.crash(node);
                if self.random.bool() {
                    world.nodes[node].clock.reboot(&mut world.clock_random);
                }
                world.start_in(node, length_us);
            }
            FaultKind::PlannedStop => world.drain(node, length_us),
            FaultKind::PowerLoss => {
                // Only a quarter of its share: other faults have no effect until nodes restart.
                if self.random.u8(0..4) == 0 {
                    for node in 0..world.nodes.len() {
                        world.crash(node);
                        world.start_in(node, self.random.u64(1_000..=self.length_us));
                    }
                }
            }
            FaultKind::Pause => {
                world.nodes[node].paused_until_us = until_us;
                if world.parameters.suspends {
                    world.nodes[node].clock.suspend(world.now_us, length_us);
                }
            }
            FaultKind::Partition => {
                let (one, other) = self.halves(world);
                world.network.part(&one, &other);
                self.mend_us = until_us;
            }
            FaultKind::OneWay => {
                let other = self.random.usize(0..world.nodes.len());
                world.network.cut(world.nodes[node].id, world.nodes[other].id);
                self.mend_us = until_us;
            }
            FaultKind::Bridge => {
                let (mut one, mut other) = self.halves(world);
                let bridge = world.nodes[node].id;
                one.retain(|id| *id != bridge);
                other.retain(|id| *id != bridge);
                world.network.part(&one, &other);
                self.mend_us = until_us;
            }
            FaultKind::Silence => {
                // About as long as a promise lasts, so that leases and elections race closely.
                let others: Vec<_> = world.nodes.iter().map(|node| node.id).collect();
                let from = world.nodes[node].id;
                others.into_iter().for_each(|to| world.network.cut(from, to));
                self.mend_us = world.now_us + self.random.u64(150_000..450_000);
            }
            FaultKind::CutClients => {
                world.network.cut_clients(world.nodes[node].id, self.random.bool());
                self.mend_us = until_us;
            }
            FaultKind::SlowDisk => world.nodes[node].slow_disk_until_us = until_us,
            FaultKind::FullDisk => world.nodes[node].full_disk_until_us = until_us,
            FaultKind::FailedSync => world.nodes[node].failing_disk = true,
            FaultKind::ClockJump => world.nodes[node].clock.jump(&mut world.clock_random),
            FaultKind::UnsureClock => {
                let times = self.random.u64(2..12);
                world.nodes[node].clock.become_unsure(times, &mut world.clock_random);
                self.unsure.push((node, until_us));
            }
            FaultKind::BitFlip => self.damage(node, world),
            FaultKind::Wipe => self.wipe(node, world),
            // The operator has its own interval.
            FaultKind::Operator => {}
        }
    }

    /// Restores the normal error bound of clocks whose fault ends at `until_us` or earlier.
    pub(crate) fn make_sure(&mut self, world: &mut World, until_us: u64) {
        for (node, _) in self.unsure.extract_if(.., |(_, us)| *us <= until_us) {
            world.nodes[node].clock.become_unsure(1, &mut world.clock_random);
        }
    }

    fn halves(&mut self, world: &World) -> (Vec<NodeId>, Vec<NodeId>) {
        let ids = world.nodes.iter().map(|node| node.id);
        ids.partition(|_| self.random.bool())
    }

    /// Returns true if a node may be lost for good: at most one in a run, because Palisade does not
    /// promise to survive more, and none before all nodes have met. The node must not be the only
    /// member of a chain.
    fn may_lose(node: usize, world: &World) -> bool {
        let all_well = world.nodes.iter().all(|node| node.running && !node.lost);
        let last_copies = world.shards().flat_map(|(_, shard)| shard.views()).any(|view| {
            let electorates = view.electorates();
            view.mode() == Mode::Chain
                && electorates[0].iter().all(|member| usize::from(member.node.0) == node)
        });
        world.have_met() && world.nodes.len() >= 3 && all_well && !last_copies
    }

    fn damage(&mut self, node: usize, world: &mut World) {
        if !Self::may_lose(node, world) {
            return;
        }
        world.crash(node);
        let slot = self.random.usize(0..world.nodes[node].shards.len());
        let place = &mut world.nodes[node].shards[slot];
        let flipped = place.crashed.flip_bit(&mut world.disk_random);
        world.nodes[node].damaged = flipped;
        world.start(node);
        if world.nodes[node].lost {
            world.invariants.after_loss(world.nodes[node].id);
        }
    }

    fn wipe(&mut self, node: usize, world: &mut World) {
        if !Self::may_lose(node, world) {
            return;
        }
        world.crash(node);
        world.wipe(node);
        world.start(node);
        if self.random.bool() {
            // The promises in the lost logs matter most while another node is down as well.
            let other = self.random.usize(0..world.nodes.len());
            if other != node {
                world.crash(other);
                world.start_in(other, self.random.u64(500_000..5_000_000));
            }
        }
    }
}
