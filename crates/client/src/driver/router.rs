//! Routes requests to replicas, and retries them until they have an outcome.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use palisade_clock::Timestamp;
use palisade_control::{RangeDescriptor, Topology};
use palisade_wire::{
    Commit, CommitRequest, Locking, Mode, Operation, Outcome, PeerAddress, RangeId, ReadKind,
    Rejection, Request, Response, ScanRequest, SessionId, TxnId,
};
use tokio::{sync::oneshot, task::spawn_local, time::sleep};

use super::{
    Call, Command, How, Locks, Span, Submit, connection,
    sessions::{Sessions, fresh_session},
};
use crate::{
    ClientError,
    client::{Counters, is_final},
    open_snapshots::OpenSnapshots,
};

/// The pause before a retry doubles from the first value to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// Shortest time between two requests for the range map.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);

type Reply = oneshot::Sender<Result<Outcome, ClientError>>;

/// The role of the replica that serves a request. In Raft mode the leader has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Sequences the writes: a chain's head.
    Sequenced,
    /// Serves reads that are linearizable for their key alone: a chain's tail.
    TailRead,
}

/// A request without an outcome.
#[derive(Debug)]
struct Pending {
    call: Call,
    commit: Option<PendingCommit>,
    deadline: Instant,
    timeout: Duration,
    tries: u32,
    /// The shard that it was sent to last, or `None` while it waits to be sent again.
    at: Option<PeerAddress>,
    sent: bool,
    reason: &'static str,
    /// True if a try may have taken effect although it was not answered.
    may_have_run: bool,
    /// Replicas that no longer keep the versions that this call reads.
    collected_at: Vec<PeerAddress>,
    reply: Option<Reply>,
}

/// The parts of a commit that stay the same on all tries.
#[derive(Clone, Copy, Debug)]
struct PendingCommit {
    txn: TxnId,
    range: RangeId,
    /// `None` before the first send, and when a commit that has expired needs a later expiry.
    expires_ts: Option<Timestamp>,
}

/// The pending requests, and the client's view of the cluster.
#[derive(Debug)]
pub(super) struct Router {
    itself: Weak<Self>,
    topology: RefCell<Topology>,
    connections: BTreeMap<PeerAddress, Rc<connection::Connection>>,
    /// The replica that serves each role: the last hint, or the next member to try.
    serving: RefCell<BTreeMap<(RangeId, Part), PeerAddress>>,
    pending: RefCell<BTreeMap<u64, Pending>>,
    next_request: Cell<u64>,
    sessions: RefCell<Sessions>,
    refreshed: Cell<Option<Instant>>,
    counters: Arc<Counters>,
}

impl Router {
    /// Creates a router for a cluster behind sockets, or for one shard of this process.
    pub(super) fn new(
        topology: Topology,
        session: SessionId,
        counters: Arc<Counters>,
        in_process: Option<Submit>,
    ) -> Rc<Self> {
        let mut connections: BTreeMap<PeerAddress, Rc<connection::Connection>> = topology
            .nodes
            .iter()
            .flat_map(|node| {
                let shards = (0..node.client.len()).map(|shard| {
                    palisade_wire::ShardId(u16::try_from(shard).expect("shards fit a u16"))
                });
                shards.map(|shard| PeerAddress { node: node.node, shard })
            })
            .map(|at| (at, Rc::default()))
            .collect();
        if let Some(submit) = in_process {
            let only = connections.values_mut().next().expect("a cluster of one shard has one");
            *only = Rc::new(connection::Connection::in_process(submit));
        }
        let now_ts = topology.now_ts.unwrap_or_else(own_time);
        let sessions = Sessions::new(session, now_ts, Instant::now());
        Rc::new_cyclic(|itself| Self {
            itself: itself.clone(),
            topology: RefCell::new(topology),
            connections,
            serving: RefCell::default(),
            pending: RefCell::default(),
            next_request: Cell::new(1),
            sessions: RefCell::new(sessions),
            refreshed: Cell::new(None),
            counters,
        })
    }

    pub(super) fn connect_all(self: Rc<Self>) {
        for (at, connection) in &self.connections {
            let topology = self.topology.borrow();
            let address = topology.client_address(*at).expect("connections are made from it");
            let (router, connection) = (self.clone(), connection.clone());
            let cluster_id = topology.cluster_id;
            spawn_local(connection::keep_open(router, connection, *at, address, cluster_id));
        }
    }

    pub(super) fn send_all(&self) {
        for connection in self.connections.values() {
            connection.send();
        }
    }

