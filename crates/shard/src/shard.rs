//! The composition: requests and messages to replicas, their writes to one log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use palisade_clock::{Hlc, Now};
use palisade_control::{Change, NodeAddress, RangeDescriptor, RangeMap, Topology};
use palisade_replication::{After, Append, RecoveredGroup};
use palisade_txn::CommitCommand;
use palisade_wire::{
    Operation, Outcome, PeerAddress, RangeId, Rejection, Request, Response, ShardStatus, WireError,
};

use crate::{
    PeerBody, PeerMessage, TestFault,
    group::Group,
    replica::{Asker, Outbox, Replica},
    state_machine::StateMachine,
};

/// Bytes that the log keeps free for what replication itself must write when writes of clients are
/// refused for want of room.
const LOG_RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// A client's connection to this shard, as the driver names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Where it is.
    pub at: PeerAddress,
    /// The cluster.
    pub cluster_id: u64,
    /// Where clients connect, for the range map that they are given.
    pub nodes: Vec<NodeAddress>,
    /// The cluster's first range map.
    pub ranges: RangeMap,
    /// How far ahead a remote clock may be, in microseconds.
    pub max_offset_us: u64,
    /// Decides election timeouts and the like.
    pub random_seed: u64,
    /// A promise to break, in tests.
    pub fault: Option<TestFault>,
}

/// How the log stands, as its driver knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogCounters {
    /// Syncs since the start.
    pub syncs: u64,
    /// Bytes appended since the start.
    pub bytes: u64,
    /// Bytes that it may still grow by.
    pub left_bytes: u64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client asks.
    Request {
        /// On which connection.
        connection: ConnectionId,
        /// What.
        request: Request,
    },
    /// A peer sent a message.
    Peer {
        /// Who.
        from: PeerAddress,
        /// What.
        message: PeerMessage,
    },
    /// The first so many writes of this shard, since its start, are durable.
    Durable {
        /// How many.
        appends: u64,
    },
    /// A range has changed its replicas.
    Install(RangeDescriptor),
    /// Time has passed.
    Tick,
}

/// What a turn asks the driver to do: first the writes, in order; the rest in any order.
#[derive(Debug, Default)]
pub struct ShardEffects {
    /// Writes to the log.
    pub appends: Vec<(RangeId, Append)>,
    /// Messages that may leave now.
    pub sends: Vec<(PeerAddress, PeerMessage)>,
    /// Answers.
    pub replies: Vec<(ConnectionId, Response)>,
    /// Changes of the range map, for every shard of this node, this one included.
    pub installs: Vec<RangeDescriptor>,
}

/// One core's share of a node.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    hlc: Hlc,
    replicas: BTreeMap<RangeId, Replica>,
    /// Replicas that something happened to in this turn.
    touched: BTreeSet<RangeId>,
    /// Writes asked for since the start, and how many of them are durable.
    appends: u64,
    durable_appends: u64,
    /// Messages that wait for the first so many writes, roughly in that order: one that could go
    /// may stand behind one that can't, but not for longer than a sync.
    held: VecDeque<(u64, PeerAddress, RangeId, PeerBody)>,
    log: LogCounters,
    draining: bool,
    requests: u64,
    clock_rejections: u64,
    effects: ShardEffects,
}

impl Shard {
    /// A shard with what its log held. Only the ranges with a replica here are run.
    pub fn new(
        config: ShardConfig,
        mut recovered: BTreeMap<RangeId, RecoveredGroup>,
        now: Now,
    ) -> Result<Self, WireError> {
        let mut hlc = Hlc::new(config.max_offset_us);
        let mut replicas = BTreeMap::new();
        let mut seeds = fastrand::Rng::with_seed(config.random_seed);
        for descriptor in config.ranges.ranges() {
            if !descriptor.members.contains(&config.at) {
                continue;
            }
            let range = descriptor.range;
            let recovered = recovered.remove(&range).unwrap_or_default();
            let state = if range == RangeId::CONTROL {
                StateMachine::Control(config.ranges.clone())
            } else {
                recover_clock(&recovered, &mut hlc)?;
                StateMachine::keys()
            };
            let seed = seeds.u64(..);
            let group = Group::new(config.at, descriptor, recovered, seed, now.monotonic_us)?;
            replicas.insert(range, Replica::new(descriptor.clone(), group, state, config.fault));
        }
        Ok(Self {
            config,
            hlc,
            replicas,
            touched: BTreeSet::new(),
            appends: 0,
            durable_appends: 0,
            held: VecDeque::new(),
            log: LogCounters { left_bytes: u64::MAX, ..LogCounters::default() },
            draining: false,
            requests: 0,
            clock_rejections: 0,
            effects: ShardEffects::default(),
        })
    }

    /// Says how the log stands.
    pub fn set_log_counters(&mut self, log: LogCounters) {
        self.log = log;
    }

