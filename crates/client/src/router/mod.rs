//! The routing core of a client: a state machine without I/O.
//!
//! The problem: a request may reach a follower or a dead node, and a connection may break after the
//! request was sent. If the client only returned an error, every caller would need a retry loop,
//! and would have to handle the case where the first try took effect. So a request keeps its
//! transaction id over all tries. It is sent to the replica that the last answer named, or else to
//! the members in turn, with growing pauses, until it is answered or its deadline passes. A shard
//! that is silent for too long counts as disconnected.
//!
//! ```text
//! Start ───> in flight at one shard ──answer──> Complete(outcome)
//!                │             ▲
//!     rejected,  │             │ Tick, 1 to 50 ms later
//!     broken     ▼             │
//!                waits for a retry ──deadline──> Complete(Deadline)
//! ```
//!
//! Invariants:
//! - Each started call completes once: at the latest in the first `Tick` at or after its deadline,
//!   or some milliseconds later while thousands of calls are pending.
//! - All tries of a commit that may take effect carry the same transaction id and the same expiry.
//! - If a `Deadline` states that the outcome is known, no try had an effect or will have one.
//!
//! Left out: sockets, threads and the clock, which `driver.rs` owns, and the checks of sizes.
#![warn(clippy::disallowed_methods, clippy::disallowed_types, reason = "time is an input here")]

mod links;
mod pending;
mod retries;
mod routes;
mod windows;

use std::{mem, time::Duration};

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::Topology;
use palisade_wire::{
    Operation, Outcome, PeerAddress, RangeId, Rejection, Request, Response, SessionId,
};

use crate::{ClientError, sessions::Sessions};
use links::Due;
use pending::{Pending, PendingCommit, Requests};
use retries::{REFRESH_PAUSE_US, RetryBudget, pause_us, reason};
use routes::{Place, Routes};
use windows::{WindowKey, Windows};

pub use windows::FIRST_WINDOW;

pub use crate::calls::{Call, CallId, Locks, ReadMode, ScanSpan};

/// Tries after which a request whose replica is not connected goes to another, to be passed on.
/// Earlier ones find the next leader.
const FORWARD_AFTER: u32 = 3;

/// The initial state of a [`Router`]. All times are microseconds of one monotonic clock.
pub struct RouterConfig {
    /// The cluster, as one of its shards reported it.
    pub topology: Topology,
    /// The session of the first commits.
    pub session: SessionId,
    /// This machine's time. Used while no shard has reported a time that it is certain of.
    pub now_ts: Timestamp,
    /// The monotonic time.
    pub now_us: u64,
    /// Requests of a range that may be in flight at a shard at first. Production uses
    /// [`FIRST_WINDOW`].
    pub first_window: u32,
    /// Chooses among replicas.
    pub random: fastrand::Rng,
    /// Returns a session that no other client uses, or `None` if that is not possible now.
    pub fresh_session: Box<dyn FnMut() -> Option<SessionId> + Send>,
}

/// An input of [`Router::step`].
#[derive(Clone, Debug)]
pub enum RouterInput {
    /// A call starts.
    Start {
        /// The id by which the call completes.
        id: CallId,
        /// The call.
        call: Call,
        /// The time at which the call ends without an outcome.
        deadline_us: u64,
        /// The time limit of the call, from which the expiry of a commit is computed.
        timeout_us: u64,
    },
    /// A shard answered. Comes before the `Disconnected` of its connection.
    Answer {
        /// The shard.
        from: PeerAddress,
        /// The answer.
        response: Response,
    },
    /// Bytes of an answer that is not complete yet came from a shard, or bytes of a request that
    /// is not sent completely went to it.
    Progressed(PeerAddress),
    /// The connection to a shard is open.
    Connected(PeerAddress),
    /// The connection to a shard is closed. Requests that were sent on it may not have arrived.
    Disconnected(PeerAddress),
    /// The request of a [`RouterEffect::Send`] was not sent and will not be.
    NotSent {
        /// The shard.
        to: PeerAddress,
        /// The id of the request.
        request_id: u64,
    },
    /// The shards must keep the versions at this timestamp, that of the oldest open snapshot, for
    /// some more seconds.
    KeepVersions(Timestamp),
    /// Time has passed; see [`Router::next_due_us`].
    Tick,
}

