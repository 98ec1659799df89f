//! Clients: each has one operation at a time, and retries it until it is answered or given up.

mod replies;
mod timestamps;

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::{RangeDescriptor, RangeMap};
use palisade_history::{
    Action, Completion, Operation as Recorded, TimestampedOperation, timestamps::Order,
};
use palisade_shard::ConnectionId;
use palisade_wire::{
    Commit, CommitRequest, Expected, LockClaim, Mode, Operation, PeerAddress, RangeId, ReadKind,
    Request, ScanRequest, SessionId, TxnId,
};

use crate::{
    clock::timestamp,
    interactive::Interactive,
    invariants::{ExternalConsistency, Pairs, Transactions},
    parameters::{Parameters, stream},
    snapshot_reads::SnapshotReads,
};

/// Request id for repeats of committed transactions with locks.
const COMMITTED: u64 = u64::MAX - 1;

/// Backoff after a rejection: this long, or up to twice as long.
const BACKOFF_US: u64 = 20_000;

/// A request to be sent to a shard.
#[derive(Clone, Debug)]
pub(crate) struct ClientSend {
    pub(crate) to: PeerAddress,
    pub(crate) connection: ConnectionId,
    pub(crate) request: Request,
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
    ranges: Vec<Range>,
    keys: Vec<(Bytes, usize)>,
    think_us: u64,
    attempt_us: u64,
    timeout_us: u64,
    read_percent: u32,
    value_bytes: usize,
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
    /// A timestamp at which a client has read.
    read_at: Option<Timestamp>,
    /// Commits that have ended: the place of the range, the request and the lock claim. They are
    /// sent again at random; one that was acknowledged must have no further effect.
    old: Vec<(usize, CommitRequest, Option<LockClaim>)>,
}

/// A range, as all clients know it.
#[derive(Debug)]
struct Range {
    range: RangeId,
    /// The first key of the range.
    start: Vec<u8>,
    mode: Mode,
    epoch: u64,
    members: Vec<PeerAddress>,
    /// The replica that answered last or that a rejection named as the leader. Used in Raft mode.
    leader: Option<PeerAddress>,
}

#[derive(Debug)]
struct Client {
    process: u32,
    session: SessionId,
    sequence: u64,
    next_request: u64,
    due_us: u64,
    current: Option<Current>,
    /// The latest timestamp that the client has seen or written.
    seen_ts: Timestamp,
    /// Number of lock owner ids used so far: one for each try of a transaction.
    owners: u64,
    /// The transaction in progress, if the operation is one.
    transaction: Option<Interactive>,
    snapshot: Option<SnapshotReads>,
    /// Sends most requests to one fixed replica of a range, even if another leads. Such a client is
    /// the first to see a stale replica.
    is_stubborn: bool,
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
    /// The largest timestamp that any client knew when the current try began.
    known_ts: Timestamp,
    /// When its commit expires: mostly after the client gives it up, sometimes before.
    expires_ts: Timestamp,
    first_request: u64,
    /// True if an attempt of the current try may have taken effect.
    may_have_run: bool,
}

