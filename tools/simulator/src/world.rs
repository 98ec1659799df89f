//! A cluster in virtual time: the queue of events, and the handler of each kind of event.

mod connections;
mod nodes;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt::Debug,
};

use bytes::BytesMut;
use palisade_clock::Now;
use palisade_control::{RangeDescriptor, RangeMap};
use palisade_replication::Append;
use palisade_shard::{ConnectionId, Input, PeerBody, PeerMessage, Runtime, Shard, ShardEffects};
use palisade_wire::{
    Decode, Encode, NodeId, PeerAddress, RangeId, Request, Response, decode_exact,
};

use crate::{
    Trace, Violation,
    clients::Clients,
    invariants::Invariants,
    network::{ClientLink, Network},
    node::{Node, StoppedTurn},
    parameters::{FaultKind, Parameters, stream},
    trace::Record,
    turn_cost,
};

/// Interval between two ticks of a node, in true time: the drift of its clock is ignored here.
const TICK_US: u64 = 10_000;

/// For this long after a pause, a turn reads only some of the connections, at random.
const WAKING_US: u64 = 1_000;

/// The first connection id that does not belong to a client: for the operator, probes and scripts.
pub(crate) const FIRST_OWN_CONNECTION: u64 = 1 << 32;

/// A simulated cluster in virtual time: its nodes, network and clients, and the invariant checks.
#[derive(Debug)]
pub struct World {
    pub(crate) parameters: Parameters,
    pub(crate) now_us: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    next_event: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    pub(crate) clients: Clients,
    pub(crate) invariants: Invariants,
    pub(crate) record: Record,
    pub(crate) violation: Option<Violation>,
    /// The range map with which the cluster was created.
    pub(crate) ranges: RangeMap,
    schedule: fastrand::Rng,
    pub(crate) disk_random: fastrand::Rng,
    pub(crate) clock_random: fastrand::Rng,
    client_wake_us: u64,
    /// Answers on connections that do not belong to clients, until a script or probe takes them.
    pub(crate) answers: Vec<(ConnectionId, Response)>,
    recorded: Vec<(PeerAddress, PeerAddress, PeerMessage)>,
    pub(crate) crashes: u64,
    /// The longest work of a turn so far, in microseconds.
    longest_turn_us: u64,
    /// Numbers the requests of scripts.
    pub(crate) next_question: u64,
    together_since_us: u64,
    have_met: bool,
    deliveries: Vec<u64>,
}

#[derive(Debug)]
struct Scheduled {
    at_us: u64,
    number: u64,
    event: Event,
}

#[derive(Debug)]
enum Event {
    Tick { node: usize, life: u32 },
    Turn { node: usize, slot: usize, life: u32 },
    EndOfTurn { node: usize, slot: usize, life: u32 },
    Synced { node: usize, slot: usize, life: u32 },
    Wake { node: usize, slot: usize, life: u32 },
    Peer { from: PeerAddress, to: PeerAddress, message: Box<PeerMessage> },
    Request { to: PeerAddress, connection: ConnectionId, request: Box<Request> },
    Reply { connection: ConnectionId, response: Box<Response> },
    WakeClients,
    Connect { client: usize, to: PeerAddress },
    Broken { connection: ConnectionId },
    Crash { node: usize, life: u32 },
    Start { node: usize, life: u32 },
}

impl World {
    /// Creates a cluster and starts all of its nodes.
    pub fn new(parameters: Parameters, trace: Trace) -> Self {
        let seed = parameters.seed;
        let ranges = parameters.shape().range_map();
        let mut clock_random = stream(seed, "clock");
        let nodes = (0..parameters.nodes)
            .map(|node| Node::new(NodeId(node), &parameters, &mut clock_random))
            .collect();
        let mut world = Self {
            now_us: 0,
            queue: BinaryHeap::new(),
            next_event: 0,
            nodes,
            network: Network::new(&parameters),
            clients: Clients::new(&parameters, &ranges),
            invariants: Invariants::new(&parameters),
            record: Record::new(trace),
            violation: None,
            ranges,
            schedule: stream(seed, "schedule"),
            disk_random: stream(seed, "disk"),
            clock_random,
            client_wake_us: u64::MAX,
            answers: Vec::new(),
            recorded: Vec::new(),
            crashes: 0,
            longest_turn_us: 0,
            next_question: 1 << 16,
            together_since_us: u64::MAX,
            have_met: false,
            deliveries: Vec::new(),
            parameters,
        };
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        world.connect_clients();
        world
    }

