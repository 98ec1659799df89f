//! The shard: passes requests and messages to replicas, and their writes to one log.

mod checkpoints;
mod inputs;
mod receive;
mod report;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    ops::Bound,
};

use bytes::Bytes;
use palisade_clock::{BoundSource, Hlc, Interval, Now, Timestamp};
use palisade_control::{Bootstrap, RangeMap};
use palisade_replication::{After, Context, PeerTiming, Peers};
use palisade_wal::Retained;
use palisade_wire::{Admission as Admitted, Mode, PeerAddress, RangeId, Role};

use crate::{
    Recovered, TestFault,
    admission::Admission,
    commit_wait::CommitWait,
    config::{LogCounters, ShardConfig, ShardError},
    drain::Drain,
    early_reads::EarlyReads,
    forwarding::{Forwarding, is_peer},
    log_room::{Growth, LogReserve, LogRoom, LogSpace, Rewrite, StateSize},
    messages::{Hello, PeerBody, PeerMessage},
    metrics::Metrics,
    pacing::Pacing,
    protections::Protections,
    recovery::Recovery,
    replay::SHARD_RECORD,
    replica::{Outbox, Replica},
    turn::{Input, ShardEffects, Turn},
    view::ReplicaView,
    work::Work,
};

/// Elements that an empty queue keeps room for. A queue with more capacity is freed.
const MAX_IDLE_QUEUE: usize = 1024;

/// Returns the [`Turn`] that lends a shard's parts to a replica.
macro_rules! lent {
    ($shard:expr, $now:expr) => {
        $crate::turn::Turn {
            now: $now,
            hlc: &mut $shard.hlc,
            peers: &$shard.peers,
            effects: &mut $shard.effects,
            growth: $shard.growth,
            work: &mut $shard.work,
            metrics: &mut $shard.metrics,
        }
    };
}
use lent;

/// One core's share of a node: its replicas, its peers and its pending messages.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    /// The range map, with all changes that have arrived here.
    ranges: RangeMap,
    hlc: Hlc,
    random: fastrand::Rng,
    admission: Admission,
    peers: Peers,
    /// Boxed, because nodes of the map are often half empty.
    replicas: BTreeMap<RangeId, Box<Replica>>,
    /// Replicas that were called in this turn; `end_turn` flushes them.
    touched: BTreeSet<RangeId>,
    /// Replicas that need ticks. The others are idle and cost nothing.
    active: BTreeSet<RangeId>,
    was_admitted: bool,
    /// The peer that most recently sent another cluster shape.
    other_shape: Option<PeerAddress>,
    /// True if this turn had a tick. Only such turns write checkpoint parts.
    ticked: bool,
    /// The replica that wrote the last checkpoint part. The next turn starts after it.
    last_checkpoint: RangeId,
    /// Writes requested since the start.
    appends: u64,
    /// The first this many writes are durable.
    durable_appends: u64,
    /// Writes that are not durable yet: the shard's write count after them, and their group.
    unsynced: VecDeque<(u64, RangeId)>,
    /// Messages, each held until the shard's first `.0` writes are durable. The order is
    /// approximate: a message may wait behind one that is held longer, for one sync at most.
    held: VecDeque<(u64, PeerAddress, PeerBody)>,
    /// Replies that wait for a timestamp to pass.
    commit_wait: CommitWait,
    /// Reads at timestamps that have not passed yet.
    early_reads: EarlyReads,
    /// Timestamps whose versions are kept.
    protections: Protections,
    log: LogCounters,
    log_reserve: LogReserve,
    /// What rewriting the states of all replicas takes.
    state: StateSize,
    /// Groups with entries at the beginning of the log that are not applied.
    stuck: BTreeSet<RangeId>,
    /// Whether commits may write values.
    growth: Growth,
    /// Commits that wait for room in the log.
    pacing: Pacing,
    drain: Drain,
    /// The work that this turn may still do.
    work: Work,
    /// Replicas with work that the last turn left over.
    unfinished: BTreeSet<RangeId>,
    /// A replica has reads that can be answered and were not, because the work was used up.
    owes_reads: bool,
    /// Committed entries that are not applied, over all replicas.
    backlog: usize,
    /// The last turn has left inputs in the inbox.
    inputs_wait: bool,
    /// The replica that used up the work of the last turn. The next turn ends with it.
    last_flushed: RangeId,
    requests: u64,
    forwarding: Forwarding,
    metrics: Metrics,
    clock_rejections: u64,
    bound_source: BoundSource,
    effects: ShardEffects,
    /// Messages from the shard itself in this turn: heartbeats and range maps.
    hellos: Vec<(PeerAddress, PeerBody)>,
}