impl Clients {
    pub(crate) fn new(parameters: &Parameters, ranges: &RangeMap) -> Self {
        let mut random = stream(parameters.seed, "workload");
        let keyed = &ranges.ranges()[1..];
        let of = |descriptor: &RangeDescriptor| Range {
            range: descriptor.range,
            start: descriptor.start.clone(),
            mode: descriptor.mode,
            epoch: descriptor.epoch,
            members: descriptor.members.clone(),
            leader: None,
        };
        let key = |number: u32| {
            let place = number as usize % keyed.len();
            let mut key = keyed[place].start.clone();
            key.extend_from_slice(&number.to_be_bytes());
            (Bytes::from(key), place)
        };
        let client = |number| Client {
            process: number,
            session: SessionId(random.u64(..)),
            sequence: 0,
            next_request: 0,
            due_us: random.u64(300_000..600_000),
            current: None,
            seen_ts: Timestamp::ZERO,
            owners: 0,
            transaction: None,
            snapshot: None,
            is_stubborn: random.bool(),
        };
        Self {
            clients: (0..parameters.clients).map(client).collect(),
            random,
            ranges: keyed.iter().map(of).collect(),
            keys: (0..parameters.keys).map(key).collect(),
            think_us: parameters.think_us,
            attempt_us: parameters.attempt_us,
            timeout_us: parameters.timeout_us,
            read_percent: parameters.read_percent,
            value_bytes: parameters.value_bytes,
            next_value: 0,
            next_process: parameters.clients,
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

    /// Returns the earliest time at which a client has something to do, or `None`.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.clients.iter().map(|client| client.due_us).min().filter(|due_us| *due_us < u64::MAX)
    }

    /// Starts, retries or gives up the operations that are due.
    pub(crate) fn act(&mut self, now_us: u64, out: &mut Vec<ClientSend>) {
        for at in 0..self.clients.len() {
            if self.clients[at].due_us > now_us {
                continue;
            }
            match &self.clients[at].current {
                None if self.stopped => self.clients[at].due_us = u64::MAX,
                None => {
                    self.begin(at, now_us);
                    self.attempt(at, now_us, out);
                }
                Some(current) if self.stopped || current.start_us + self.timeout_us < now_us => {
                    self.give_up(at, now_us);
                }
                Some(_) => {
                    // The last attempt got no answer, or its backoff or think time has passed.
                    self.attempt(at, now_us, out);
                }
            }
        }
        if self.random.u8(0..32) == 0 && !self.old.is_empty() {
            self.repeat_an_old_one(out);
        }
    }

    fn begin(&mut self, at: usize, now_us: u64) {
        let mut task = self.draw_task();
        let expires_ts = self.expires_ts(now_us);
        let client = &mut self.clients[at];
        client.sequence += 1;
        if let Task::Snapshot { place } = &mut task {
            let (random, places) = (&mut self.random, self.ranges.len());
            let drawn =
                SnapshotReads::draw(random, places, self.cells, self.read_at, client.seen_ts);
            *place = drawn.place().expect("there is something to read");
            client.snapshot = Some(drawn);
        }
        if let Task::Transaction { place } = task {
            let owner = client.next_owner();
            let (random, next_value) = (&mut self.random, &mut self.next_value);
            let drawn = Interactive::draw(random, place, self.cells, owner, next_value);
            client.transaction = Some(drawn);
        }
        let first_request = client.next_request;
        let known_ts = self.timestamps.known_ts();
        client.current = Some(Current {
            task,
            start_us: now_us,
            try_us: now_us,
            known_ts,
            expires_ts,
            first_request,
            may_have_run: false,
        });
    }

    /// Draws when a commit that begins now expires, in true time.
    fn expires_ts(&mut self, now_us: u64) -> Timestamp {
        let lives_us = if self.random.u8(0..8) == 0 {
            self.random.u64(0..self.timeout_us)
        } else {
            self.timeout_us + self.random.u64(0..5_000_000)
        };
        timestamp(now_us + lives_us)
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

    fn command(&self, at: usize) -> Option<CommitRequest> {
        let client = &self.clients[at];
        let current = client.current.as_ref()?;
        let mut commit = Commit::new();
        match current.task {
            Task::Register { key, value, .. } => {
                let key = self.keys[key].0.clone();
                commit = commit.put(key, self.value(value?));
            }
            Task::Pair { action: PairAction::Read { .. } | PairAction::Scan { .. }, .. }
            | Task::Snapshot { .. } => return None,
            Task::Transaction { place } => {
                let transaction = client.transaction.as_ref()?;
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
        Some(CommitRequest {
            txn: TxnId { session: client.session, sequence: client.sequence },
            settled_below: client.sequence,
            expires_ts: current.expires_ts,
            commit,
        })
    }

    fn attempt(&mut self, at: usize, now_us: u64, out: &mut Vec<ClientSend>) {
        let command = self.command(at);
        let Some(task) = self.clients[at].current.as_ref().map(|current| current.task) else {
            return;
        };
        let place = self.place(task);
        let key = match task {
            Task::Register { key, .. } => self.keys[key].0.clone(),
            Task::Pair { action: PairAction::Read { second }, .. } => self.pair_key(place, second),
            Task::Pair { .. } => self.pair_key(place, false),
            Task::Transaction { .. } | Task::Snapshot { .. } => Bytes::new(),
        };
        let client = &mut self.clients[at];
        let Some(current) = &mut client.current else { return };
        let range = &mut self.ranges[place];
        let stubborn = client.is_stubborn && self.random.u8(0..4) > 0;
        let to = if stubborn {
            range.members[at % range.members.len()]
        } else {
            let at_tail = matches!(task, Task::Register { of_key: true, .. });
            let any_may_serve =
                client.snapshot.as_ref().is_some_and(SnapshotReads::any_replica_may_serve);
            let any_member = self.random.usize(0..range.members.len());
            if any_may_serve && self.random.bool() {
                range.members[any_member]
            } else {
                range.serves(!at_tail, &mut self.random)
            }
        };
        // If this attempt is lost, the next one in Raft mode tries a random replica.
        range.leader = None;
        if let Some(transaction) = &client.transaction
            && command.is_some()
            && !current.may_have_run
        {
            self.transactions[place].commits(&transaction.writes);
        }
        current.may_have_run |= command.is_some();
        let claim = client.transaction.as_ref().and_then(Interactive::locks);
        let step = match (&client.transaction, &client.snapshot) {
            (Some(transaction), _) => transaction.operation(range.range, &range.start),
            (None, Some(snapshot)) => snapshot.operation(range.range, &range.start),
            (None, None) => None,
        };
        let range = range.range;
        let operation = match (command, task) {
            (Some(request), _) => Operation::Commit { range, request, claim },
            (None, Task::Transaction { .. } | Task::Snapshot { .. }) => {
                step.expect("what is not over has a step to do")
            }
            (None, Task::Pair { action: PairAction::Scan { backward }, .. }) => {
                let end = Some([&key[..key.len() - 1], b"z"].concat().into());
                let scan = ScanRequest { range, begin: key, end, backward, max_rows: 9 };
                Operation::Scan { scan, kind: ReadKind::Latest }
            }
            (None, Task::Register { of_key: true, .. }) => {
                Operation::Get { range, key, kind: ReadKind::LatestOfKey }
            }
            (None, _) => Operation::Get { range, key, kind: ReadKind::Latest },
        };
        let request = Request { request_id: client.next_request, operation };
        client.next_request += 1;
        client.due_us = now_us + self.attempt_us;
        out.push(ClientSend { to, connection: ConnectionId(at as u64), request });
    }

    fn repeat_an_old_one(&mut self, out: &mut Vec<ClientSend>) {
        let (place, command, claim) = self.old[self.random.usize(0..self.old.len())].clone();
        let range = &self.ranges[place];
        let to = if self.random.bool() {
            range.serves(true, &mut self.random)
        } else {
            range.members[self.random.usize(0..range.members.len())]
        };
        // A commit with locks is repeated only if it was committed.
        let request_id = if claim.is_some() { COMMITTED } else { u64::MAX };
        let operation = Operation::Commit { range: range.range, request: command, claim };
        let request = Request { request_id, operation };
        out.push(ClientSend { to, connection: ConnectionId(0), request });
    }

    /// Ends an operation, and adds it to the history if it is on a register.
    fn finish(&mut self, at: usize, now_us: u64, action: Action, outcome: Completion) {
        let client = &self.clients[at];
        let current = client.current.as_ref().expect("there was an operation");
        if let Task::Register { key, .. } = current.task {
            self.history.push(Recorded {
                process: client.process,
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
        let command = self.command(at);
        let current = self.clients[at].current.take().expect("there was an operation");
        let transaction = self.clients[at].transaction.take();
        self.clients[at].snapshot = None;
        if let Some(command) = command {
            let place = self.place(current.task);
            let old = (place, command, transaction.as_ref().and_then(Interactive::locks));
            if self.old.len() < 64 {
                self.old.push(old);
            } else {
                let instead = self.random.usize(0..64);
                self.old[instead] = old;
            }
        }
        self.operations += 1;
        self.clients[at].due_us = now_us + self.random.u64(0..=2 * self.think_us);
    }

    /// Gives up the current operation: its outcome may stay unknown. The client goes on under a
    /// new process id and session.
    fn give_up(&mut self, at: usize, now_us: u64) {
        let Some(current) = &self.clients[at].current else { return };
        let task = current.task;
        let may_have_run = current.may_have_run;
        if may_have_run {
            self.record_without_effect(at, now_us, Order::Unknown);
        }
        match task {
            Task::Register { value: Some(value), .. } if may_have_run => {
                self.finish(at, now_us, Action::Write(value), Completion::Info);
            }
            _ => {
                self.clients[at].current = None;
                (self.clients[at].transaction, self.clients[at].snapshot) = (None, None);
                self.clients[at].due_us = now_us + 1;
            }
        }
        let (process, session) = (self.next_process, SessionId(self.random.u64(..)));
        self.next_process += 1;
        let client = &mut self.clients[at];
        (client.process, client.session, client.sequence) = (process, session, 0);
    }

    /// Gives up all pending operations, and starts no more.
    pub(crate) fn stop(&mut self, now_us: u64) {
        self.stopped = true;
        for at in 0..self.clients.len() {
            self.give_up(at, now_us);
        }
    }

    /// Takes in a range descriptor, if its epoch is newer than the known one.
    pub(crate) fn range_changed(&mut self, descriptor: &RangeDescriptor) {
        let known = self.ranges.iter_mut().find(|range| range.range == descriptor.range);
        if let Some(range) = known.filter(|range| range.epoch < descriptor.epoch) {
            range.epoch = descriptor.epoch;
            range.members.clone_from(&descriptor.members);
        }
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

impl Client {
    /// Returns the lock owner id for the next try of a transaction.
    fn next_owner(&mut self) -> TxnId {
        self.owners += 1;
        TxnId { session: SessionId(!self.session.0), sequence: self.owners }
    }
}

impl Range {
    /// Returns the replica to send to, as far as it is known: the one that sequences writes if
    /// `sequenced`, else Raft's leader or the chain's tail. One request in eight goes to a random
    /// member.
    fn serves(&self, sequenced: bool, random: &mut fastrand::Rng) -> PeerAddress {
        let any_member = self.members[random.usize(0..self.members.len())];
        if random.u8(0..8) == 0 {
            return any_member;
        }
        match self.mode {
            Mode::Raft => self.leader.unwrap_or(any_member),
            Mode::Chain if sequenced => self.members[0],
            Mode::Chain => *self.members.last().expect("a chain has members"),
        }
    }
}