/// An effect of [`Router::step`]. The driver carries the effects out in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouterEffect {
    /// Sends a request on an open connection. If that fails, the driver reports
    /// [`RouterInput::NotSent`].
    Send {
        /// The shard.
        to: PeerAddress,
        /// The request.
        request: Request,
    },
    /// Closes the connection to a shard that does not answer, and opens another. The driver reports
    /// [`RouterInput::Disconnected`] at once.
    Reconnect(PeerAddress),
    /// Ends a call.
    Complete {
        /// The id of the call.
        id: CallId,
        /// The outcome of the call, or its error.
        result: Result<Outcome, ClientError>,
    },
}

/// Routes requests to replicas, and retries them until they have an outcome.
///
/// # Examples
///
/// ```
/// use palisade_client::router::{
///     Call, CallId, FIRST_WINDOW, ReadMode, Router, RouterConfig, RouterEffect, RouterInput,
/// };
/// use palisade_client::{NodeAddress, PeerAddress, Timestamp, Topology};
/// use palisade_wire::{Outcome, Rejection, Request, Response, SessionId};
///
/// let at = PeerAddress::default();
/// let nodes = vec![NodeAddress { node: at.node, client: vec![([127, 0, 0, 1], 7000).into()] }];
/// let ranges = palisade_control::range_map_of_one(at);
/// let mut router = Router::new(RouterConfig {
///     topology: Topology { cluster_id: 1, nodes, ranges, now_ts: None },
///     session: SessionId(1),
///     now_ts: Timestamp::ZERO,
///     now_us: 0,
///     first_window: FIRST_WINDOW,
///     random: fastrand::Rng::with_seed(1),
///     fresh_session: Box::new(|| None),
/// });
/// let mut effects = Vec::new();
/// router.step(RouterInput::Connected(at), 0, &mut effects);
///
/// let call = Call::Get { key: "key".into(), mode: ReadMode::Latest };
/// let (id, deadline_us, timeout_us) = (CallId(1), 1_000_000, 1_000_000);
/// router.step(RouterInput::Start { id, call, deadline_us, timeout_us }, 0, &mut effects);
/// let Some(RouterEffect::Send { request, .. }) = effects.pop() else { panic!("it is sent") };
///
/// // The shard has no room for the request, so it is sent again after a pause.
/// let outcome = Outcome::Rejected(Rejection::Overloaded);
/// let response = Response { request_id: request.request_id, outcome };
/// router.step(RouterInput::Answer { from: at, response }, 200, &mut effects);
/// assert!(effects.is_empty());
/// assert_eq!(router.next_due_us(), Some(1_200));
/// router.step(RouterInput::Tick, 1_200, &mut effects);
/// let request = Request { limit_us: 998_800, ..request };
/// assert_eq!(effects, [RouterEffect::Send { to: at, request }]);
/// ```
pub struct Router {
    routes: Routes,
    sessions: Sessions,
    requests: Requests,
    windows: Windows,
    /// Windows in which places have become free for requests that wait.
    freed: Vec<WindowKey>,
    next_request: u64,
    /// When the range map was requested last.
    refreshed_us: Option<u64>,
    retries: u64,
    retry_budget: RetryBudget,
    fresh_session: Box<dyn FnMut() -> Option<SessionId> + Send>,
    /// The time of the present step, and its effects so far. Empty between steps.
    now_us: u64,
    effects: Vec<RouterEffect>,
}

impl Router {
    /// Creates a router without connections.
    ///
    /// # Panics
    ///
    /// If the topology lists more than 65,536 shards of one node, which no node can have.
    pub fn new(config: RouterConfig) -> Self {
        let RouterConfig { topology, session, now_ts, now_us, .. } = config;
        let RouterConfig { first_window, random, fresh_session, .. } = config;
        let now_ts = topology.now_ts.unwrap_or(now_ts);
        Self {
            routes: Routes::new(topology, random),
            sessions: Sessions::new(session, now_ts, now_us),
            requests: Requests::default(),
            windows: Windows::new(first_window),
            freed: Vec::new(),
            next_request: 1,
            refreshed_us: None,
            retries: 0,
            retry_budget: RetryBudget::new(now_us),
            fresh_session,
            now_us,
            effects: Vec::new(),
        }
    }

