//! One run: faults first, and nothing unsafe may happen; then peace, and everything must work.

use std::{
    cell::RefCell,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

use bytes::Bytes;
use palisade_shard::ConnectionId;
use palisade_wire::{
    Mode, Operation, Outcome, PeerAddress, RangeId, ReadKind, Request, Role, SessionId, TxnId,
};

use crate::{
    Parameters, Trace, Violation, World,
    clients::{ClientSend, put},
    faults::Faults,
    world::FIRST_OWN_CONNECTION,
};

/// How long the clients go on after the faults have ended.
const AFTERGLOW_US: u64 = 2_000_000;

/// Between two looks at whether everything works again.
const LOOK_US: u64 = 250_000;

/// A run in which everything held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What it was drawn from.
    pub seed: u64,
    /// Of everything that happened: the same for the same seed.
    pub hash: u64,
    /// Events handled.
    pub events: u64,
    /// Virtual time that passed, in microseconds.
    pub simulated_us: u64,
    /// Operations of clients.
    pub operations: u64,
    /// Nodes that died.
    pub crashes: u64,
    /// Leaderships that began.
    pub elections: u64,
}

/// A run in which something did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What it was drawn from.
    pub parameters: Parameters,
    /// What did not hold.
    pub violation: Violation,
    /// When, in microseconds of virtual time.
    pub at_us: u64,
    /// What happened last, line by line.
    pub trace: Vec<String>,
}

/// Runs a cluster through its faults and back to health.
pub fn simulate(parameters: &Parameters, trace: Trace) -> Result<Summary, Box<Failure>> {
    silence_panics();
    let mut world = World::new(parameters.clone(), trace);
    let run = panic::catch_unwind(AssertUnwindSafe(|| run(&mut world)));
    let violation = match run {
        Ok(Ok(())) => {
            return Ok(Summary {
                seed: parameters.seed,
                hash: world.record.hash(),
                events: world.record.events,
                simulated_us: world.now_us,
                operations: world.clients.operations(),
                crashes: world.crashes,
                elections: world.invariants.elections(),
            });
        }
        Ok(Err(violation)) => violation,
        Err(_) => Violation {
            invariant: "assertions hold",
            detail: LAST_PANIC.with_borrow_mut(std::mem::take),
        },
    };
    Err(Box::new(Failure {
        parameters: parameters.clone(),
        violation,
        at_us: world.now_us,
        trace: world.record.take_lines(),
    }))
}

/// Runs a seed that failed once more, and writes down what happens.
pub fn explain(parameters: &Parameters, lines: usize) -> Option<Box<Failure>> {
    simulate(parameters, Trace::Last(lines)).err()
}

fn run(world: &mut World) -> Result<(), Violation> {
    let parameters = world.parameters.clone();
    let mut faults = Faults::new(&parameters);
    faults.torment(world);
    heal(world, &mut faults)?;
    for (at, shard) in world
        .nodes
        .iter()
        .flat_map(|node| &node.shards)
        .filter_map(|slot| Some((slot.at, slot.shard.as_ref()?)))
    {
        for view in shard.views() {
            world.record.mix(u64::from(at.node.0) ^ view.commit_index() << 8);
            world.record.mix(u64::from(view.digest()));
        }
    }
    world.invariants.at_end(world.clients.history(), world.clients.timestamped())
}

/// The faults are over: within a bound everything that can work must.
fn heal(world: &mut World, faults: &mut Faults) -> Result<(), Violation> {
    world.network.calm();
    faults.make_sure(world, u64::MAX);
    for node in 0..world.nodes.len() {
        let at = &mut world.nodes[node];
        at.paused_until_us = at.paused_until_us.min(world.now_us);
        (at.slow_disk_until_us, at.filling_us, at.failing_disk) = (0, (0, 0), false);
        for slot in 0..world.nodes[node].shards.len() {
            world.nodes[node].shards[slot].syncs_held = false;
            world.sync(node, slot);
        }
        if !world.nodes[node].lost {
            world.start(node);
        }
    }
    let deadline_us = world.now_us + world.parameters.heal_us;
    let stop_us = world.now_us + AFTERGLOW_US;
    let mut probes = Probes::new(world);
    let mut stopped = false;
    loop {
        faults.operator.act(world);
        world.run_for(LOOK_US);
        if let Some(violation) = world.violation.take() {
            return Err(violation);
        }
        if !stopped && world.now_us >= stop_us {
            world.clients.stop(world.now_us);
            stopped = true;
        }
        if !stopped || faults.operator.is_at_work() {
            probes.hurry(world, deadline_us)?;
            continue;
        }
        let Some(missing) = probes.advance(world).or_else(|| disagreement(world)) else {
            return Ok(());
        };
        if world.now_us >= deadline_us {
            let invariant = "a healed cluster works again";
            return Err(Violation { invariant, detail: missing });
        }
    }
}

/// Asks every range for a write and a read.
struct Probes {
    pending: Vec<Probe>,
}

struct Probe {
    range: RangeId,
    key: Bytes,
    written: bool,
    connection: ConnectionId,
}