    /// Starts a call: names it if it is a commit, and sends it.
    pub(super) fn start(&self, command: Command) {
        let Command { call, deadline, timeout, reply } = command;
        if let Call::Topology = call {
            let _ = reply.send(Ok(Outcome::RangeMap(self.topology.borrow().to_bytes())));
            return;
        }
        if !self.is_in_one_range(&call) {
            let _ = reply.send(Err(ClientError::SeveralRanges));
            return;
        }
        let commit = match &call {
            Call::Commit { commit, locks } => {
                let range = self.range_of_commit(commit, locks.as_ref());
                if self.sessions.borrow().is_wide(range) {
                    self.renew_session();
                }
                let txn = self.sessions.borrow_mut().begin(range);
                Some(PendingCommit { txn, range, expires_ts: None })
            }
            _ => None,
        };
        self.add(Pending {
            call,
            commit,
            deadline,
            timeout,
            tries: 0,
            at: None,
            sent: false,
            reason: "the cluster was not reached",
            may_have_run: false,
            collected_at: Vec::new(),
            reply: Some(reply),
        });
    }

    fn is_in_one_range(&self, call: &Call) -> bool {
        match call {
            Call::Commit { commit, locks } => {
                let range = self.range_of_commit(commit, locks.as_ref());
                commit.keys().all(|key| self.range_of(key) == range)
            }
            Call::Get { key, how: How::Locked(locks) } => {
                self.range_of(key) == self.range_of(&locks.anchor)
            }
            Call::Scan { span, how: How::Locked(locks) } => {
                self.range_of_span(span) == self.range_of(&locks.anchor)
            }
            _ => true,
        }
    }

    fn add(&self, pending: Pending) {
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        self.pending.borrow_mut().insert(id, pending);
        self.dispatch(id);
    }

    /// Sends a request to the replica that serves it, according to the client's view.
    fn dispatch(&self, id: u64) {
        let mut requests = self.pending.borrow_mut();
        let Some(pending) = requests.get_mut(&id) else { return };
        if let Some(commit) = &mut pending.commit {
            let sessions = self.sessions.borrow();
            let fresh_ts = || sessions.expires_ts(pending.timeout, Instant::now());
            commit.expires_ts.get_or_insert_with(fresh_ts);
        }
        let at = self.target(&pending.call);
        let pushed = self.send_to(id, pending, at);
        drop(requests);
        if !pushed {
            self.try_elsewhere(id, "the node does not answer");
        }
    }

    /// Sends a request to a replica. Returns false if the connection is down.
    fn send_to(&self, id: u64, pending: &mut Pending, at: PeerAddress) -> bool {
        let request = Request { request_id: id, operation: self.operation(pending) };
        pending.at = Some(at);
        let pushed = self.connections.get(&at).is_some_and(|connection| connection.push(&request));
        pending.sent |= pushed;
        pushed
    }

    fn operation(&self, pending: &Pending) -> Operation {
        match &pending.call {
            Call::Commit { commit, locks } => {
                let PendingCommit { txn, range, expires_ts, .. } =
                    pending.commit.expect("a commit was named");
                let settled_below = self.sessions.borrow().settled_below(txn, range);
                let commit = commit.clone();
                let expires_ts = expires_ts.expect("it is set before each send");
                let request = CommitRequest { txn, settled_below, expires_ts, commit };
                let claim = locks.as_ref().map(|locks| locks.claim);
                Operation::Commit { range, request, claim }
            }
            Call::Get { key, how } => {
                let (range, kind) = (self.range_of(key), how.kind());
                Operation::Get { range, key: key.clone(), kind }
            }
            Call::Scan { span, how } => {
                let range = self.range_of_span(span);
                let Span { begin, end, backward, max_rows } = span.clone();
                let scan = ScanRequest { range, begin, end, backward, max_rows };
                Operation::Scan { scan, kind: how.kind() }
            }
            Call::Rollback(locks) => {
                let range = self.range_of(&locks.anchor);
                Operation::Rollback { range, claim: locks.claim }
            }
            Call::Topology => Operation::RangeMap,
            Call::Status { .. } => Operation::Status,
            Call::Control { change } => Operation::Control(change.clone()),
        }
    }

    /// Returns the range of the transaction's first key, or else of the commit's. `is_in_one_range`
    /// checks that the other keys lie in it.
    fn range_of_commit(&self, commit: &Commit, locks: Option<&Locks>) -> RangeId {
        let anchor = locks.map(|locks| &locks.anchor);
        let first = anchor.or_else(|| commit.keys().next());
        self.range_of(first.expect("a commit without parts was refused"))
    }