    /// Processes an input at the monotonic time `now_us`, and appends its effects.
    ///
    /// # Panics
    ///
    /// If a commit has neither parts nor locks.
    pub fn step(&mut self, input: RouterInput, now_us: u64, effects: &mut Vec<RouterEffect>) {
        self.now_us = now_us;
        mem::swap(&mut self.effects, effects);
        match input {
            RouterInput::Start { id, call, deadline_us, timeout_us } => {
                self.start(id, call, deadline_us, timeout_us);
            }
            RouterInput::Answer { from, response } => self.answer(from, response),
            RouterInput::Progressed(at) => self.routes.links.progressed(at, now_us),
            RouterInput::Connected(at) => self.routes.links.open(at),
            RouterInput::Disconnected(at) => self.disconnected(at),
            RouterInput::NotSent { to, request_id } => {
                self.routes.links.not_sent(to);
                self.try_elsewhere(request_id, "the shard accepts no request");
            }
            RouterInput::KeepVersions(at_ts) => self.keep_versions(at_ts),
            RouterInput::Tick => self.tick(),
        }
        while let Some(key) = self.freed.pop() {
            self.send_held_back(key);
        }
        mem::swap(&mut self.effects, effects);
    }

    /// Returns the time at which the next `Tick` is due, or `None` if nothing waits for time to
    /// pass. Each step may change it. The tick may find that nothing is due yet.
    pub fn next_due_us(&self) -> Option<u64> {
        let retry_us = self.requests.next_retry_us().max(self.retry_budget.ready_us());
        let due_us = retry_us.min(self.requests.next_deadline_us());
        let due_us = due_us.min(self.routes.links.next_due_us());
        (due_us < u64::MAX).then_some(due_us)
    }

    /// Returns how many requests were retried, because they were rejected or a connection broke.
    pub fn retries(&self) -> u64 {
        self.retries
    }

    /// Returns the cluster, as the router knows it now.
    pub fn topology(&self) -> &Topology {
        &self.routes.topology
    }

    /// Returns all shards of the cluster. The driver keeps a connection to each.
    pub fn shards(&self) -> &[PeerAddress] {
        &self.routes.shards
    }

    /// Starts a call: names it if it is a commit, and sends it.
    fn start(&mut self, id: CallId, call: Call, deadline_us: u64, timeout_us: u64) {
        if let Call::Topology = call {
            let topology = self.topology().to_bytes();
            return self.complete(id, Ok(Outcome::RangeMap(topology)));
        }
        if deadline_us <= self.now_us {
            let (after, reason) = (Duration::from_micros(timeout_us), "it was not sent in time");
            let error = ClientError::Deadline { after, reason, outcome_unknown: false };
            return self.complete(id, Err(error));
        }
        if self.requests.is_full() && !call.is_urgent() {
            return self.complete(id, Err(ClientError::TooManyCalls));
        }
        if let Call::Rollback(locks) = &call {
            // A read of the transaction that is sent later would take its locks once more.
            while let Some(request_id) = self.requests.locking_for(locks.claim.owner) {
                self.finish(request_id, Err(ClientError::Aborted));
            }
        }
        let mut commit = None;
        let place = self.routes.place(&call);
        if let Some((range, _)) = place {
            if !self.routes.is_within(range, &call) {
                return self.complete(id, Err(ClientError::SeveralRanges));
            }
            if let Call::Commit { .. } = call {
                commit = Some(self.name_commit(range));
            }
        }
        let request_id = self.next_request_id();
        let pending = Pending {
            id,
            bytes: call.bytes(),
            window: None,
            call,
            commit,
            deadline_us,
            timeout_us,
            retry_us: None,
            tries: 0,
            at: None,
            is_forwarded: false,
            sent_us: 0,
            reason: "the shard did not answer",
            may_have_run: false,
            collected_at: Vec::new(),
        };
        self.requests.insert(request_id, pending);
        self.dispatch(request_id, place);
    }

