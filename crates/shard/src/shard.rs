//! The composition: requests and messages to replicas, their writes to one log.

mod messages;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
};

use bytes::Bytes;
use palisade_clock::{Hlc, Interval, Now, Timestamp, Voucher};
use palisade_control::{Bootstrap, NodeAddress, RangeDescriptor, RangeMap, ShapeChanged};
use palisade_replication::{After, Append, Context, PeerTiming, Peers};
use palisade_wire::{
    Admission as Admitted, Mode, PeerAddress, RangeId, Request, Response, ShardStatus, WireError,
};
use thiserror::Error;

use crate::{
    Hello, PeerBody, PeerMessage, Recovered, ReplicaView, TestFault,
    admission::Admission,
    commit_wait::CommitWait,
    early_reads::EarlyReads,
    protections::Protections,
    recovery::Surroundings,
    replay::SHARD_RECORD,
    replica::{Asker, Outbox, Replica},
};

/// Bytes that the log keeps free for what replication itself must write when writes of clients are
/// refused for want of room.
pub const LOG_RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// Likewise, entries and snapshots of peers are not taken in.
const PEER_RESERVE_BYTES: u64 = LOG_RESERVE_BYTES / 4 * 3;

/// Likewise, checkpoints wait. They have the last room that there is: only they make more.
const CHECKPOINT_RESERVE_BYTES: u64 = LOG_RESERVE_BYTES / 4;

/// Empty queues keep room for so many.
const MAX_IDLE_QUEUE: usize = 1024;

/// Bytes of checkpoints after which a turn writes no more of them.
const CHECKPOINT_BYTES_PER_TURN: usize = 512 * 1024;

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
    /// Its nodes, and where clients connect, for the range map that they are given.
    pub nodes: Vec<NodeAddress>,
    /// The cluster's first range map.
    pub ranges: RangeMap,
    /// What that was made from, unless this is a database that is no cluster's.
    pub shape: Option<Bootstrap>,
    /// How far ahead a remote clock may be, in microseconds; and how far this one may be wrong
    /// before nothing is served.
    pub max_offset_us: u64,
    /// Decides who stands for election first, and the like; and the shard's incarnation, if its
    /// log is new.
    pub random_seed: u64,
    /// A group's state is written as a checkpoint once its log has grown by this much.
    pub checkpoint_bytes: u64,
    /// About so many bytes make a part of a checkpoint or snapshot.
    pub snapshot_part_bytes: usize,
    /// Payload in one message of a Raft group, beyond its first entry, in bytes.
    pub max_message_bytes: usize,
    /// A promise to break, in tests.
    pub fault: Option<TestFault>,
}

/// Why a shard can't start with what its log held. Not retryable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShardError {
    /// The log holds a command that this build can't read.
    #[error("the log holds a command that this build cannot read: {0}")]
    Command(#[from] WireError),
    /// The cluster was created in another shape.
    #[error(transparent)]
    ShapeChanged(#[from] ShapeChanged),
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
    /// Another turn is due after so many microseconds, if nothing else brings one.
    pub wake_after_us: Option<u64>,
}

/// One core's share of a node.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    hlc: Hlc,
    /// How many changes the range map has seen.
    ranges_version: u64,
    random: fastrand::Rng,
    admission: Admission,
    peers: Peers,
    /// Each in its own place: the map's nodes are often half empty.
    replicas: BTreeMap<RangeId, Box<Replica>>,
    /// Replicas that something happened to in this turn.
    touched: BTreeSet<RangeId>,
    /// Replicas that must be told the time. The others are idle, and cost nothing.
    active: BTreeSet<RangeId>,
    was_admitted: bool,
    /// A peer whose cluster has another shape.
    other_shape: Option<PeerAddress>,
    /// Whether this turn had a tick, and with it a part of a checkpoint.
    ticked: bool,
    /// Whose checkpoint was written on last: the others get their turn first.
    last_checkpoint: RangeId,
    /// Writes asked for since the start, and how many of them are durable.
    appends: u64,
    durable_appends: u64,
    /// Whose writes are not durable yet, with how many of the shard's there were with them.
    unsynced: VecDeque<(u64, RangeId)>,
    /// Messages that wait for the first so many writes, roughly in that order: one that could go
    /// may stand behind one that can't, but not for longer than a sync.
    held: VecDeque<(u64, PeerAddress, PeerBody)>,
    /// Answers that wait for time to pass.
    commit_wait: CommitWait,
    /// Reads at timestamps that have not passed yet.
    early_reads: EarlyReads,
    /// Timestamps whose versions are kept.
    protections: Protections,
    log: LogCounters,
    draining: bool,
    requests: u64,
    clock_rejections: u64,
    voucher: Voucher,
    effects: ShardEffects,
    /// Messages of the shard itself, of this turn.
    hellos: Vec<(PeerAddress, PeerBody)>,
}