    /// Refuses every new request from now on; what is under way is still answered.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.replicas.values().all(Replica::is_idle)
    }

    /// Takes in one input. What it asks for comes with [`Shard::end_turn`].
    pub fn step(&mut self, input: Input, now: Now) {
        match input {
            Input::Request { connection, request } => {
                let Request { request_id, operation } = request;
                self.requests += 1;
                let asker = Asker { connection, request_id };
                if let Err(outcome) = self.serve(asker, operation, now) {
                    self.effects.reply(asker, outcome);
                }
            }
            Input::Peer { from, message } => self.receive(from, message, now),
            Input::Durable { appends } => self.durable(appends),
            Input::Install(descriptor) => {
                self.config.ranges.install(&descriptor);
                if let Some(replica) = self.replicas.get_mut(&descriptor.range) {
                    replica.install(&descriptor);
                    self.touched.insert(descriptor.range);
                }
            }
            Input::Tick => {
                for (range, replica) in &mut self.replicas {
                    replica.group.tick(now.monotonic_us);
                    self.touched.insert(*range);
                }
            }
        }
    }

    /// Ends a turn: everything that its inputs asked for.
    pub fn end_turn(&mut self, now: Now) -> ShardEffects {
        let mut out = std::mem::take(&mut self.effects);
        let mut sends = Vec::new();
        for range in std::mem::take(&mut self.touched) {
            let replica = self.replicas.get_mut(&range).expect("only replicas are touched");
            let Outbox { appends, sends: replica_sends, written } =
                replica.flush(now, &mut self.hlc, self.appends, &mut out);
            self.appends += appends.len() as u64;
            out.appends.extend(appends.into_iter().map(|append| (range, append)));
            for send in replica_sends {
                match send.after {
                    After::Appends if self.durable_appends < written => {
                        self.held.push_back((written, send.to, range, send.message));
                    }
                    After::Appends | After::Nothing => sends.push((send.to, range, send.message)),
                }
            }
        }
        while self.held.front().is_some_and(|(appends, ..)| *appends <= self.durable_appends) {
            let (_, to, range, body) = self.held.pop_front().expect("it was looked at just now");
            sends.push((to, range, body));
        }
        if !sends.is_empty() {
            let sent_ts = self.hlc.tick(now.wall);
            let message = |(to, range, body)| (to, PeerMessage { range, sent_ts, body });
            out.sends.extend(sends.into_iter().map(message));
        }
        out
    }

    /// The state of the shard.
    pub fn status(&self) -> ShardStatus {
        let ranges =
            self.replicas.values().map(|replica| replica.group.status(&replica.descriptor));
        ShardStatus {
            at: self.config.at,
            log_syncs: self.log.syncs,
            log_entries: self.appends,
            log_bytes: self.log.bytes,
            log_left_bytes: self.log.left_bytes,
            requests: self.requests,
            clock_rejections: self.clock_rejections,
            ranges: ranges.collect(),
        }
    }

    /// Carries out a request, or says at once what becomes of it.
    fn serve(&mut self, asker: Asker, operation: Operation, now: Now) -> Result<(), Outcome> {
        if self.draining && !matches!(operation, Operation::Status) {
            return Err(Outcome::Rejected(Rejection::Draining));
        }
        match operation {
            Operation::Put { range, command } => {
                self.check_log_room()?;
                let replica = touch(&mut self.replicas, &mut self.touched, range)?;
                replica.put(asker, command, &mut self.hlc, now)
            }
            Operation::Get { range, key } => {
                touch(&mut self.replicas, &mut self.touched, range)?.get(asker, &key)
            }
            Operation::Control(change) => {
                let parsed = Change::from_bytes(&change);
                parsed.map_err(|_| Outcome::Rejected(Rejection::InvalidChange))?;
                self.check_log_room()?;
                let replica = touch(&mut self.replicas, &mut self.touched, RangeId::CONTROL)?;
                replica.propose(asker, || change)
            }
            Operation::RangeMap => {
                let topology = Topology {
                    cluster_id: self.config.cluster_id,
                    nodes: self.config.nodes.clone(),
                    ranges: self.config.ranges.clone(),
                };
                Err(Outcome::RangeMap(topology.to_bytes()))
            }
            Operation::Status => Err(Outcome::Status(self.status().to_bytes())),
        }
    }

    fn check_log_room(&self) -> Result<(), Outcome> {
        if self.log.left_bytes < LOG_RESERVE_BYTES {
            return Err(Outcome::Rejected(Rejection::LogFull));
        }
        Ok(())
    }

    fn receive(&mut self, from: PeerAddress, message: PeerMessage, now: Now) {
        let PeerMessage { range, sent_ts, body } = message;
        if self.hlc.observe(sent_ts, now.wall).is_err() {
            self.clock_rejections += 1;
            return;
        }
        if let Some(replica) = self.replicas.get_mut(&range) {
            replica.group.receive(from, body, now.monotonic_us);
            self.touched.insert(range);
        }
    }

    fn durable(&mut self, appends: u64) {
        assert!(appends <= self.appends, "more writes are durable than there were");
        self.durable_appends = self.durable_appends.max(appends);
        for (range, replica) in &mut self.replicas {
            if replica.durable(appends) {
                self.touched.insert(*range);
            }
        }
    }
}

fn touch<'a>(
    replicas: &'a mut BTreeMap<RangeId, Replica>,
    touched: &mut BTreeSet<RangeId>,
    range: RangeId,
) -> Result<&'a mut Replica, Outcome> {
    let replica = replicas.get_mut(&range).ok_or(Outcome::Rejected(Rejection::NotHere))?;
    touched.insert(range);
    Ok(replica)
}

/// The clock must not go back behind anything that this shard ordered or accepted.
fn recover_clock(recovered: &RecoveredGroup, hlc: &mut Hlc) -> Result<(), WireError> {
    for entry in recovered.entries.iter().filter(|entry| !entry.payload.is_empty()) {
        hlc.recover(CommitCommand::from_payload(entry.payload.clone())?.proposed_ts);
    }
    Ok(())
}