impl Shard {
    /// Creates a shard from what was recovered from its log. `ranges` is the cluster's first range
    /// map.
    ///
    /// # Errors
    ///
    /// [`ShardError::Command`] if the recovered state cannot be decoded.
    /// [`ShardError::ShapeChanged`] if the log has another cluster shape. Neither is retryable.
    pub fn new(
        config: ShardConfig,
        ranges: RangeMap,
        mut recovered: Recovered,
        now: Now,
    ) -> Result<Self, ShardError> {
        if let Some(fault) = config.planted.get() {
            recovered.break_promises(fault);
        }
        let Recovered { mut groups, shard } = recovered;
        let mut random = fastrand::Rng::with_seed(config.random_seed);
        let others = config.nodes.iter().map(|node| node.node).filter(|n| *n != config.at.node);
        let others: Vec<_> =
            others.map(|node| PeerAddress { node, shard: config.at.shard }).collect();
        let trust_empty_log = config.planted.is(TestFault::TrustEmptyLog);
        let shape = config.shape.as_ref().map_or(Bytes::new(), Bootstrap::to_bytes);
        let admission =
            Admission::new(shard, shape, random.u64(..), others.len(), trust_empty_log)?;
        let reuses_ids = config.planted.is(TestFault::ReuseForwardIds);
        let forwarding = Forwarding::new(if reuses_ids { 0 } else { admission.session() });
        if let Some(configured) = &config.shape {
            configured.check_unchanged(&Bootstrap::from_bytes(admission.shape())?)?;
        }
        let peers =
            Peers::new(PeerTiming::default(), admission.session(), others, now.monotonic_us);
        let (mut replicas, mut state) = (BTreeMap::new(), StateSize::default());
        for descriptor in ranges.ranges() {
            let recovered = groups.remove(&descriptor.range);
            let added = recovered.is_some() && descriptor.mode == Mode::Raft;
            if descriptor.members.contains(&config.at) || added {
                let recovered = recovered.unwrap_or_default();
                let mut replica = Recovery { descriptor, ranges: &ranges, recovered }.replica(
                    config.of_replicas(),
                    &mut random,
                    now.monotonic_us,
                )?;
                replica.counted_bytes = replica.state_bytes();
                state.replace(0, replica.counted_bytes);
                replicas.insert(descriptor.range, replica);
            }
        }
        let log_reserve = LogReserve(config.log_reserve_bytes);
        let work = Work::new(config.turn_work);
        Ok(Self {
            early_reads: EarlyReads::new(config.max_offset_us),
            protections: Protections::new(config.max_offset_us),
            hlc: Hlc::new(config.max_offset_us),
            config,
            ranges,
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
            log: LogCounters::default(),
            log_reserve,
            state,
            stuck: BTreeSet::new(),
            growth: Growth::Accepted,
            pacing: Pacing::default(),
            drain: Drain::default(),
            work,
            unfinished: BTreeSet::new(),
            owes_reads: false,
            backlog: 0,
            inputs_wait: false,
            last_flushed: RangeId::CONTROL,
            requests: 0,
            forwarding,
            metrics: Metrics::default(),
            clock_rejections: 0,
            bound_source: BoundSource::default(),
            effects: ShardEffects::default(),
            hellos: Vec::new(),
        })
    }

    /// Sets the log's counters. `room` decides which writes are accepted.
    pub fn set_log_counters(&mut self, log: LogCounters) {
        self.log = log;
        let unapplied = || self.replicas.values().map(|replica| replica.unapplied_bytes()).sum();
        self.growth = log.room.growth(unapplied);
    }

    /// Returns the highest commit timestamp that the log held at the start.
    pub fn logged_ts(&self) -> Timestamp {
        self.replicas.values().map(|replica| replica.logged_ts()).max().unwrap_or_default()
    }