impl Probes {
    fn new(world: &World) -> Self {
        let ranges = world.ranges.ranges()[1..].iter();
        let alive = ranges.filter(|descriptor| can_work(world, descriptor.range));
        let pending = alive.map(|descriptor| {
            let mut key = descriptor.start.clone();
            key.extend_from_slice(b"\0probe");
            Probe {
                range: descriptor.range,
                key: key.into(),
                written: false,
                connection: ConnectionId(FIRST_OWN_CONNECTION + 1 + u64::from(descriptor.range.0)),
            }
        });
        Self { pending: pending.collect() }
    }

    fn hurry(&self, world: &World, deadline_us: u64) -> Result<(), Violation> {
        if world.now_us < deadline_us {
            return Ok(());
        }
        let invariant = "a healed cluster works again";
        Err(Violation { invariant, detail: "a chain is not repaired".to_owned() })
    }

    /// Takes in answers and asks again; tells what is missing.
    fn advance(&mut self, world: &mut World) -> Option<String> {
        let answers = std::mem::take(&mut world.answers);
        self.pending.retain_mut(|probe| {
            for (_, response) in answers.iter().filter(|(to, _)| *to == probe.connection) {
                match response.outcome {
                    Outcome::Committed { .. } => probe.written = true,
                    Outcome::Value { value: Some(_), .. } if probe.written => return false,
                    _ => {}
                }
            }
            true
        });
        let mut sends = Vec::new();
        let mut missing = None;
        for probe in &self.pending {
            let wanted = if probe.written {
                [Role::Leader, Role::Tail, Role::Single]
            } else {
                [Role::Leader, Role::Head, Role::Single]
            };
            let views =
                world.shards().filter_map(|(at, shard)| Some((at, shard.view(probe.range)?)));
            let serving = views.filter(|(_, view)| wanted.contains(&view.role()));
            let Some((to, _)) = serving.max_by_key(|(_, view)| view.term()) else {
                missing = Some(format!("nobody serves {}", probe.range));
                continue;
            };
            missing = Some(format!("{} does not answer for {}", to, probe.range));
            let (range, key) = (probe.range, probe.key.clone());
            let operation = if probe.written {
                Operation::Get { range, key, kind: ReadKind::LatestOfKey }
            } else {
                let txn = TxnId { session: SessionId(u64::MAX), sequence: 1 };
                let value = Bytes::from_static(&[0; 8]);
                put(range, txn, world.in_a_minute(), key, value)
            };
            let request = Request { request_id: 1, operation };
            sends.push(ClientSend { to, connection: probe.connection, request });
        }
        world.send_requests(sends);
        missing
    }
}

/// Whether a range has not lost so many of its voters that nothing could bring it back: it may have
/// had few when a node was lost.
fn can_work(world: &World, range: RangeId) -> bool {
    let is_lost = |at: &PeerAddress| world.nodes[usize::from(at.node.0)].lost;
    let views = world.shards().filter(|(at, _)| !is_lost(at));
    let mut views = views.filter_map(|(_, shard)| shard.view(range));
    // A configuration that is not committed yet may have to be, before there can be another.
    views.all(|view| {
        let decides = |half: &Vec<PeerAddress>| {
            2 * half.iter().filter(|voter| is_lost(voter)).count() < half.len()
        };
        view.mode() == Mode::Chain || view.electorates().iter().all(decides)
    })
}

/// Replicas that should be in the same state, and are not.
fn disagreement(world: &World) -> Option<String> {
    for descriptor in world.ranges.ranges() {
        let range = descriptor.range;
        if !can_work(world, range) {
            continue;
        }
        let views: Vec<_> = world
            .shards()
            .filter_map(|(at, shard)| Some((at, shard.view(range)?)))
            .filter(|(at, _)| !world.nodes[usize::from(at.node.0)].lost)
            .collect();
        let latest = views.iter().max_by_key(|(_, view)| (view.term(), view.commit_index()));
        let Some((_, latest)) = latest else { continue };
        let members = [latest.voters(), latest.learners()].concat();
        for (at, view) in views.iter().filter(|(at, _)| members.contains(at)) {
            let (commit_index, digest) = (view.commit_index(), view.digest());
            let same = (commit_index, digest) == (latest.commit_index(), latest.digest());
            let settled = commit_index == view.last_index() || descriptor.mode == Mode::Raft;
            if !same || !settled || !view.is_ready() {
                return Some(format!(
                    "{range}: {at} is {:?} at {commit_index} of {}, ready {}, while others are at {}",
                    view.role(),
                    view.last_index(),
                    view.is_ready(),
                    latest.commit_index()
                ));
            }
        }
    }
    None
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of a run are its result, not something to print.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            LAST_PANIC.with_borrow_mut(|last| *last = info.to_string());
        }));
    });
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameters, violation, at_us, trace } = self;
        for line in trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{parameters}")?;
        write!(f, "after {} ms of virtual time, broken: {violation}", at_us / 1_000)
    }
}