    fn name_commit(&mut self, range: RangeId) -> PendingCommit {
        if self.sessions.is_wide(range) {
            self.renew_session();
        }
        PendingCommit { txn: self.sessions.begin(range), range, expires_ts: None }
    }

    /// Sends a request again, to the replica that serves it now.
    fn dispatch_again(&mut self, request_id: u64) {
        let Some(pending) = self.requests.get_mut(request_id) else { return };
        let place = self.routes.place(&pending.call);
        self.dispatch(request_id, place);
    }

    /// Sends a request to the replica that serves it, according to the client's view. `place` is
    /// that of its call.
    fn dispatch(&mut self, request_id: u64, place: Option<Place>) {
        let Some(pending) = self.requests.get_mut(request_id) else { return };
        if let Some(commit) = &mut pending.commit {
            // What is left of the time limit: the call may have begun long ago.
            let left_us = pending.deadline_us.saturating_sub(self.now_us);
            let fresh_ts = self.sessions.expires_ts(left_us, self.now_us);
            commit.expires_ts.get_or_insert(fresh_ts);
        }
        pending.leave(&mut self.windows, &mut self.freed);
        pending.at = self.routes.target(&pending.call, place);
        pending.sent_us = self.now_us;
        let mut open = pending.at.filter(|at| self.routes.links.is_open(*at));
        pending.is_forwarded = open.is_none() && pending.tries >= FORWARD_AFTER;
        if pending.is_forwarded {
            open = place.and_then(|(range, _)| self.routes.member(range, &[]));
            pending.at = open.or(pending.at);
        }
        let Some(at) = open else {
            return self.try_elsewhere(request_id, "the node does not answer");
        };
        if let Some((range, _)) = place {
            let window = self.windows.get((at, range));
            pending.window = Some((at, range));
            if !pending.call.is_urgent() && !window.has_room() {
                pending.at = None;
                pending.reason = "the shard is overloaded";
                return window.hold_back(pending.start_us(), request_id);
            }
            window.enter(pending.bytes);
        }
        let request = pending.request(request_id, place, &self.sessions, self.now_us);
        self.send(at, request);
    }

    /// Sends the requests that a window has room for.
    fn send_held_back(&mut self, key: WindowKey) {
        while self.windows.get(key).has_room()
            && let Some(request_id) = self.windows.get(key).next(self.now_us)
        {
            self.release(request_id);
        }
    }

    /// Sends a request that was held back and is not any more.
    fn release(&mut self, request_id: u64) {
        if let Some(pending) = self.requests.get_mut(request_id) {
            pending.window = None;
            self.dispatch_again(request_id);
        }
    }

    fn answer(&mut self, from: PeerAddress, response: Response) {
        let Response { request_id, outcome } = response;
        let pending = self.requests.get_mut(request_id);
        let latency_us = pending.map(|pending| self.now_us.saturating_sub(pending.sent_us));
        let key = self.requests.get_mut(request_id).and_then(|pending| pending.window);
        if let (Some(key), Some(latency_us)) = (key, latency_us) {
            let is_overloaded = outcome == Outcome::Rejected(Rejection::Overloaded);
            self.windows.get(key).answered(is_overloaded, latency_us, self.now_us);
        }
        self.routes.links.heard(from, latency_us, self.now_us);
        if let Outcome::RangeMap(topology) = &outcome {
            self.learn(topology);
        }
        match outcome {
            Outcome::Rejected(rejection) => self.rejected(from, request_id, rejection),
            outcome => {
                self.retry_budget.served();
                self.finish(request_id, Ok(outcome));
            }
        }
    }

    /// Takes in the topology that a shard returned, however late.
    fn learn(&mut self, topology: &Bytes) {
        if let Ok(later) = Topology::from_bytes(topology) {
            if let Some(now_ts) = later.now_ts {
                self.sessions.learn(now_ts, self.now_us);
            }
            for descriptor in later.ranges.ranges() {
                self.routes.topology.ranges.install(descriptor);
            }
        }
    }

