//! One run: first faults, during which nothing unsafe may happen; then none, and the cluster must
//! work again.

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

/// How long the clients continue after the faults have ended.
const AFTERGLOW_US: u64 = 2_000_000;

/// Interval between two checks that everything works again.
const LOOK_US: u64 = 250_000;

/// A run without a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The seed of the run.
    pub seed: u64,
    /// A hash over the events of the run: the same seed gives the same hash.
    pub hash: u64,
    /// Number of events handled.
    pub events: u64,
    /// Virtual time of the run, in microseconds.
    pub simulated_us: u64,
    /// Number of client operations that ended.
    pub operations: u64,
    /// Number of crashes of nodes.
    pub crashes: u64,
    /// Number of Raft terms that had a leader, over all ranges.
    pub elections: u64,
}

/// A run with a violation, or with a panic.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The parameters of the run.
    pub parameters: Parameters,
    /// The invariant that was violated first.
    pub violation: Violation,
    /// When it was violated, in microseconds of virtual time.
    pub at_us: u64,
    /// The last lines of the trace.
    pub trace: Vec<String>,
}

/// Runs a cluster with its faults, then without, and checks that it works again.
///
/// Sets a process-wide panic hook that prints nothing: a panic in a run is a [`Failure`].
///
/// # Errors
/// The first violation, with the trace. The same parameters fail again.
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

/// Repeats a failed run with a trace of its last `lines` lines. Returns `None` if it succeeds.
pub fn explain(parameters: &Parameters, lines: usize) -> Option<Box<Failure>> {
    simulate(parameters, Trace::Last(lines)).err()
}

fn run(world: &mut World) -> Result<(), Violation> {
    let parameters = world.parameters.clone();
    let mut faults = Faults::new(&parameters);
    faults.inject(world);
    heal(world, &mut faults)?;
    for (at, shard) in world
        .nodes
        .iter()
        .flat_map(|node| &node.shards)
        .filter_map(|slot| Some((slot.at, slot.shard()?)))
    {
        for view in shard.views() {
            world.record.mix(u64::from(at.node.0) ^ view.applied_index() << 8);
            world.record.mix(u64::from(view.digest()));
        }
    }
    world.invariants.at_end(world.clients.history(), world.clients.timestamped())
}

/// Ends the faults. Within a time bound, everything that can work must work again.
fn heal(world: &mut World, faults: &mut Faults) -> Result<(), Violation> {
    world.network.calm();
    faults.make_sure(world, u64::MAX);
    for node in 0..world.nodes.len() {
        let at = &mut world.nodes[node];
        at.paused_until_us = at.paused_until_us.min(world.now_us);
        (at.slow_disk_until_us, at.full_disk_until_us, at.failing_disk) = (0, 0, false);
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
            world.clients.stop(world.now_us)?;
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

/// Writes and reads one key of every range that can work, until each has succeeded.
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

    /// Takes in answers, and sends the requests of the remaining probes. Returns what is missing,
    /// or `None` if all probes have succeeded.
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
                missing = Some(format!("no replica serves {}", probe.range));
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
            let request = Request::new(1, operation);
            sends.push(ClientSend { to, connection: probe.connection, request, breaks: false });
        }
        world.send_requests(sends);
        missing
    }
}

/// Returns false if a range has lost so many voters that it cannot recover: it may have had few
/// voters when a node was lost.
fn can_work(world: &World, range: RangeId) -> bool {
    let is_lost = |at: &PeerAddress| world.nodes[usize::from(at.node.0)].lost;
    let views = world.shards().filter(|(at, _)| !is_lost(at));
    let mut views = views.filter_map(|(_, shard)| shard.view(range));
    // An uncommitted configuration may have to be committed before the next one, so all count.
    views.all(|view| {
        let decides = |half: &Vec<PeerAddress>| {
            2 * half.iter().filter(|voter| is_lost(voter)).count() < half.len()
        };
        view.mode() == Mode::Chain || view.electorates().iter().all(decides)
    })
}

/// Returns a description of a replica that should be in the same state as the latest one, and is
/// not.
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

/// Keeps panics from being printed: a panic is the result of its run.
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
