//! Callers and their clients. Each caller has one operation at a time, and makes the calls of it
//! through a client: the router of production, whose connections are simulated.

mod client;
mod connections;
mod replies;
mod timestamps;

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_client::router::{Call, CallId, ReadMode, RouterEffect, RouterInput, ScanSpan};
use palisade_clock::Timestamp;
use palisade_control::{RangeDescriptor, RangeMap};
use palisade_history::{
    Action, Completion, Operation as Recorded, TimestampedOperation, timestamps::Order,
};
use palisade_shard::ConnectionId;
use palisade_wire::{
    Commit, CommitRequest, Expected, Operation, Outcome, PeerAddress, RangeId, Rejection, Request,
    Response, SessionId, TxnId,
};

use crate::{
    Violation,
    interactive::Interactive,
    invariants::{ExternalConsistency, Pairs, Transactions, named},
    parameters::{FaultKind, Parameters, stream},
    snapshot_reads::SnapshotReads,
};
use client::{Client, Sent};

/// The connection on which commits that have ended are sent once more.
const REPEATS: ConnectionId = ConnectionId(0);

/// Request ids of repeated commits: of those without locks, and of transactions with locks.
const BLIND: u64 = 0;
const LOCKED: u64 = 1;

const CALLS_COMPLETE: &str = "each call completes once, by its deadline";

/// How late a client may notice a deadline: its events are not handled in between.
const MAX_LATE_US: u64 = 1_000_000;

/// A request to be sent to a shard.
#[derive(Clone, Debug)]
pub(crate) struct ClientSend {
    pub(crate) to: PeerAddress,
    pub(crate) connection: ConnectionId,
    pub(crate) request: Request,
    /// True if the connection breaks soon afterwards. The request arrives nevertheless.
    pub(crate) breaks: bool,
}

/// A commit of one put. Its session never reports that earlier outcomes may be forgotten.
pub(crate) fn put(
    range: RangeId,
    txn: TxnId,
    expires_ts: Timestamp,
    key: Bytes,
    value: Bytes,
) -> Operation {
    let commit = Commit::new().put(key, value);
    let request = CommitRequest { txn, settled_below: 0, expires_ts, commit };
    Operation::Commit { range, request, claim: None }
}

#[derive(Debug)]
pub(crate) struct Clients {
    random: fastrand::Rng,
    clients: Vec<Client>,
    callers: Vec<Caller>,
    /// The open connections: the client, and the shard.
    connections: BTreeMap<ConnectionId, (usize, PeerAddress)>,
    connections_opened: u64,
    /// The calls in flight: the caller, and the deadline on its client's clock.
    calls: BTreeMap<CallId, (usize, u64)>,
    calls_started: u64,
    /// Connections that a client closes now.
    closing: Vec<ConnectionId>,
    ranges: Vec<Range>,
    keys: Vec<(Bytes, usize)>,
    think_us: u64,
    timeout_us: u64,
    read_percent: u32,
    value_bytes: usize,
    /// Requests whose connection breaks soon after them, in parts of ten thousand.
    duplication: u32,
    suspends: bool,
    next_value: u64,
    next_process: u32,
    stopped: bool,
    history: Vec<Recorded>,
    /// The history of operations of all kinds, over all ranges.
    timestamped: Vec<TimestampedOperation>,
    operations: u64,
    timestamps: ExternalConsistency,
    /// One for each range.
    pairs: Vec<Pairs>,
    pair_percent: u32,
    /// One for each range.
    transactions: Vec<Transactions>,
    transaction_percent: u32,
    snapshot_percent: u32,
    cells: usize,
    /// A timestamp at which a caller has read.
    read_at: Option<Timestamp>,
    /// Commits that were answered. They are sent again at random, and must have no further effect.
    old: Vec<Sent>,
}

/// A range, as it was at first.
#[derive(Debug)]
struct Range {
    /// The first key of the range.
    start: Vec<u8>,
    members: Vec<PeerAddress>,
    range: RangeId,
}

#[derive(Debug)]
struct Caller {
    /// The place of its client.
    client: usize,
    /// The id of the caller in histories. It gets another one after an unknown outcome.
    process: u32,
    /// When it begins its next operation or call. `u64::MAX` during a call.
    due_us: u64,
    current: Option<Current>,
    /// The latest timestamp that the caller has seen or written.
    seen_ts: Timestamp,
    /// The session in its lock owner ids, and the number of them: one for each try of a
    /// transaction.
    owners: (SessionId, u64),
    /// The transaction in progress, if the operation is one.
    transaction: Option<Interactive>,
    snapshot: Option<SnapshotReads>,
}