    /// Returns the range that holds the next page.
    fn range_of_span(&self, span: &Span) -> RangeId {
        if !span.backward {
            return self.range_of(&span.begin);
        }
        self.topology.borrow().ranges.find_before(span.end.as_deref()).range
    }

    fn range_of(&self, key: &[u8]) -> RangeId {
        self.topology.borrow().ranges.find(key).range
    }

    /// Returns the range that serves a call, and the role of the replica.
    fn range_and_part(&self, call: &Call) -> Option<(RangeId, Part)> {
        match call {
            Call::Commit { commit, locks } => {
                Some((self.range_of_commit(commit, locks.as_ref()), Part::Sequenced))
            }
            Call::Get { key, how } => Some((self.range_of(key), how.part())),
            Call::Scan { span, how } => Some((self.range_of_span(span), how.part())),
            Call::Rollback(locks) => Some((self.range_of(&locks.anchor), Part::Sequenced)),
            Call::Control { .. } => Some((RangeId::CONTROL, Part::Sequenced)),
            Call::Topology | Call::Status { .. } => None,
        }
    }

    fn target(&self, call: &Call) -> PeerAddress {
        if let Call::Status { at } = call {
            return *at;
        }
        let Some(key) = self.range_and_part(call) else {
            // Any shard can return the range map.
            let at = fastrand::usize(..self.connections.len());
            return *self.connections.keys().nth(at).expect("it is below their number");
        };
        if let Call::Get { how, .. } | Call::Scan { how, .. } = call
            && let How::Past { anywhere: true, .. } = how
        {
            let members = self.descriptor(key.0).members;
            return members[fastrand::usize(..members.len())];
        }
        let mut serving = self.serving.borrow_mut();
        *serving.entry(key).or_insert_with(|| first_guess(&self.descriptor(key.0), key.1))
    }

    fn descriptor(&self, range: RangeId) -> RangeDescriptor {
        let topology = self.topology.borrow();
        topology.ranges.get(range).expect("ranges are never removed").clone()
    }

    /// Processes an answer.
    pub(super) fn answer(&self, response: Response) {
        let Response { request_id: id, outcome } = response;
        let is_known = self.pending.borrow().contains_key(&id);
        if !is_known && !matches!(outcome, Outcome::RangeMap(_)) {
            // The call has ended, or nothing waits for this answer.
            return;
        }
        match outcome {
            Outcome::Rejected(Rejection::Aborted) => self.finish(id, Err(ClientError::Aborted)),
            Outcome::Rejected(Rejection::Collected) => self.ask_another_replica(id),
            Outcome::Rejected(Rejection::Expired | Rejection::LifetimeTooLong)
                if self.is_first_try(id) =>
            {
                self.name_new_expiry(id);
            }
            Outcome::Rejected(Rejection::InvalidChange) if !self.is_first_try(id) => {
                // An earlier try may have made this change, so that it is not allowed any more.
                self.finish(id, Err(ClientError::Rejected(Rejection::Unknown)));
            }
            Outcome::Rejected(rejection) if !is_final(rejection) => {
                self.counters.retries.fetch_add(1, Ordering::Relaxed);
                self.rejected(id, rejection);
            }
            Outcome::Rejected(rejection) => self.finish(id, Err(ClientError::Rejected(rejection))),
            Outcome::RangeMap(bytes) => {
                self.pending.borrow_mut().remove(&id);
                if let Ok(later) = Topology::from_bytes(&bytes) {
                    if let Some(now_ts) = later.now_ts {
                        self.sessions.borrow_mut().learn(now_ts, Instant::now());
                    }
                    let mut topology = self.topology.borrow_mut();
                    for descriptor in later.ranges.ranges() {
                        topology.ranges.install(descriptor);
                    }
                }
            }
            outcome => self.finish(id, Ok(outcome)),
        }
    }

    /// Sends a read to another replica, because one no longer keeps its versions. A replica that
    /// was restarted or received a snapshot has only newer versions; the others may still have
    /// these.
    fn ask_another_replica(&self, id: u64) {
        let mut requests = self.pending.borrow_mut();
        let Some(pending) = requests.get_mut(&id) else { return };
        pending.collected_at.extend(pending.at);
        let range = self.range_and_part(&pending.call).map(|(range, _)| range);
        let members = range.map_or(Vec::new(), |range| self.descriptor(range).members);
        let others = members.into_iter().filter(|at| !pending.collected_at.contains(at));
        let others: Vec<_> = others.collect();
        let sent = others.into_iter().any(|other| self.send_to(id, pending, other));
        drop(requests);
        if !sent {
            self.finish(id, Err(ClientError::Rejected(Rejection::Collected)));
        }
    }