    fn rejected(&mut self, from: PeerAddress, request_id: u64, rejection: Rejection) {
        // The call has ended, nothing waits for this answer, or its try was given up already.
        let pending = self.requests.get_mut(request_id);
        let pending = pending.filter(|pending| pending.at == Some(from));
        let Some(pending) = pending else { return };
        let may_have_run = pending.may_have_run;
        if rejection.is_retryable() {
            self.retries += 1;
            pending.may_have_run |= rejection.is_outcome_unknown();
            // A replica may lack the state that a read needs. The sequencer has all of it.
            pending.call.read_at_sequencer();
        }
        let refused = |rejection| Err(ClientError::Rejected(rejection));
        match rejection {
            Rejection::Aborted => self.finish(request_id, Err(ClientError::Aborted)),
            Rejection::Collected => self.ask_another_replica(request_id),
            Rejection::Expired | Rejection::LifetimeTooLong if !may_have_run => {
                self.name_new_expiry(request_id);
            }
            Rejection::InvalidChange | Rejection::LifetimeTooLong | Rejection::StateTooLarge
                if may_have_run =>
            {
                // An earlier try may have made this change, or committed.
                self.finish(request_id, refused(Rejection::Unknown));
            }
            Rejection::NotServing { hint: Some(hint) } => self.follow(request_id, hint),
            Rejection::Overloaded
            | Rejection::LogFull
            | Rejection::TooManyOutcomes
            | Rejection::Locked => {
                self.dispatch_later(request_id, reason(rejection));
            }
            _ if rejection.is_retryable() => self.try_elsewhere(request_id, reason(rejection)),
            _ => self.finish(request_id, refused(rejection)),
        }
    }

    /// Sends a read to another replica, because one no longer keeps its versions. A replica that
    /// was restarted or received a snapshot has only newer versions; the others may still have
    /// these.
    fn ask_another_replica(&mut self, request_id: u64) {
        let Some(pending) = self.requests.get_mut(request_id) else { return };
        pending.leave(&mut self.windows, &mut self.freed);
        pending.collected_at.extend(pending.at);
        let place = self.routes.place(&pending.call);
        let tried = &pending.collected_at;
        pending.at = place.and_then(|(range, _)| self.routes.member(range, tried));
        match pending.at {
            Some(at) => {
                let request = pending.request(request_id, place, &self.sessions, self.now_us);
                self.send(at, request);
            }
            None => self.finish(request_id, Err(ClientError::Rejected(Rejection::Collected))),
        }
    }

    /// Gives a commit a new expiry, because it had expired when a shard first received it, or its
    /// lifetime was too long. This client's estimate of the time is wrong, as after a suspend, so
    /// it requests the cluster's time first.
    fn name_new_expiry(&mut self, request_id: u64) {
        self.refreshed_us = None;
        self.refresh();
        let pending = self.requests.get_mut(request_id);
        if let Some(commit) = pending.and_then(|pending| pending.commit.as_mut()) {
            commit.expires_ts = None;
        }
        self.dispatch_later(request_id, "the time of the cluster is not known");
    }

    /// Sends a request, and later ones for its range, to the replica that a hint named.
    fn follow(&mut self, request_id: u64, hint: PeerAddress) {
        let Some(pending) = self.requests.get_mut(request_id) else { return };
        if let Some(place) = self.routes.place(&pending.call) {
            *self.routes.serving_at(place) = hint;
        }
        // Follow the first hint at once. A second one may lead in a circle.
        if pending.tries == 0 && pending.at != Some(hint) {
            pending.tries = 1;
            return self.dispatch_again(request_id);
        }
        let reason = pending.reason;
        self.refresh();
        self.dispatch_later(request_id, reason);
    }

    /// Tries the next member of the range, after a pause.
    fn try_elsewhere(&mut self, request_id: u64, reason: &'static str) {
        let Some(pending) = self.requests.get_mut(request_id) else { return };
        if let Call::Status(_) = pending.call {
            return self.finish(request_id, Err(ClientError::NodeDown));
        }
        if let Some(place) = self.routes.place(&pending.call) {
            self.routes.pass_over(place, pending.at);
        }
        self.refresh();
        self.dispatch_later(request_id, reason);
    }