/// The kind of an operation, and what it reads or writes.
#[derive(Clone, Copy, Debug)]
enum Task {
    /// A put or get of one key. The history of each key must be linearizable.
    Register {
        key: usize,
        /// The value of a put; `None` for a get.
        value: Option<u64>,
        /// True for a get that is linearizable for its key alone.
        of_key: bool,
    },
    /// An operation on the two keys of a range that are always written together.
    Pair { place: usize, known_ts: Timestamp, action: PairAction },
    /// A transaction, whose state is in `Client::transaction`.
    Transaction { place: usize },
    /// Reads at one timestamp, the next one in the range at `place`.
    Snapshot { place: usize },
}

#[derive(Clone, Copy, Debug)]
enum PairAction {
    /// Reads the first or the second key.
    Read { second: bool },
    /// Reads both keys with one scan.
    Scan { backward: bool },
    /// Writes or deletes both keys. With `expected`, only if both still have that version.
    Write { value: Option<u64>, expected: Option<Timestamp> },
}

#[derive(Debug)]
struct Current {
    task: Task,
    start_us: u64,
    /// When the current try began. Only transactions have several tries.
    try_us: u64,
    /// The largest timestamp that any caller knew when the current try began.
    known_ts: Timestamp,
    /// True if the commit of the current try was passed to the client.
    is_committing: bool,
}

impl Clients {
    pub(crate) fn new(parameters: &Parameters, ranges: &RangeMap) -> Self {
        let mut random = stream(parameters.seed, "workload");
        let keyed = &ranges.ranges()[1..];
        let of = |descriptor: &RangeDescriptor| Range {
            range: descriptor.range,
            start: descriptor.start.clone(),
            members: descriptor.members.clone(),
        };
        let key = |number: u32| {
            let place = number as usize % keyed.len();
            let mut key = keyed[place].start.clone();
            key.extend_from_slice(&number.to_be_bytes());
            (Bytes::from(key), place)
        };
        let clients = (0..parameters.clients).map(|_| Client::new(parameters, ranges, &mut random));
        let clients: Vec<_> = clients.collect();
        let caller = |number: u32| Caller {
            client: number as usize % clients.len(),
            process: number,
            due_us: random.u64(300_000..600_000),
            current: None,
            seen_ts: Timestamp::ZERO,
            owners: (SessionId(random.u64(..)), 0),
            transaction: None,
            snapshot: None,
        };
        Self {
            callers: (0..parameters.callers).map(caller).collect(),
            clients,
            connections: BTreeMap::new(),
            connections_opened: REPEATS.0,
            calls: BTreeMap::new(),
            calls_started: 0,
            closing: Vec::new(),
            random,
            ranges: keyed.iter().map(of).collect(),
            keys: (0..parameters.keys).map(key).collect(),
            think_us: parameters.think_us,
            timeout_us: parameters.timeout_us,
            read_percent: parameters.read_percent,
            value_bytes: parameters.value_bytes,
            duplication: parameters.duplication,
            suspends: parameters.faults.contains(&FaultKind::Pause),
            next_value: 0,
            next_process: parameters.callers,
            stopped: false,
            history: Vec::new(),
            timestamped: Vec::new(),
            operations: 0,
            timestamps: ExternalConsistency::default(),
            pairs: keyed.iter().map(|_| Pairs::default()).collect(),
            pair_percent: parameters.pair_percent,
            transactions: keyed.iter().map(|_| Transactions::default()).collect(),
            transaction_percent: parameters.transaction_percent,
            snapshot_percent: parameters.snapshot_percent,
            read_at: None,
            cells: parameters.cells,
            old: Vec::new(),
        }
    }