    /// Makes every shard keep the versions of the oldest open snapshot.
    pub(super) fn keep_versions(&self) {
        let Some(at_ts) = self.counters.snapshots.oldest() else { return };
        for connection in self.connections.values() {
            let request_id = self.next_request.get();
            self.next_request.set(request_id + 1);
            // A shard that is not reached now gets the next renewal.
            connection.push(&Request { request_id, operation: Operation::KeepVersions { at_ts } });
        }
        self.send_all();
    }

    pub(super) fn snapshots(&self) -> Arc<OpenSnapshots> {
        self.counters.snapshots.clone()
    }

    /// Makes further tries of a read go to the leader. Returns true if earlier tries went to any
    /// replica.
    fn redirect_to_sequencer(&self, id: u64) -> bool {
        let mut requests = self.pending.borrow_mut();
        let Some(pending) = requests.get_mut(&id) else { return false };
        match &mut pending.call {
            Call::Get { how: How::Past { anywhere, .. }, .. }
            | Call::Scan { how: How::Past { anywhere, .. }, .. } => std::mem::take(anywhere),
            _ => false,
        }
    }

    /// Returns true if no earlier try may have taken effect.
    fn is_first_try(&self, id: u64) -> bool {
        self.pending.borrow().get(&id).is_some_and(|pending| !pending.may_have_run)
    }

    /// Gives a commit a new expiry, because it had expired when a shard first received it, or its
    /// lifetime was too long. This client's estimate of the time is wrong, as after a suspend, so
    /// it requests the cluster's time first.
    fn name_new_expiry(&self, id: u64) {
        self.refreshed.set(None);
        self.refresh();
        if let Some(pending) = self.pending.borrow_mut().get_mut(&id) {
            pending.at = None;
            pending.tries += 1;
            pending.reason = "the time of the cluster is not known";
            if let Some(commit) = &mut pending.commit {
                commit.expires_ts = None;
            }
        }
        self.dispatch_later(id);
    }

    fn rejected(&self, id: u64, rejection: Rejection) {
        // A replica may lack the state that a read needs. The sequencer has all of it.
        self.redirect_to_sequencer(id);
        if rejection.is_outcome_unknown() {
            self.may_have_run(id);
        }
        match rejection {
            Rejection::NotServing { hint: Some(hint) } => {
                let mut requests = self.pending.borrow_mut();
                let Some(pending) = requests.get_mut(&id) else { return };
                let elsewhere = pending.at != Some(hint);
                pending.at = None;
                if let Some(key) = self.range_and_part(&pending.call) {
                    self.serving.borrow_mut().insert(key, hint);
                }
                // Follow the first hint at once. A second one may lead in a circle.
                pending.tries += 1;
                let at_once = elsewhere && pending.tries == 1;
                drop(requests);
                if at_once {
                    self.dispatch(id);
                } else {
                    self.refresh();
                    self.dispatch_later(id);
                }
            }
            Rejection::Overloaded | Rejection::TooManyOutcomes | Rejection::Locked => {
                let mut requests = self.pending.borrow_mut();
                let Some(pending) = requests.get_mut(&id) else { return };
                pending.at = None;
                pending.tries += 1;
                pending.reason = match rejection {
                    Rejection::Locked => "others hold the locks",
                    _ => "the shard is overloaded",
                };
                drop(requests);
                self.dispatch_later(id);
            }
            _ => self.try_elsewhere(id, "no replica serves the range"),
        }
    }

    /// Tries the next member of the range, after a pause.
    fn try_elsewhere(&self, id: u64, reason: &'static str) {
        let mut requests = self.pending.borrow_mut();
        let Some(pending) = requests.get_mut(&id) else { return };
        pending.reason = reason;
        pending.tries += 1;
        let tried = pending.at.take();
        if let Call::Status { .. } = pending.call {
            drop(requests);
            self.finish(id, Err(ClientError::NodeDown));
            return;
        }
        if let Some(key) = self.range_and_part(&pending.call) {
            let descriptor = self.descriptor(key.0);
            let members = &descriptor.members;
            let mut serving = self.serving.borrow_mut();
            let known = serving.entry(key).or_insert_with(|| first_guess(&descriptor, key.1));
            // Another request may have found the right replica meanwhile.
            if Some(*known) == tried {
                let at = members.iter().position(|member| member == known);
                *known = members[at.map_or(0, |at| (at + 1) % members.len())];
            }
        }
        drop(requests);
        self.refresh();
        self.dispatch_later(id);
    }