    /// Makes a request wait for its next try.
    fn dispatch_later(&mut self, request_id: u64, reason: &'static str) {
        let Some(pending) = self.requests.get_mut(request_id) else { return };
        pending.leave(&mut self.windows, &mut self.freed);
        pending.at = None;
        pending.tries += 1;
        pending.reason = reason;
        let retry_us = self.now_us + pause_us(pending.tries, &mut self.routes.random);
        self.requests.retry_at(request_id, retry_us);
    }

    /// Requests the range map from a random shard, at most once in [`REFRESH_PAUSE_US`].
    fn refresh(&mut self) {
        if self.refreshed_us.is_some_and(|last_us| self.now_us < last_us + REFRESH_PAUSE_US) {
            return;
        }
        self.refreshed_us = Some(self.now_us);
        // If that shard is not connected, the next refresh uses another random one.
        let at = self.routes.random_shard();
        if let Some(at) = at.filter(|at| self.routes.links.is_open(*at)) {
            let request_id = self.next_request_id();
            self.send(at, Request::new(request_id, Operation::RangeMap));
        }
    }

    /// Sends a request that every shard answers in its next turn. It asks for versions so old that
    /// no shard keeps them, so it has no effect.
    fn probe(&mut self, at: PeerAddress) {
        let operation = Operation::KeepVersions { at_ts: Timestamp::ZERO };
        let request = Request::new(self.next_request_id(), operation);
        self.send(at, request);
    }

    /// Makes every shard keep the versions at `at_ts`. A shard that is not connected gets the next
    /// renewal.
    fn keep_versions(&mut self, at_ts: Timestamp) {
        for at in self.routes.links.shards().collect::<Vec<_>>() {
            let operation = Operation::KeepVersions { at_ts };
            let request = Request::new(self.next_request_id(), operation);
            self.send(at, request);
        }
    }

    /// Retries all requests that were sent on a connection.
    fn disconnected(&mut self, at: PeerAddress) {
        self.routes.links.close(at);
        self.renew_session();
        for request_id in self.requests.lose(at) {
            self.retries += 1;
            self.try_elsewhere(request_id, "the connection broke");
        }
        for request_id in self.windows.take_all(at) {
            self.release(request_id);
        }
    }

    /// Uses a new session for further commits.
    fn renew_session(&mut self) {
        if let Some(session) = (self.fresh_session)() {
            self.sessions.renew(session);
        }
    }

    /// Ends the calls whose deadline has passed, sends the requests whose pause is over, and closes
    /// the connections to silent shards.
    fn tick(&mut self) {
        for request_id in self.requests.late(self.now_us) {
            if let Some(pending) = self.requests.get_mut(request_id) {
                let error = pending.late();
                self.finish(request_id, Err(error));
            }
        }
        while self.requests.next_retry_us() <= self.now_us
            && self.retry_budget.take(self.now_us)
            && let Some(request_id) = self.requests.take_retry(self.now_us)
        {
            self.dispatch_again(request_id);
        }
        while let Some((at, due)) = self.routes.links.take_due(self.now_us) {
            match due {
                Due::Probe => self.probe(at),
                Due::Close => self.effects.push(RouterEffect::Reconnect(at)),
            }
        }
    }

    /// Removes a request and completes its call. An answer to an earlier try may have done so
    /// already.
    fn finish(&mut self, request_id: u64, result: Result<Outcome, ClientError>) {
        let Some(mut pending) = self.requests.remove(request_id) else { return };
        if let (None, Some(key)) = (pending.at, pending.window) {
            self.windows.get(key).remove(pending.start_us(), request_id);
        }
        pending.leave(&mut self.windows, &mut self.freed);
        if let Some(PendingCommit { txn, range, .. }) = pending.commit {
            self.sessions.end(txn, range);
        }
        self.complete(pending.id, result);
    }

    fn complete(&mut self, id: CallId, result: Result<Outcome, ClientError>) {
        self.effects.push(RouterEffect::Complete { id, result });
    }

    fn send(&mut self, to: PeerAddress, request: Request) {
        self.routes.links.sent(to, self.now_us);
        self.effects.push(RouterEffect::Send { to, request });
    }

    fn next_request_id(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request - 1
    }
}

#[cfg(test)]
mod tests;