    /// Runs until a point of virtual time, in microseconds, or until an invariant is violated.
    pub fn run_until(&mut self, until_us: u64) {
        while self.violation.is_none()
            && let Some(Reverse(next)) = self.queue.peek()
            && next.at_us <= until_us
        {
            let Some(Reverse(Scheduled { at_us, event, .. })) = self.queue.pop() else { break };
            self.now_us = at_us;
            self.record.events += 1;
            self.handle(event);
        }
        if self.violation.is_none() {
            self.now_us = until_us;
        }
    }

    /// Runs for a duration of virtual time, or until an invariant is violated.
    pub fn run_for(&mut self, duration_us: u64) {
        self.run_until(self.now_us + duration_us);
    }

    fn schedule(&mut self, at_us: u64, event: Event) {
        self.next_event += 1;
        let number = self.next_event;
        self.queue.push(Reverse(Scheduled { at_us, number, event }));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::Turn { node, slot, life } => self.turn(node, slot, life),
            Event::EndOfTurn { node, slot, life } => self.end_of_turn(node, slot, life),
            Event::Wake { node, slot, life } => {
                let at = &self.nodes[node];
                if at.running && at.life == life {
                    self.turn_soon(node, slot);
                }
            }
            Event::Synced { node, slot, life } => self.synced(node, slot, life),
            Event::Peer { from, to, message } => self.arrive(from, to, *message),
            Event::Request { to, connection, request } => {
                self.input(to, Input::Request { connection, request: *request });
            }
            Event::Reply { connection, response } => {
                if connection.0 >= FIRST_OWN_CONNECTION {
                    self.answers.push((connection, *response));
                } else if self.is_awake(connection, || Event::Reply {
                    connection,
                    response: response.clone(),
                }) {
                    self.with_clients(|clients, now_us, sends| {
                        clients.reply(now_us, connection, *response, sends)
                    });
                }
            }
            // An earlier wake was scheduled since: it has come already, or will.
            Event::WakeClients if self.now_us != self.client_wake_us => {}
            Event::WakeClients => {
                self.client_wake_us = u64::MAX;
                self.with_clients(Clients::act);
            }
            Event::Connect { client, to } => self.connect(client, to),
            Event::Broken { connection } => {
                if self.is_awake(connection, || Event::Broken { connection }) {
                    self.disconnect(connection);
                }
            }
            Event::Crash { node, life } => {
                if self.nodes[node].life == life {
                    self.crash_and_restart(node);
                }
            }
            Event::Start { node, life } => {
                if self.nodes[node].life == life {
                    self.start(node);
                }
            }
        }
    }

    /// Returns true if an event is to be handled now. An event for an earlier life or a stopped
    /// node is dropped. An event for a paused node is scheduled again, after the pause.
    fn is_for_now(&mut self, node: usize, life: u32, event: impl FnOnce() -> Event) -> bool {
        let at = &self.nodes[node];
        if at.life != life || !at.running {
            return false;
        }
        let paused_until_us = at.paused_until_us;
        if paused_until_us > self.now_us {
            // The order of events after a pause is random.
            let later_us = paused_until_us + self.schedule.u64(1..300);
            self.schedule(later_us, event());
            return false;
        }
        true
    }

    fn tick(&mut self, node: usize, life: u32) {
        if !self.is_for_now(node, life, || Event::Tick { node, life }) {
            return;
        }
        for slot in 0..self.nodes[node].shards.len() {
            self.nodes[node].shards[slot].arrived.push(Input::Tick);
            self.turn_soon(node, slot);
        }
        self.schedule(self.now_us + TICK_US, Event::Tick { node, life });
    }

    /// Schedules a turn of a shard soon, unless one is scheduled or in progress.
    fn turn_soon(&mut self, node: usize, slot: usize) {
        let at = &mut self.nodes[node];
        if !at.shards[slot].turn_is_due && at.shards[slot].turn.is_none() {
            at.shards[slot].turn_is_due = true;
            let life = at.life;
            let due_us = self.now_us + self.schedule.u64(5..150);
            self.schedule(due_us, Event::Turn { node, slot, life });
        }
    }

    fn input(&mut self, to: PeerAddress, input: Input) {
        let (node, slot) = (usize::from(to.node.0), usize::from(to.shard.0));
        if self.nodes[node].running {
            self.nodes[node].shards[slot].arrived.push(input);
            self.turn_soon(node, slot);
        }
    }

    fn arrive(&mut self, from: PeerAddress, to: PeerAddress, message: PeerMessage) {
        self.record.mix(u64::from(from.node.0) << 16 | u64::from(to.node.0));
        if !matches!(message.body, PeerBody::Hello(_)) {
            self.record.line(self.now_us, || format!("{to} gets from {from}: {message:?}"));
        }
        self.input(to, Input::Peer { from, message });
    }

    fn turn(&mut self, node: usize, slot: usize, life: u32) {
        if !self.is_for_now(node, life, || Event::Turn { node, slot, life }) {
            return;
        }
        let now = self.nodes[node].now(self.now_us);
        let is_full = self.now_us < self.nodes[node].full_disk_until_us;
        let stop_us = self.stop_us();
        let paused_until_us = self.nodes[node].paused_until_us;
        let waking = paused_until_us > 0 && self.now_us < paused_until_us + WAKING_US;
        let place = &mut self.nodes[node].shards[slot];
        let (mut inputs, now) = match place.stopped.take() {
            None => (std::mem::take(&mut place.arrived), now),
            Some(StoppedTurn { inputs, began }) if self.parameters.monotonic_first => {
                (inputs, Now { monotonic_us: began.monotonic_us, ..now })
            }
            Some(StoppedTurn { inputs, began }) => (inputs, Now { wall: began.wall, ..now }),
        };
        if let Some(stop_us) = stop_us {
            place.stopped = Some(StoppedTurn { inputs, began: now });
            self.schedule(self.now_us + stop_us, Event::Turn { node, slot, life });
            return;
        }
        place.turn_is_due = false;
        if waking {
            // Connections are read in any order. A client's request may be processed before the
            // messages of a peer that arrived long before it.
            let (random, mut read) = (&mut self.schedule, BTreeMap::new());
            inputs.retain(|input| {
                let connection = match input {
                    Input::Peer { from, .. } => Some((Some(*from), ConnectionId(0))),
                    Input::Request { connection, .. } => Some((None, *connection)),
                    _ => None,
                };
                let mut is_read =
                    |connection| *read.entry(connection).or_insert_with(|| random.bool());
                let later = connection.is_some_and(|connection| !is_read(connection));
                if later {
                    place.arrived.push(input.clone());
                }
                !later
            });
        }
        let Some(runtime) = &mut place.runtime else { return };
        runtime.log_mut().set_disk_full(is_full);
        inputs.into_iter().for_each(|input| place.inbox.push(input));
        let applied = turn_cost::applied(runtime.shard());
        let effects = runtime.turn(&mut place.inbox, now);
        let applied = turn_cost::applied(runtime.shard()).saturating_sub(applied);
        let takes_us = turn_cost::turn_us(applied, &effects, self.parameters.slowness);
        self.longest_turn_us = self.longest_turn_us.max(takes_us);
        let at = place.at;
        self.record.mix(self.now_us);
        self.record.mix(effects.appends.len() as u64 ^ (effects.sends.len() as u64) << 20);
        let checked = self.invariants.after_turn(at, runtime.shard(), now);
        self.violation = checked.err();
        place.turn = Some(effects);
        let turn_us = self.turn_us() + takes_us;
        self.schedule(self.now_us + turn_us, Event::EndOfTurn { node, slot, life });
    }

    /// Returns for how long a turn is stopped between the readings of its two clocks, or `None`.
    fn stop_us(&mut self) -> Option<u64> {
        let stops = self.now_us < self.parameters.fault_us
            && self.parameters.faults.contains(&FaultKind::Pause)
            && self.schedule.u32(0..self.parameters.stopped_turns) == 0;
        stops.then(|| self.schedule.u64(1..3_000_000))
    }

    /// Returns how long a turn takes beside its work: less than 50 us for most turns. The effects
    /// of a turn are carried out when it ends, and the node may crash or pause before that.
    fn turn_us(&mut self) -> u64 {
        if self.schedule.u8(0..16) > 0 {
            self.schedule.u64(0..50)
        } else {
            self.schedule.u64(0..=self.parameters.turn_us)
        }
    }

    fn end_of_turn(&mut self, node: usize, slot: usize, life: u32) {
        if !self.is_for_now(node, life, || Event::EndOfTurn { node, slot, life }) {
            return;
        }
        let place = &mut self.nodes[node].shards[slot];
        let mut effects = place.turn.take().expect("a turn was in progress");
        if !self.write(node, slot, std::mem::take(&mut effects.appends)) {
            return;
        }
        self.carry_out(node, slot, effects);
        let at = &mut self.nodes[node];
        let now_us = at.now(self.now_us).monotonic_us;
        if let Some(runtime) = &mut at.shards[slot].runtime {
            // Whether the disk has room shows in the next turn.
            let _ = runtime.maintain(now_us);
        }
        if self.has_drained(node) {
            return self.stop_drained(node);
        }
        let place = &self.nodes[node].shards[slot];
        if !place.arrived.is_empty() || !place.inbox.is_empty() {
            self.turn_soon(node, slot);
        }
    }

    /// Writes to the log of a shard, and begins to sync it. Returns false if the log is full, which
    /// is a violation: the node would have to stop.
    fn write(&mut self, node: usize, slot: usize, appends: Vec<(RangeId, Append)>) -> bool {
        let interrupted = !appends.is_empty() && self.schedule.u8(0..32) == 0;
        let place = &mut self.nodes[node].shards[slot];
        let runtime = place.runtime.as_mut().expect("its turn has ended");
        if interrupted {
            let (writes, tries) = (self.schedule.usize(0..appends.len()), self.schedule.u8(1..20));
            runtime.log_mut().interrupt(writes, tries);
        }
        for (range, append) in &appends {
            self.record.line(self.now_us, || format!("{} writes {range} {append:?}", place.at));
        }
        let written = runtime.write(appends);
        if let Some(us) = runtime.backlog_due_us() {
            let life = self.nodes[node].life;
            self.schedule(self.now_us + us, Event::Wake { node, slot, life });
        }
        self.sync(node, slot);
        if let Err(error) = written {
            let detail = format!("{}: {error}", self.nodes[node].shards[slot].at);
            let invariant = "a log keeps room for what must be written";
            self.violation.get_or_insert(Violation { invariant, detail });
            return false;
        }
        true
    }

    fn carry_out(&mut self, node: usize, slot: usize, effects: ShardEffects) {
        // The simulated network has no connections between nodes.
        let ShardEffects { sends, replies, installs, wake_after_us, .. } = effects;
        if let Some(us) = wake_after_us {
            let life = self.nodes[node].life;
            self.schedule(self.now_us + us, Event::Wake { node, slot, life });
        }
        let from = self.nodes[node].shards[slot].at;
        let now_us = self.now_us;
        for (to, message) in sends {
            let mut deliveries = std::mem::take(&mut self.deliveries);
            self.network.deliveries(from.node, to.node, &mut deliveries);
            if self.network.recorded == Some((from.node, to.node)) {
                self.recorded.push((from, to, message.clone()));
            }
            let message = through_codec(&message);
            for delay_us in deliveries.drain(..) {
                let message = Box::new(message.clone());
                self.schedule(now_us + delay_us, Event::Peer { from, to, message });
            }
            self.deliveries = deliveries;
        }
        for (connection, response) in replies {
            self.record.line(now_us, || format!("{from} answers {connection:?}: {response:?}"));
            let response = Box::new(through_codec(&response));
            match self.network.client_delay_us(from.node, ClientLink::Replies) {
                Some(us) => self.schedule(now_us + us, Event::Reply { connection, response }),
                None => self.break_later(connection),
            }
        }
        for descriptor in installs {
            self.install(node, &descriptor);
        }
    }

    fn install(&mut self, node: usize, descriptor: &RangeDescriptor) {
        for slot in 0..self.nodes[node].shards.len() {
            self.nodes[node].shards[slot].arrived.push(Input::Install(descriptor.clone()));
            self.turn_soon(node, slot);
        }
    }

    /// Begins a sync of a shard's log, unless syncs are held back, one is in flight, or everything
    /// is synced.
    pub(crate) fn sync(&mut self, node: usize, slot: usize) {
        let at = &mut self.nodes[node];
        let (life, slow) = (at.life, at.slow_disk_until_us > self.now_us);
        let place = &mut at.shards[slot];
        if place.syncs_held || place.syncing.is_some() {
            return;
        }
        place.syncing = place.runtime.as_ref().and_then(Runtime::sync_plan);
        if place.syncing.is_none() {
            return;
        }
        let sync_us = self.parameters.sync_us;
        let takes_us = if slow {
            self.disk_random.u64(50_000..2_000_000)
        } else {
            self.disk_random.u64(sync_us..=3 * sync_us)
        };
        self.schedule(self.now_us + takes_us, Event::Synced { node, slot, life });
    }

    fn synced(&mut self, node: usize, slot: usize, life: u32) {
        if !self.is_for_now(node, life, || Event::Synced { node, slot, life }) {
            return;
        }
        if self.nodes[node].failing_disk {
            // As in production: a failed sync ends the process.
            return self.crash_and_restart(node);
        }
        let place = &mut self.nodes[node].shards[slot];
        if let (Some(sync), Some(runtime)) = (place.syncing.take(), &mut place.runtime) {
            let (to, durable) = (place.at, runtime.synced(&sync));
            self.input(to, durable);
        }
        self.sync(node, slot);
        if self.nodes[node].shards[slot].syncing.is_some() && self.crashes_between_syncs() {
            let due_us = self.now_us + self.schedule.u64(0..=2 * self.parameters.sync_us);
            self.schedule(due_us, Event::Crash { node, life });
        }
    }

    /// Returns true if a node crashes after a sync, while the next one is in flight. Then it has
    /// acted on the first, and may lose everything after it.
    fn crashes_between_syncs(&mut self) -> bool {
        self.now_us < self.parameters.fault_us
            && self.parameters.faults.contains(&FaultKind::Crash)
            && self.schedule.u8(0..128) == 0
    }

    /// Returns a shard, or `None` if its node is down.
    pub fn shard(&self, at: PeerAddress) -> Option<&Shard> {
        self.nodes[usize::from(at.node.0)].shards[usize::from(at.shard.0)].shard()
    }

    /// Returns all running shards with their addresses.
    pub fn shards(&self) -> impl Iterator<Item = (PeerAddress, &Shard)> {
        let slots = self.nodes.iter().flat_map(|node| &node.shards);
        slots.filter_map(|slot| Some((slot.at, slot.shard()?)))
    }

    /// Returns how long the work of the longest turn took so far, in microseconds.
    pub fn longest_turn_us(&self) -> u64 {
        self.longest_turn_us
    }

    /// Measures the longest turn from now on.
    pub fn forget_longest_turn(&mut self) {
        self.longest_turn_us = 0;
    }

    /// Records the messages from one node to another from now on. They are delivered as well.
    pub fn record_messages(&mut self, from: u16, to: u16) {
        self.network.recorded = Some((NodeId(from), NodeId(to)));
    }

    /// Delivers the recorded messages once more, at once, and stops recording.
    pub fn replay_messages(&mut self) {
        for (from, to, message) in std::mem::take(&mut self.recorded) {
            let message = Box::new(message);
            self.schedule(self.now_us + 1, Event::Peer { from, to, message });
        }
        self.network.recorded = None;
    }
}

/// Encodes and decodes a message, and asserts that the result equals the message.
fn through_codec<M: Encode + Decode + PartialEq + Debug>(message: &M) -> M {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes);
    let arrived = decode_exact(bytes.freeze()).expect("what is sent can be read");
    assert_eq!(arrived, *message, "a message arrived as another one");
    arrived
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}