    fn dispatch_later(&self, id: u64) {
        let requests = self.pending.borrow();
        let Some(pending) = requests.get(&id) else { return };
        let doublings = pending.tries.saturating_sub(1).min(10);
        let pause = (FIRST_PAUSE * 2u32.pow(doublings)).min(LAST_PAUSE);
        let itself = self.itself.clone();
        spawn_local(async move {
            sleep(pause).await;
            if let Some(router) = itself.upgrade() {
                router.dispatch(id);
                router.send_all();
            }
        });
    }

    /// Requests the range map from a random shard, at most once in [`REFRESH_PAUSE`].
    fn refresh(&self) {
        let now = Instant::now();
        if self.refreshed.get().is_some_and(|last| now < last + REFRESH_PAUSE) {
            return;
        }
        self.refreshed.set(Some(now));
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        let at = self.target(&Call::Topology);
        if let Some(connection) = self.connections.get(&at) {
            // A failed send is ignored: the next refresh uses another random shard.
            connection.push(&Request { request_id: id, operation: Operation::RangeMap });
        }
    }

    /// Retries all requests that were sent on a connection.
    pub(super) fn connection_lost(&self, at: PeerAddress) {
        let requests = self.pending.borrow();
        let lost: Vec<_> =
            requests.iter().filter(|(_, p)| p.at == Some(at)).map(|(id, _)| *id).collect();
        drop(requests);
        self.counters.retries.fetch_add(lost.len() as u64, Ordering::Relaxed);
        self.renew_session();
        for id in lost {
            self.may_have_run(id);
            self.try_elsewhere(id, "the connection broke");
        }
    }

    fn may_have_run(&self, id: u64) {
        if let Some(pending) = self.pending.borrow_mut().get_mut(&id) {
            pending.may_have_run = true;
        }
    }

    /// Uses a new session for further commits.
    fn renew_session(&self) {
        if let Ok(session) = fresh_session() {
            self.sessions.borrow_mut().renew(session);
        }
    }

    /// Ends the calls whose deadline has passed.
    pub(super) fn expire(&self, now: Instant) {
        let requests = self.pending.borrow();
        let late = requests.iter().filter(|(_, pending)| pending.deadline <= now);
        let late: Vec<_> = late
            .map(|(id, pending)| {
                let outcome_unknown = pending.sent && pending.call.is_change();
                let (after, reason) = (pending.timeout, pending.reason);
                (*id, ClientError::Deadline { after, reason, outcome_unknown })
            })
            .collect();
        drop(requests);
        for (id, error) in late {
            self.finish(id, Err(error));
        }
    }

    fn finish(&self, id: u64, result: Result<Outcome, ClientError>) {
        // An answer to an earlier try may have ended the request already.
        let Some(mut pending) = self.pending.borrow_mut().remove(&id) else { return };
        if let Some(PendingCommit { txn, range, .. }) = pending.commit {
            self.sessions.borrow_mut().end(txn, range);
        }
        if let Some(reply) = pending.reply.take() {
            let _ = reply.send(result);
        }
    }
}

impl How {
    fn kind(&self) -> ReadKind {
        match self {
            Self::Latest => ReadKind::Latest,
            Self::LatestOfKey => ReadKind::LatestOfKey,
            Self::Locked(Locks { claim, exclusive, .. }) => {
                ReadKind::Locking(Locking { claim: *claim, exclusive: *exclusive })
            }
            Self::Past { kind, .. } => *kind,
        }
    }

    /// Returns the role that serves the read. Locks, and the list of pending writes, exist only at
    /// the replica that sequences the writes.
    fn part(&self) -> Part {
        match self {
            Self::LatestOfKey => Part::TailRead,
            Self::Latest | Self::Locked(_) | Self::Past { .. } => Part::Sequenced,
        }
    }
}

/// Returns this machine's time, for use until a shard reports a time that it is certain of.
fn own_time() -> Timestamp {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::ZERO.saturating_add_us(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
}

/// Returns the replica to try first, before any hint: a chain's tail or the first member.
fn first_guess(descriptor: &RangeDescriptor, part: Part) -> PeerAddress {
    let members = &descriptor.members;
    match (descriptor.mode, part) {
        (Mode::Chain, Part::TailRead) => members[members.len() - 1],
        _ => members[0],
    }
}