impl Shard {
    /// A shard with what its log held.
    ///
    /// # Errors
    ///
    /// [`ShardError`] if the log can't be read, or if it is of a cluster of another shape.
    pub fn new(config: ShardConfig, recovered: Recovered, now: Now) -> Result<Self, ShardError> {
        let Recovered { mut groups, shard } = recovered;
        let hlc = Hlc::new(config.max_offset_us);
        let mut random = fastrand::Rng::with_seed(config.random_seed);
        let others = config.nodes.iter().map(|node| node.node).filter(|n| *n != config.at.node);
        let others: Vec<_> =
            others.map(|node| PeerAddress { node, shard: config.at.shard }).collect();
        let trust_empty_log = config.fault == Some(TestFault::TrustEmptyLog);
        let shape = config.shape.as_ref().map_or(Bytes::new(), Bootstrap::to_bytes);
        let admission =
            Admission::new(shard, shape, random.u64(..), others.len(), trust_empty_log)?;
        if let Some(configured) = &config.shape {
            configured.check_unchanged(&Bootstrap::from_bytes(admission.shape())?)?;
        }
        let timing = PeerTiming::default();
        let peers = Peers::new(timing, admission.session(), others, now.monotonic_us);
        let surroundings = surroundings(&config, now);
        let mut replicas = BTreeMap::new();
        for descriptor in config.ranges.ranges() {
            let recovered = groups.remove(&descriptor.range);
            let added = recovered.is_some() && descriptor.mode == Mode::Raft;
            if descriptor.members.contains(&config.at) || added {
                let recovered = recovered.unwrap_or_default();
                let replica =
                    surroundings.replica(descriptor, &config.ranges, recovered, &mut random)?;
                replicas.insert(descriptor.range, Box::new(replica));
            }
        }
        Ok(Self {
            early_reads: EarlyReads::new(config.max_offset_us),
            protections: Protections::new(config.max_offset_us),
            config,
            hlc,
            ranges_version: 0,
            random,
            admission,
            peers,
            replicas,
            touched: BTreeSet::new(),
            active: BTreeSet::new(),
            was_admitted: false,
            other_shape: None,
            ticked: false,
            last_checkpoint: RangeId::CONTROL,
            appends: 0,
            durable_appends: 0,
            unsynced: VecDeque::new(),
            held: VecDeque::new(),
            commit_wait: CommitWait::default(),
            log: LogCounters { left_bytes: u64::MAX, ..LogCounters::default() },
            draining: false,
            requests: 0,
            clock_rejections: 0,
            voucher: Voucher::default(),
            effects: ShardEffects::default(),
            hellos: Vec::new(),
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

    /// The last timestamp of a commit that the log held at the start.
    pub fn logged_ts(&self) -> Timestamp {
        self.replicas.values().map(|replica| replica.logged_ts).max().unwrap_or_default()
    }

    /// Whether nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.commit_wait.is_empty()
            && self.early_reads.is_empty()
            && self.replicas.values().all(|replica| replica.is_idle())
    }

    /// Whether the shard's replicas take part.
    pub fn is_admitted(&self) -> bool {
        self.admission.is_admitted()
    }

    /// Whether the shard's replicas never will take part: peers know another log at its address.
    pub fn is_refused(&self) -> bool {
        self.admission.stage() == Admitted::Refused
    }

    /// A peer that was started with another shape of the cluster than this shard. Its heartbeats
    /// are dropped, so neither counts on the other.
    pub fn peer_of_other_shape(&self) -> Option<PeerAddress> {
        self.other_shape
    }

    /// A replica, as an observer may see it.
    pub fn view(&self, range: RangeId) -> Option<ReplicaView<'_>> {
        self.replicas.get(&range).map(|replica| ReplicaView::new(replica))
    }

    /// All replicas, by range.
    pub fn views(&self) -> impl Iterator<Item = ReplicaView<'_>> {
        self.replicas.values().map(|replica| ReplicaView::new(replica))
    }

    /// Whether a replica answers reads without asking the others, if it is up to date.
    pub fn is_leased(&self, range: RangeId, now: Now) -> bool {
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        self.replicas.get(&range).is_some_and(|replica| replica.group.is_leased(cx))
    }

    /// About how many bytes of log it takes to write everything anew.
    pub fn state_bytes(&self) -> u64 {
        self.replicas.values().map(|replica| replica.state_bytes()).sum()
    }