    /// Returns true if no request waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.commit_wait.is_empty()
            && self.early_reads.is_empty()
            && self.pacing.is_empty()
            && self.forwarding.is_empty()
            && self.replicas.values().all(|replica| replica.is_idle())
    }

    /// Returns true if the shard has drained: it serves nothing, no request waits for an answer,
    /// and what was answered is durable. Pending requests are given up after some seconds.
    pub fn is_drained(&self) -> bool {
        self.drain.is_done(self.durable_appends)
    }

    /// Returns the number of Raft groups that this shard leads.
    pub fn leaderships(&self) -> usize {
        let roles = self.replicas.values().map(|replica| replica.group.role());
        roles.filter(|role| *role == Role::Leader).count()
    }

    /// Returns true if the shard's replicas take part in their groups.
    pub fn is_admitted(&self) -> bool {
        self.admission.is_admitted()
    }

    /// Returns true if the shard will never take part: a peer knows another log at this address.
    pub fn is_refused(&self) -> bool {
        self.admission.stage() == Admitted::Refused
    }

    /// Returns the peer that most recently sent another shape of the cluster. Its heartbeats are
    /// dropped, so neither shard relies on the other.
    pub fn peer_of_other_shape(&self) -> Option<PeerAddress> {
        self.other_shape
    }

    /// Returns a read-only view of a replica, or `None` if the range has none here.
    pub fn view(&self, range: RangeId) -> Option<ReplicaView<'_>> {
        self.replicas.get(&range).map(|replica| ReplicaView::new(replica))
    }

    /// Returns views of all replicas, ordered by range.
    pub fn views(&self) -> impl Iterator<Item = ReplicaView<'_>> {
        self.replicas.values().map(|replica| ReplicaView::new(replica))
    }

    /// Returns true if the replica holds a leader lease, so that reads need no round to the
    /// followers. False for chains and for unknown ranges.
    pub fn is_leased(&self, range: RangeId, now: Now) -> bool {
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        self.replicas.get(&range).is_some_and(|replica| replica.group.is_leased(cx))
    }

    /// Returns at most how many bytes of log it takes to rewrite the state of all groups.
    pub fn state_bytes(&self) -> u64 {
        self.state.total_bytes
    }

    pub(crate) fn state_size(&self) -> StateSize {
        self.state
    }

    /// Finds the largest replica, which may have become smaller.
    pub(crate) fn measure_largest(&mut self) {
        let bytes = self.replicas.values().map(|replica| replica.counted_bytes);
        self.state.largest_bytes = bytes.max().unwrap_or_default();
    }

    /// Returns the limits that follow from the reserve of the log.
    pub(crate) fn log_reserve(&self) -> LogReserve {
        self.log_reserve
    }

    /// Returns what can still be appended to a log that is kept for the groups in `retained`.
    pub(crate) fn log_room(
        &self,
        space: LogSpace,
        retained: impl Iterator<Item = Retained>,
    ) -> LogRoom {
        let mut rewrites = Vec::new();
        for retained in retained {
            let range = RangeId(retained.group);
            if range == SHARD_RECORD {
                let bytes = self.admission.record_bytes();
                rewrites.push(Rewrite { from: retained.from, bytes });
            } else if let Some(replica) = self.replicas.get(&range) {
                replica.rewrites(retained, self.durable_appends, &mut rewrites);
            }
        }
        LogRoom::after_rewrites(space, self.state, rewrites, self.log_reserve)
    }

    /// Returns the index up to which a group has applied its entries. `u64::MAX` for groups that
    /// have no entries here.
    pub(crate) fn applied_index(&self, group: u32) -> u64 {
        self.replicas.get(&RangeId(group)).map_or(u64::MAX, |replica| replica.applied_index())
    }

    /// Makes the groups that need the beginning of the log rewrite their state, so that it can be
    /// released. Returns the groups that are unknown here: nothing of them is needed any more.
    ///
    /// Entries that are not applied can't be released. While a group has some at the beginning of
    /// the log, rewriting would be in vain.
    pub(crate) fn compact(&mut self, retained: &[Retained]) -> Vec<u32> {
        let first = retained.iter().map(|retained| retained.from).min();
        let pinning = retained.iter().filter(|retained| Some(retained.from) == first);
        let stuck = pinning.clone().filter(|retained| retained.unapplied == first);
        self.stuck = stuck.map(|retained| RangeId(retained.group)).collect();
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for group in pinning.map(|retained| retained.group) {
            let range = RangeId(group);
            let is_known = range == SHARD_RECORD || self.replicas.contains_key(&range);
            if is_known { known.push(range) } else { unknown.push(group) }
        }
        let may_release = self.stuck.is_empty();
        for range in known.into_iter().filter(|_| may_release) {
            if let Some(replica) = self.replicas.get_mut(&range) {
                replica.compact(self.durable_appends);
                self.active.insert(range);
            } else {
                self.admission.rewrite();
            }
        }
        unknown
    }

    /// Returns how many replicas need ticks at present.
    pub fn active_replicas(&self) -> usize {
        self.active.len()
    }

    /// Processes one input. Its effects are returned by [`Shard::end_turn`].
    ///
    /// # Panics
    ///
    /// If [`Input::Durable`] reports more writes than were requested.
    pub fn step(&mut self, input: Input, now: Now) {
        match input {
            Input::Request { connection, request } => {
                assert!(!is_peer(connection), "{connection:?} is a number of a peer");
                self.requests += 1;
                self.client_request(connection, now.monotonic_us, request, now);
            }
            Input::Peer { from, message } => self.receive(from, message, now),
            Input::Durable { appends } => self.durable(appends, now),
            Input::Install(descriptor) => {
                self.ranges.install(&descriptor);
                // The replica may lag behind the map: it is checked against what the map has.
                if self.ranges.get(descriptor.range) == Some(&descriptor) {
                    self.with_replica(descriptor.range, now, |replica, turn| {
                        replica.install(&descriptor, turn);
                    });
                }
            }
            Input::Tick => self.tick(now),
            Input::Drain => {
                if self.drain.start(now) {
                    // Leaders whose shard drains transfer their leadership at each tick.
                    self.peers.drain();
                    self.tick(now);
                }
            }
        }
    }

    /// Calls a method of a replica and marks it as touched. Returns `None` if the range is unknown.
    fn with_replica<T>(
        &mut self,
        range: RangeId,
        now: Now,
        call: impl FnOnce(&mut Replica, &mut Turn<'_>) -> T,
    ) -> Option<T> {
        let replica = self.replicas.get_mut(&range)?;
        self.touched.insert(range);
        Some(call(replica, &mut lent!(self, now)))
    }

    fn tick(&mut self, now: Now) {
        let cx = Context { now_us: now.monotonic_us, peers: &self.peers };
        let mut replicas = self.replicas.values();
        self.drain.handed_over(|| replicas.any(|replica| replica.group.hands_over(cx)), now);
        if !self.admission.has_begun() {
            return;
        }
        self.protections.expire(now);
        let changed = self.peers.tick(now.monotonic_us);
        self.effects.reconnects.extend(self.peers.broken_connections(now.monotonic_us));
        self.expire_forwarded(now);
        self.ticked = true;
        if !self.admission.is_admitted() {
            return;
        }
        if changed.is_empty() && self.was_admitted && !self.drain.hands_over() {
            self.touched.extend(&self.active);
        } else {
            // The shard was just admitted or hands over its leaderships, or a peer was suspected or
            // came back. Leadership in any group may depend on that.
            self.touched.extend(self.replicas.keys());
        }
        self.was_admitted = true;
        let oldest_ts = self.protections.oldest_ts(now);
        let mut turn = lent!(self, now);
        for range in &self.touched {
            let replica = self.replicas.get_mut(range).expect("only replicas are touched");
            replica.tick(oldest_ts, &mut turn);
        }
    }

    /// Builds the heartbeats that are due. They must carry the revocations of this turn, so every
    /// replica must have been flushed before.
    fn send_heartbeats(&mut self, now: Now) {
        let ranges_version = self.ranges.version();
        for (to, heartbeat) in self.peers.heartbeats(now.monotonic_us) {
            let (incarnation, registered) = self.admission.introduction(to);
            let shape_checksum = self.admission.shape_checksum();
            let hello =
                Hello { shape_checksum, incarnation, registered, ranges_version, heartbeat };
            self.hellos.push((to, PeerBody::Hello(hello)));
        }
    }

    /// Ends the turn and returns the effects of its inputs.
    pub fn end_turn(&mut self, now: Now) -> ShardEffects {
        while self.work.is_left_for_waiting()
            && let Some((origin, operation)) = self.early_reads.next(now)
        {
            self.work.input(0);
            self.request(origin, operation, now);
        }
        let room = self.log.room;
        self.pacing.begin_interval(|| room.allowance_bytes(self.log_reserve), now);
        while self.work.is_left_for_waiting()
            && let Some(waited) = self.pacing.next(now)
        {
            self.work.input(0);
            self.admit_paced(waited, now);
        }
        let ticked = mem::take(&mut self.ticked);
        if ticked && self.admission.is_admitted() {
            self.advance_checkpoints(now);
        }
        let mut sends = Vec::new();
        if let Some(record) = self.admission.record(self.appends) {
            self.effects.appends.push((SHARD_RECORD, record));
            self.appends += 1;
            self.unsynced.push_back((self.appends, SHARD_RECORD));
        }
        self.flush_all(now, &mut sends);
        if ticked {
            self.send_heartbeats(now);
        }
        sends.append(&mut self.hellos);
        while self.held.front().is_some_and(|(appends, ..)| *appends <= self.durable_appends) {
            let (_, to, body) = self.held.pop_front().expect("it was looked at just now");
            sends.push((to, body));
        }
        // At the start all groups elect at once. The queues never need as much room again.
        if self.held.is_empty() && self.held.capacity() > MAX_IDLE_QUEUE {
            self.held = VecDeque::new();
        }
        if self.unsynced.is_empty() && self.unsynced.capacity() > MAX_IDLE_QUEUE {
            self.unsynced = VecDeque::new();
        }
        let mut out = mem::take(&mut self.effects);
        out.slow = self.metrics.take_slow();
        if !self.config.planted.is(TestFault::NoCommitWait) {
            let now = self.commit_wait_now(now);
            self.commit_wait.pass(&mut out.replies, &mut self.metrics.commit_wait, now);
            out.wake_after_us = self.commit_wait.next_us(now);
        }
        sends.extend(self.forwarding.responses(&mut out.replies));
        let responses = out.replies.iter().map(|(_, response)| response);
        out.storm = self.metrics.count_rejections(responses, now.monotonic_us);
        if !sends.is_empty() {
            let sent_ts = self.hlc.tick(now.wall);
            let session = self.admission.session();
            let message = |(to, body)| (to, PeerMessage { session, sent_ts, body });
            out.sends.extend(sends.into_iter().map(message));
        }
        let unfinished_us = (!self.unfinished.is_empty()).then_some(0);
        let waits_us = [self.early_reads.next_us(now), self.pacing.next_us(now), unfinished_us];
        self.work.renew();
        let (mut drain, appends) = (self.drain, self.appends);
        drain.answered(|| !self.inputs_wait && self.is_idle(), appends, now);
        self.drain = drain;
        out.wake_after_us = waits_us.into_iter().chain([out.wake_after_us]).flatten().min();
        out
    }

    /// Returns the time for the commit wait: `now`, unless `HalfCommitWait` is injected.
    fn commit_wait_now(&self, now: Now) -> Now {
        if !self.config.planted.is(TestFault::HalfCommitWait) {
            return now;
        }
        let wall = Interval { earliest_us: now.wall.reading_us(), ..now.wall };
        Now { wall, ..now }
    }

    /// Flushes the replicas that were called in this turn, and those with work that the last turn
    /// left over. Each is the first to use the turn's work
    /// in some turn.
    fn flush_all(&mut self, now: Now, sends: &mut Vec<(PeerAddress, PeerBody)>) {
        let mut ranges = mem::take(&mut self.touched);
        ranges.append(&mut self.unfinished);
        (self.owes_reads, self.backlog) = (false, 0);
        let after = (Bound::Excluded(self.last_flushed), Bound::Unbounded);
        for range in ranges.range(after).chain(&ranges).take(ranges.len()) {
            let had_work = self.work.is_left();
            self.flush(*range, now, sends);
            if had_work && !self.work.is_left() {
                self.last_flushed = *range;
            }
        }
    }

    fn flush(&mut self, range: RangeId, now: Now, sends: &mut Vec<(PeerAddress, PeerBody)>) {
        let replica = self.replicas.get_mut(&range).expect("only replicas are touched");
        let oldest_ts = self.protections.oldest_ts(now);
        let mut turn = lent!(self, now);
        let Outbox { appends, sends: of_replica, revoked, last_unsynced, read_ts } =
            replica.flush(self.appends, oldest_ts, &mut turn);
        if replica.is_unfinished() {
            self.unfinished.insert(range);
            self.owes_reads |= replica.owes_reads();
            self.backlog += replica.backlog();
        }
        let state_bytes = replica.state_bytes();
        self.state.replace(replica.counted_bytes, state_bytes);
        replica.counted_bytes = state_bytes;
        if let Some(read_ts) = read_ts {
            // The client may read more at this timestamp.
            self.protections.protect(read_ts, now);
        }
        if replica.wants_ticks(&turn) {
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
            self.effects.appends.extend(appends.into_iter().map(|append| (range, append)));
        }
        for send in of_replica {
            match send.after {
                After::Appends if self.durable_appends < last_unsynced => {
                    self.held.push_back((last_unsynced, send.to, send.message));
                }
                After::Appends | After::Nothing => sends.push((send.to, send.message)),
            }
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
            self.with_replica(range, now, |replica, turn| {
                replica.group.durable(appends, turn.context());
            });
        }
    }
}