    /// Returns the earliest time at which a caller or client has something to do, or `None`.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        let callers = self
            .callers
            .iter()
            .map(|caller| caller.due_us.max(self.clients[caller.client].suspended_until_us()));
        let due_us = callers.chain(self.clients.iter().map(Client::due_us)).min();
        due_us.filter(|due_us| *due_us < u64::MAX)
    }

    /// Begins the operations and calls that are due, and lets the clients act on the time.
    pub(crate) fn act(&mut self, now_us: u64, out: &mut Vec<ClientSend>) -> Result<(), Violation> {
        for client in 0..self.clients.len() {
            if self.clients[client].due_us() <= now_us {
                self.step(client, RouterInput::Tick, now_us, out)?;
            }
        }
        for at in 0..self.callers.len() {
            let client = self.callers[at].client;
            if self.callers[at].due_us.max(self.clients[client].suspended_until_us()) > now_us {
                continue;
            }
            if self.stopped {
                self.callers[at].due_us = u64::MAX;
                continue;
            }
            if self.callers[at].current.is_none() {
                self.begin(at, now_us);
            }
            self.call(at, now_us, out)?;
            if self.suspends && self.random.u16(0..512) == 0 {
                self.clients[client].suspend(now_us, self.random.u64(0..20_000_000));
            }
        }
        if self.random.u8(0..32) == 0 && !self.old.is_empty() {
            self.repeat_an_old_one(out);
        }
        Ok(())
    }

    fn begin(&mut self, at: usize, now_us: u64) {
        let mut task = self.draw_task();
        let caller = &mut self.callers[at];
        if let Task::Snapshot { place } = &mut task {
            let (random, places) = (&mut self.random, self.ranges.len());
            let drawn =
                SnapshotReads::draw(random, places, self.cells, self.read_at, caller.seen_ts);
            *place = drawn.place().expect("there is something to read");
            caller.snapshot = Some(drawn);
        }
        if let Task::Transaction { place } = task {
            let owner = caller.next_owner();
            let (random, next_value) = (&mut self.random, &mut self.next_value);
            let drawn = Interactive::draw(random, place, self.cells, owner, next_value);
            caller.transaction = Some(drawn);
        }
        caller.current = Some(Current {
            task,
            start_us: now_us,
            try_us: now_us,
            known_ts: self.timestamps.known_ts(),
            is_committing: false,
        });
    }

    fn draw_task(&mut self) -> Task {
        if self.random.u32(0..100) < self.transaction_percent {
            return Task::Transaction { place: self.random.usize(0..self.ranges.len()) };
        }
        if self.random.u32(0..100) < self.snapshot_percent {
            return Task::Snapshot { place: 0 };
        }
        let read = self.random.u32(0..100) < self.read_percent;
        self.next_value += u64::from(!read);
        let value = (!read).then_some(self.next_value);
        if self.random.u32(0..100) >= self.pair_percent {
            let of_key = read && self.random.u8(0..4) == 0;
            return Task::Register { key: self.random.usize(0..self.keys.len()), value, of_key };
        }
        let place = self.random.usize(0..self.pairs.len());
        let pair = &self.pairs[place];
        let action = match value {
            None if self.random.bool() => PairAction::Scan { backward: self.random.bool() },
            None => PairAction::Read { second: self.random.bool() },
            Some(value) => {
                let expected = pair.known_version().filter(|_| self.random.bool());
                let value = (self.random.u8(0..5) > 0).then_some(value);
                PairAction::Write { value, expected }
            }
        };
        Task::Pair { place, known_ts: pair.known_ts(), action }
    }

    fn pair_key(&self, place: usize, second: bool) -> Bytes {
        [&self.ranges[place].start[..], if second { b"\0pair b" } else { b"\0pair a" }]
            .concat()
            .into()
    }

    fn value(&self, unique: u64) -> Bytes {
        let mut bytes = vec![0; self.value_bytes.max(8)];
        bytes[..8].copy_from_slice(&unique.to_le_bytes());
        bytes.into()
    }

    /// Returns the place of the range that a task reads or writes next.
    fn place(&self, task: Task) -> usize {
        match task {
            Task::Register { key, .. } => self.keys[key].1,
            Task::Pair { place, .. } | Task::Transaction { place } | Task::Snapshot { place } => {
                place
            }
        }
    }

    /// Returns the commit that a caller sends next, if its next call is one.
    fn commit(&self, at: usize) -> Option<Commit> {
        let caller = &self.callers[at];
        let mut commit = Commit::new();
        match caller.current.as_ref()?.task {
            Task::Register { key, value, .. } => {
                let key = self.keys[key].0.clone();
                commit = commit.put(key, self.value(value?));
            }
            Task::Pair { action: PairAction::Read { .. } | PairAction::Scan { .. }, .. }
            | Task::Snapshot { .. } => return None,
            Task::Transaction { place } => {
                let transaction = caller.transaction.as_ref()?;
                if !transaction.is_committing() {
                    return None;
                }
                let value = |unique| self.value(unique);
                commit = transaction.commit(&self.ranges[place].start, value);
            }
            Task::Pair { place, action: PairAction::Write { value, expected }, .. } => {
                for second in [false, true] {
                    let key = self.pair_key(place, second);
                    if let Some(expected) = expected.map(Expected::Version) {
                        commit = commit.expect(key.clone(), expected);
                    }
                    commit = match value {
                        None => commit.delete(key),
                        Some(value) => commit.put(key, self.value(value)),
                    };
                }
            }
        }
        Some(commit)
    }

    /// Makes the next call of a caller's operation.
    fn call(&mut self, at: usize, now_us: u64, out: &mut Vec<ClientSend>) -> Result<(), Violation> {
        let commit = self.commit(at);
        let current = self.callers[at].current.as_mut().expect("it has an operation");
        current.is_committing = commit.is_some();
        let task = current.task;
        let place = self.place(task);
        let start = &self.ranges[place].start;
        let caller = &self.callers[at];
        let call = match (commit, task) {
            (Some(commit), _) => {
                let locks = caller.transaction.as_ref().and_then(|t| t.locks(start));
                if let Some(transaction) = &caller.transaction {
                    self.transactions[place].commits(&transaction.writes);
                }
                Call::Commit { commit, locks }
            }
            (None, Task::Register { key, of_key, .. }) => {
                let mode = if of_key { ReadMode::LatestOfKey } else { ReadMode::Latest };
                Call::Get { key: self.keys[key].0.clone(), mode }
            }
            (None, Task::Pair { action: PairAction::Scan { backward }, .. }) => {
                let begin = self.pair_key(place, false);
                let end = Some([&begin[..begin.len() - 1], b"z"].concat().into());
                let span = ScanSpan { begin, end, backward, max_rows: 9 };
                Call::Scan { span, mode: ReadMode::Latest }
            }
            (None, Task::Pair { action, .. }) => {
                let second = matches!(action, PairAction::Read { second: true });
                Call::Get { key: self.pair_key(place, second), mode: ReadMode::Latest }
            }
            (None, Task::Transaction { .. }) => {
                let transaction = caller.transaction.as_ref().expect("it is the operation");
                transaction.call(start).expect("a step that is no commit")
            }
            (None, Task::Snapshot { .. }) => {
                let snapshot = caller.snapshot.as_ref().expect("it is the operation");
                let anywhere = snapshot.any_replica_may_serve() && self.random.bool();
                snapshot.call(start, anywhere).expect("what is not over has a read to do")
            }
        };
        self.callers[at].due_us = u64::MAX;
        self.calls_started += 1;
        let (client, id) = (self.callers[at].client, CallId(self.calls_started));
        let timeout_us = self.timeout_us;
        let deadline_us = self.clients[client].now_us(now_us) + timeout_us;
        self.calls.insert(id, (at, deadline_us));
        let start = RouterInput::Start { id, call, deadline_us, timeout_us };
        self.step(client, start, now_us, out)
    }

    /// Steps the router of a client, and carries out the effects.
    fn step(
        &mut self,
        client: usize,
        input: RouterInput,
        now_us: u64,
        out: &mut Vec<ClientSend>,
    ) -> Result<(), Violation> {
        for effect in self.clients[client].step(input, now_us) {
            match effect {
                RouterEffect::Send { to, request } => self.send(client, to, request, out),
                RouterEffect::Reconnect(at) => {
                    self.closing.extend(self.clients[client].connections.get(&at));
                }
                RouterEffect::Complete { id, result } => {
                    let Some((at, _)) = self.calls.remove(&id) else {
                        let detail = format!("{id:?} completes again: {result:?}");
                        return named(CALLS_COMPLETE, Err(detail));
                    };
                    self.completed(at, now_us, result)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a request of a client: sometimes to another member of the range, as if the client's
    /// view of the cluster were older, and sometimes on a connection that breaks soon. Then the
    /// client tries again, and the copies arrive in any order.
    fn send(
        &mut self,
        client: usize,
        to: PeerAddress,
        request: Request,
        out: &mut Vec<ClientSend>,
    ) {
        let (sender, random) = (&mut self.clients[client], &mut self.random);
        sender.sends(&request);
        let (to, connection) = sender.stray(to, &request, random);
        let breaks = random.u32(0..10_000) < self.duplication;
        out.push(ClientSend { to, connection, request, breaks });
    }

    /// Sends a commit once more that was answered.
    fn repeat_an_old_one(&mut self, out: &mut Vec<ClientSend>) {
        let Sent { range, request, claim } = self.old[self.random.usize(0..self.old.len())].clone();
        let place = self.ranges.iter().position(|known| known.range == range);
        let members = &self.ranges[place.expect("ranges are never removed")].members;
        let to = members[self.random.usize(0..members.len())];
        let request_id = if claim.is_some() { LOCKED } else { BLIND };
        let operation = Operation::Commit { range, request, claim };
        let request = Request::new(request_id, operation);
        out.push(ClientSend { to, connection: REPEATS, request, breaks: false });
    }

    /// Handles an answer that arrives on a connection.
    pub(crate) fn reply(
        &mut self,
        now_us: u64,
        connection: ConnectionId,
        response: Response,
        out: &mut Vec<ClientSend>,
    ) -> Result<(), Violation> {
        if connection == REPEATS {
            let is_aborted = response.outcome == Outcome::Rejected(Rejection::Aborted);
            if response.request_id == LOCKED && is_aborted {
                let detail = "a committed transaction is called aborted".to_owned();
                return named(Transactions::NAME, Err(detail));
            }
            return Ok(());
        }
        // An answer on a connection that is broken is lost.
        let Some((client, from)) = self.connections.get(&connection).copied() else {
            return Ok(());
        };
        if let Some(sent) = self.clients[client].answered(&response) {
            self.keep(sent);
        }
        let from = self.clients[client].answers_for(response.request_id, from);
        self.step(client, RouterInput::Answer { from, response }, now_us, out)
    }

    /// Keeps a commit that was answered, to repeat it later.
    fn keep(&mut self, sent: Sent) {
        if self.old.len() < 64 {
            self.old.push(sent);
        } else {
            let instead = self.random.usize(0..64);
            self.old[instead] = sent;
        }
    }

    /// Ends an operation, and adds it to the history if it is on a register.
    fn finish(&mut self, at: usize, now_us: u64, action: Action, outcome: Completion) {
        let caller = &self.callers[at];
        let current = caller.current.as_ref().expect("there was an operation");
        if let Task::Register { key, .. } = current.task {
            self.history.push(Recorded {
                process: caller.process,
                start_ns: current.start_us * 1_000,
                end_ns: now_us * 1_000 + 1,
                key: u32::try_from(key).expect("keys are few"),
                action,
                outcome,
            });
        }
        self.end(at, now_us);
    }

    fn end(&mut self, at: usize, now_us: u64) {
        self.operations += 1;
        let caller = &mut self.callers[at];
        (caller.current, caller.transaction, caller.snapshot) = (None, None, None);
        caller.due_us = now_us + self.random.u64(0..=2 * self.think_us);
    }

    /// Ends the current operation of a caller, whose outcome stays unknown. The caller continues
    /// under a new process id.
    fn give_up(&mut self, at: usize, now_us: u64) {
        let Some(current) = &self.callers[at].current else { return };
        let task = current.task;
        let may_have_run = current.is_committing;
        if may_have_run {
            self.record_without_effect(at, now_us, Order::Unknown);
        }
        match task {
            Task::Register { value: Some(value), .. } if may_have_run => {
                self.finish(at, now_us, Action::Write(value), Completion::Info);
            }
            _ => self.drop_operation(at, now_us),
        }
        self.callers[at].process = self.next_process;
        self.next_process += 1;
    }

    /// Ends the current operation of a caller without counting it.
    fn drop_operation(&mut self, at: usize, now_us: u64) {
        let caller = &mut self.callers[at];
        (caller.current, caller.transaction, caller.snapshot) = (None, None, None);
        caller.due_us = now_us + 1;
    }

    /// Gives up all pending operations, and starts no more. Checks that no call is overdue.
    pub(crate) fn stop(&mut self, now_us: u64) -> Result<(), Violation> {
        self.stopped = true;
        for at in 0..self.callers.len() {
            self.give_up(at, now_us);
        }
        let is_overdue = |(at, deadline_us): (usize, u64)| {
            let client = &self.clients[self.callers[at].client];
            client.now_us(now_us) > deadline_us + MAX_LATE_US
                && client.suspended_until_us() + MAX_LATE_US < now_us
        };
        let overdue = self.calls.iter().find(|(_, call)| is_overdue(**call));
        named(CALLS_COMPLETE, overdue.map_or(Ok(()), |(id, _)| Err(format!("{id:?} is overdue"))))
    }

    pub(crate) fn history(&self) -> &[Recorded] {
        &self.history
    }

    /// Returns the history of operations of all kinds, over all ranges.
    pub(crate) fn timestamped(&self) -> &[TimestampedOperation] {
        &self.timestamped
    }

    /// Returns the number of operations that have ended. Those that were given up do not count,
    /// except puts that may have taken effect.
    pub(crate) fn operations(&self) -> u64 {
        self.operations
    }
}

/// Returns the number that makes a value unique.
fn unique(value: &Bytes) -> u64 {
    u64::from_le_bytes(*value.first_chunk().expect("values have eight bytes"))
}

impl Caller {
    /// Returns the lock owner id for the next try of a transaction.
    fn next_owner(&mut self) -> TxnId {
        let (session, owners) = &mut self.owners;
        *owners += 1;
        TxnId { session: *session, sequence: *owners }
    }
}