    /// Has groups write anew whatever they have in the oldest part of the log, so that it can be
    /// cut; returns those that are unknown here, of which nothing is needed any more.
    pub fn compact(&mut self, groups: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut unknown = Vec::new();
        for group in groups {
            let range = RangeId(group);
            if range == SHARD_RECORD {
                self.admission.write_anew();
            } else if let Some(replica) = self.replicas.get_mut(&range) {
                replica.compact();
                self.active.insert(range);
            } else {
                unknown.push(group);
            }
        }
        unknown
    }

    /// How many replicas must be told the time at present.
    pub fn active_replicas(&self) -> usize {
        self.active.len()
    }

    /// Takes in one input. What it asks for comes with [`Shard::end_turn`].
    pub fn step(&mut self, input: Input, now: Now) {
        match input {
            Input::Request { connection, request } => {
                let Request { request_id, operation } = request;
                self.requests += 1;
                self.request(Asker { connection, request_id }, operation, now);
            }
            Input::Peer { from, message } => self.receive(from, message, now),
            Input::Durable { appends } => self.durable(appends, now),
            Input::Install(descriptor) => {
                self.config.ranges.install(&descriptor);
                self.ranges_version = self.config.ranges.version();
                self.with_replica(descriptor.range, now, |replica, _, cx| {
                    replica.install(&descriptor, cx);
                });
            }
            Input::Tick => self.tick(now),
        }
    }

