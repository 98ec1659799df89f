//! A node: its shards with their disks, its clocks, and its current faults.

use palisade_clock::Now;
use palisade_control::{Bootstrap, NodeAddress};
use palisade_shard::{Inbox, Input, Runtime, Shard, ShardConfig, ShardEffects};
use palisade_wal::Record;
use palisade_wire::{NodeId, PeerAddress, ShardId};

use crate::{
    clock::Clock,
    parameters::{Parameters, stream},
    simulated_log::{CrashedLog, LogSettings, SimulatedLog, Sync},
};

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) clock: Clock,
    pub(crate) shards: Vec<Slot>,
    /// Number of crashes so far. Events for an earlier life are dropped.
    pub(crate) life: u32,
    pub(crate) running: bool,
    /// The node handles no events before this time.
    pub(crate) paused_until_us: u64,
    /// While the node drains: how long it stays down afterwards.
    pub(crate) draining_us: Option<u64>,
    pub(crate) slow_disk_until_us: u64,
    pub(crate) full_disk_until_us: u64,
    /// The next sync fails.
    pub(crate) failing_disk: bool,
    /// A bit of its log was flipped.
    pub(crate) damaged: bool,
    /// Its log is damaged or was lost, so the node cannot take part any more.
    pub(crate) lost: bool,
    /// The node must stay down while the operator removes it from its chains.
    pub(crate) fenced: bool,
}

/// A shard of a node: the running shard and its log, and its pending inputs and effects.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) at: PeerAddress,
    /// `None` while the node is down.
    pub(crate) runtime: Option<Runtime<SimulatedLog>>,
    log_settings: LogSettings,
    /// What the last crash left of the log.
    pub(crate) crashed: CrashedLog,
    /// The sync in flight.
    pub(crate) syncing: Option<Sync>,
    /// Inputs that have arrived, and those that are passed to turns.
    pub(crate) arrived: Vec<Input>,
    pub(crate) inbox: Inbox,
    pub(crate) turn_is_due: bool,
    /// A turn whose thread was stopped between the readings of its two clocks.
    pub(crate) stopped: Option<StoppedTurn>,
    /// The effects of the turn in progress: they are carried out when it ends.
    pub(crate) turn: Option<ShardEffects>,
    /// True while a script holds back syncs.
    pub(crate) syncs_held: bool,
}

/// A turn that has taken its inputs and read one of its clocks, and is then stopped.
#[derive(Debug)]
pub(crate) struct StoppedTurn {
    pub(crate) inputs: Vec<Input>,
    /// The readings of both clocks when the turn began.
    pub(crate) began: Now,
}

impl Node {
    pub(crate) fn new(id: NodeId, parameters: &Parameters, random: &mut fastrand::Rng) -> Self {
        let slot = |shard| {
            let at = PeerAddress { node: id, shard: ShardId(shard) };
            let log_settings = LogSettings {
                owner: u64::from(id.0) << 16 | u64::from(shard),
                segment_bytes: parameters.segment_bytes,
                limit_bytes: parameters.log_limit_bytes,
                ahead_bytes: parameters.log_reserve_bytes / 16 * 23,
                trust_damage: parameters.trust_damage,
                cut_early: parameters.cut_early,
            };
            Slot {
                at,
                runtime: None,
                log_settings,
                crashed: CrashedLog::blank(),
                syncing: None,
                arrived: Vec::new(),
                inbox: Inbox::default(),
                turn_is_due: false,
                stopped: None,
                turn: None,
                syncs_held: false,
            }
        };
        Self {
            id,
            clock: Clock::new(parameters, random),
            shards: (0..parameters.shards).map(slot).collect(),
            life: 0,
            running: false,
            paused_until_us: 0,
            draining_us: None,
            slow_disk_until_us: 0,
            full_disk_until_us: 0,
            failing_disk: false,
            damaged: false,
            lost: false,
            fenced: false,
        }
    }

    pub(crate) fn now(&self, now_us: u64) -> Now {
        self.clock.now(now_us)
    }

    /// Crashes the node. What remains of the unsynced part of its logs is random.
    pub(crate) fn crash(&mut self, random: &mut fastrand::Rng) {
        self.life += 1;
        self.running = false;
        self.paused_until_us = 0;
        self.draining_us = None;
        self.failing_disk = false;
        for slot in &mut self.shards {
            let runtime = slot.runtime.take().expect("a node that runs has all its shards");
            slot.crashed = runtime.log().crash(random);
            slot.syncing = None;
            slot.arrived.clear();
            slot.inbox = Inbox::default();
            slot.turn_is_due = false;
            slot.stopped = None;
            slot.turn = None;
        }
    }

    /// Starts the node from what remains of its logs. Fails if a log is damaged or cannot be
    /// replayed, or if a shard refuses to start.
    pub(crate) fn start(
        &mut self,
        parameters: &Parameters,
        shape: &Bootstrap,
        now_us: u64,
    ) -> Result<(), String> {
        let now = self.now(now_us);
        let mut runtimes = Vec::new();
        for slot in &self.shards {
            let config = shard_config(slot.at, parameters, shape, self.life);
            let recovered = Runtime::recover(
                config,
                shape.range_map(),
                || now,
                |replayed| {
                    let visit = |record: Record<'_>| replayed.visit(record);
                    SimulatedLog::recover(slot.log_settings, slot.crashed.clone(), visit)
                },
            );
            runtimes.push(recovered.map_err(|error| error.to_string())?);
        }
        for (slot, runtime) in self.shards.iter_mut().zip(runtimes) {
            slot.runtime = Some(runtime);
        }
        self.running = true;
        Ok(())
    }

    /// Undoes a start, before the node has written anything.
    pub(crate) fn stop(&mut self) {
        self.running = false;
        self.shards.iter_mut().for_each(|slot| slot.runtime = None);
    }
}

impl Slot {
    /// Returns the shard, or `None` while the node is down.
    pub(crate) fn shard(&self) -> Option<&Shard> {
        self.runtime.as_ref().map(Runtime::shard)
    }
}

fn shard_config(
    at: PeerAddress,
    parameters: &Parameters,
    shape: &Bootstrap,
    life: u32,
) -> ShardConfig {
    let address = |node| NodeAddress { node: NodeId(node), client: Vec::new() };
    let name = format!("shard {at} {life}");
    ShardConfig {
        at,
        cluster_id: 1,
        nodes: (0..parameters.nodes).map(address).collect(),
        shape: Some(shape.clone()),
        // In runs with `clock_lie_us`, a clock that is wrong beyond its bound must be accepted.
        max_offset_us: parameters.max_offset_us + 2 * parameters.clock_lie_us,
        random_seed: stream(parameters.seed, &name).u64(..),
        checkpoint_bytes: parameters.checkpoint_bytes,
        log_reserve_bytes: parameters.log_reserve_bytes,
        snapshot_part_bytes: parameters.snapshot_part_bytes,
        max_message_bytes: parameters.max_message_bytes,
        turn_work: parameters.turn_work,
        planted: parameters.planted,
    }
}