    /// Runs a call on a replica, which is then touched.
    fn with_replica<T>(
        &mut self,
        range: RangeId,
        now: Now,
        call: impl FnOnce(&mut Replica, &mut Hlc, Context<'_>) -> T,
    ) -> Option<T> {
        let replica = self.replicas.get_mut(&range)?;
        self.touched.insert(range);
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        Some(call(replica, &mut self.hlc, cx))
    }

    fn tick(&mut self, now: Now) {
        if !self.admission.has_begun() {
            return;
        }
        self.protections.expire(now);
        let changed = self.peers.tick(now.monotonic_us);
        self.ticked = true;
        if self.config.fault == Some(TestFault::EarlyHeartbeats) {
            self.send_heartbeats(now);
        }
        if !self.admission.is_admitted() {
            return;
        }
        if changed.is_empty() && self.was_admitted {
            self.touched.extend(&self.active);
        } else {
            // Who leads or follows whom may hang on it.
            self.touched.extend(self.replicas.keys());
        }
        self.was_admitted = true;
        let oldest_ts = self.protections.oldest_ts(now);
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        for range in &self.touched {
            let replica = self.replicas.get_mut(range).expect("only replicas are touched");
            replica.tick(&mut self.hlc, now, oldest_ts, cx);
        }
    }

    /// Builds the heartbeats that are due. They carry the revocations of this turn, so every
    /// replica must have been flushed.
    fn send_heartbeats(&mut self, now: Now) {
        for (to, heartbeat) in self.peers.heartbeats(now.monotonic_us) {
            let (incarnation, registered) = self.admission.introduction(to);
            let ranges_version = self.ranges_version;
            let shape_checksum = self.admission.shape_checksum();
            let hello =
                Hello { shape_checksum, incarnation, registered, ranges_version, heartbeat };
            self.hellos.push((to, PeerBody::Hello(hello)));
        }
    }

    /// Writes one part of a checkpoint, or several small ones, for the whole shard and for all the
    /// ticks of a turn: what a turn writes is bounded, however late it comes.
    fn advance_checkpoints(&mut self, now: Now) {
        let after = (Bound::Excluded(self.last_checkpoint), Bound::Unbounded);
        let in_turn = self.touched.range(after).chain(&self.touched).take(self.touched.len());
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        let mut written_bytes = 0;
        for range in in_turn.copied() {
            let replica = self.replicas.get_mut(&range).expect("only replicas are touched");
            if replica.wants_checkpoint() {
                written_bytes += replica.advance_checkpoint(cx);
                self.last_checkpoint = range;
            }
            if written_bytes >= CHECKPOINT_BYTES_PER_TURN {
                break;
            }
        }
    }

    /// Ends a turn: everything that its inputs asked for.
    pub fn end_turn(&mut self, now: Now) -> ShardEffects {
        while let Some((asker, operation)) = self.early_reads.next(now) {
            self.request(asker, operation, now);
        }
        // Checkpoints let go of more than they take, but later: they must not be what fills it up.
        let has_room = self.log.left_bytes >= CHECKPOINT_RESERVE_BYTES;
        let ticked = std::mem::take(&mut self.ticked);
        if ticked && has_room && self.admission.is_admitted() {
            self.advance_checkpoints(now);
        }
        let mut out = std::mem::take(&mut self.effects);
        let mut sends = Vec::new();
        if let Some(record) = self.admission.record(self.appends) {
            out.appends.push((SHARD_RECORD, record));
            self.appends += 1;
            self.unsynced.push_back((self.appends, SHARD_RECORD));
        }
        for range in std::mem::take(&mut self.touched) {
            self.flush(range, now, &mut out, &mut sends);
        }
        if ticked {
            self.send_heartbeats(now);
        }
        sends.append(&mut self.hellos);
        while self.held.front().is_some_and(|(appends, ..)| *appends <= self.durable_appends) {
            let (_, to, body) = self.held.pop_front().expect("it was looked at just now");
            sends.push((to, body));
        }
        // A shard that starts has all its groups elect at once, and never so many messages again.
        if self.held.is_empty() && self.held.capacity() > MAX_IDLE_QUEUE {
            self.held = VecDeque::new();
        }
        if self.unsynced.is_empty() && self.unsynced.capacity() > MAX_IDLE_QUEUE {
            self.unsynced = VecDeque::new();
        }
        if !sends.is_empty() {
            let sent_ts = self.hlc.tick(now.wall);
            let session = self.admission.session();
            let message = |(to, body)| (to, PeerMessage { session, sent_ts, body });
            out.sends.extend(sends.into_iter().map(message));
        }
        if self.config.fault != Some(TestFault::NoCommitWait) {
            let now = self.commit_wait_now(now);
            self.commit_wait.pass(&mut out.replies, now);
            out.wake_after_us = self.commit_wait.next_us(now);
        }
        let early_us = self.early_reads.next_us(now);
        out.wake_after_us = out.wake_after_us.into_iter().chain(early_us).min();
        out
    }

    /// The time that answers wait for.
    fn commit_wait_now(&self, now: Now) -> Now {
        if self.config.fault != Some(TestFault::HalfCommitWait) {
            return now;
        }
        let wall = Interval { earliest_us: now.wall.reading_us(), ..now.wall };
        Now { wall, ..now }
    }

    fn flush(
        &mut self,
        range: RangeId,
        now: Now,
        out: &mut ShardEffects,
        sends: &mut Vec<(PeerAddress, PeerBody)>,
    ) {
        let replica = self.replicas.get_mut(&range).expect("only replicas are touched");
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        let oldest_ts = self.protections.oldest_ts(now);
        let Outbox { appends, sends: of_replica, revoked, written, read_ts } =
            replica.flush(cx, now, self.appends, oldest_ts, out);
        if let Some(read_ts) = read_ts {
            // Its reader may come back for more.
            self.protections.protect(read_ts, now);
        }
        if replica.wants_ticks(cx) {
            self.active.insert(range);
        } else {
            self.active.remove(&range);
        }
        for (peer, revocation) in revoked {
            self.peers.revoke(peer, revocation);
        }
        if !appends.is_empty() {
            self.appends += appends.len() as u64;
            self.unsynced.push_back((self.appends, range));
            out.appends.extend(appends.into_iter().map(|append| (range, append)));
        }
        for send in of_replica {
            match send.after {
                After::Appends if self.durable_appends < written => {
                    self.held.push_back((written, send.to, send.message));
                }
                After::Appends | After::Nothing => sends.push((send.to, send.message)),
            }
        }
    }

    /// Whether the clock is so unsure that nothing is served.
    pub fn is_fenced(&self, now: Now) -> bool {
        now.wall.bound_us() > self.config.max_offset_us
    }

    /// Says who vouches for the clock's bound; only shown.
    pub fn set_voucher(&mut self, voucher: Voucher) {
        self.voucher = voucher;
    }

    /// The state of the shard.
    pub fn status(&self, now: Now) -> ShardStatus {
        let ranges =
            self.replicas.values().map(|replica| replica.group.status(&replica.descriptor));
        ShardStatus {
            at: self.config.at,
            admission: self.admission.stage(),
            log_syncs: self.log.syncs,
            log_entries: self.appends,
            log_bytes: self.log.bytes,
            log_left_bytes: self.log.left_bytes,
            requests: self.requests,
            clock_bound_us: now.wall.bound_us(),
            clock_voucher: self.voucher,
            clock_rejections: self.clock_rejections,
            ranges: ranges.collect(),
        }
    }

    fn durable(&mut self, appends: u64, now: Now) {
        assert!(appends <= self.appends, "more writes are durable than there were");
        self.durable_appends = self.durable_appends.max(appends);
        self.admission.durable(appends);
        while let Some((written, range)) = self.unsynced.front().copied()
            && written <= appends
        {
            self.unsynced.pop_front();
            self.with_replica(range, now, |replica, _, cx| replica.durable(appends, cx));
        }
    }
}

fn surroundings(config: &ShardConfig, now: Now) -> Surroundings {
    Surroundings {
        me: config.at,
        now_us: now.monotonic_us,
        checkpoint_bytes: config.checkpoint_bytes,
        part_bytes: config.snapshot_part_bytes,
        max_message_bytes: config.max_message_bytes,
        fault: config.fault,
    }
}
