//! Clients: one operation at a time each, tried until it is answered or given up.

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::{RangeDescriptor, RangeMap};
use palisade_history::{Action, Operation as Recorded, Outcome as Known};
use palisade_shard::ConnectionId;
use palisade_wire::{
    Mode, Operation, Outcome, PeerAddress, PutCommand, RangeId, Rejection, Request, Response,
    SessionId, TxnId,
};

use crate::{
    Violation,
    invariants::{ExternalConsistency, named},
    parameters::{Parameters, stream},
};

/// An attempt without an answer is followed by another after this.
const ATTEMPT_US: u64 = 300_000;

/// After a refusal the next attempt comes after this, or up to twice as long.
const BACKOFF_US: u64 = 20_000;

/// A request on its way to a shard.
#[derive(Clone, Debug)]
pub(crate) struct ClientSend {
    pub(crate) to: PeerAddress,
    pub(crate) connection: ConnectionId,
    pub(crate) request: Request,
}

#[derive(Debug)]
pub(crate) struct Clients {
    random: fastrand::Rng,
    clients: Vec<Client>,
    ranges: Vec<Range>,
    keys: Vec<(Bytes, usize)>,
    think_us: u64,
    timeout_us: u64,
    read_percent: u32,
    value_bytes: usize,
    next_value: u64,
    next_process: u32,
    stopped: bool,
    history: Vec<Recorded>,
    timestamps: ExternalConsistency,
    /// Writes that are settled: sent again now and then, to no effect.
    old: Vec<(usize, PutCommand)>,
}

/// A range, as the clients know it.
#[derive(Debug)]
struct Range {
    range: RangeId,
    mode: Mode,
    epoch: u64,
    members: Vec<PeerAddress>,
    /// Who answered last, in Raft mode.
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
    /// Asks the same replica over and over, whoever leads: the first to see a stale one.
    is_stubborn: bool,
}

#[derive(Debug)]
struct Current {
    key: usize,
    /// The value of a put.
    value: Option<u64>,
    start_us: u64,
    /// The largest timestamp that anybody knew of then.
    known_ts: Timestamp,
    first_request: u64,
    /// Whether an attempt may have taken effect.
    may_have_run: bool,
}

impl Clients {
    pub(crate) fn new(parameters: &Parameters, ranges: &RangeMap) -> Self {
        let mut random = stream(parameters.seed, "workload");
        let keyed = &ranges.ranges()[1..];
        let of = |descriptor: &RangeDescriptor| Range {
            range: descriptor.range,
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
            is_stubborn: random.bool(),
        };
        Self {
            clients: (0..parameters.clients).map(client).collect(),
            random,
            ranges: keyed.iter().map(of).collect(),
            keys: (0..parameters.keys).map(key).collect(),
            think_us: parameters.think_us,
            timeout_us: parameters.timeout_us,
            read_percent: parameters.read_percent,
            value_bytes: parameters.value_bytes,
            next_value: 0,
            next_process: parameters.clients,
            stopped: false,
            history: Vec::new(),
            timestamps: ExternalConsistency::default(),
            old: Vec::new(),
        }
    }

    /// When somebody has something to do.
    pub(crate) fn next_due_us(&self) -> Option<u64> {
        self.clients.iter().map(|client| client.due_us).min().filter(|due_us| *due_us < u64::MAX)
    }

    /// Does what is due.
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
                    // The last attempt was lost, or refused and waited.
                    self.attempt(at, now_us, out);
                }
            }
        }
        if self.random.u8(..) == 0 && !self.old.is_empty() {
            self.repeat_an_old_one(out);
        }
    }

    fn begin(&mut self, at: usize, now_us: u64) {
        let key = self.random.usize(0..self.keys.len());
        let read = self.random.u32(0..100) < self.read_percent;
        let value = (!read).then(|| {
            self.next_value += 1;
            self.next_value
        });
        let client = &mut self.clients[at];
        client.sequence += 1;
        let first_request = client.next_request;
        let known_ts = self.timestamps.known_ts();
        client.current = Some(Current {
            key,
            value,
            start_us: now_us,
            known_ts,
            first_request,
            may_have_run: false,
        });
    }

    fn command(&self, at: usize) -> Option<PutCommand> {
        let client = &self.clients[at];
        let current = client.current.as_ref()?;
        let mut bytes = vec![0; self.value_bytes.max(8)];
        bytes[..8].copy_from_slice(&current.value?.to_le_bytes());
        Some(PutCommand {
            txn: TxnId { session: client.session, sequence: client.sequence },
            settled_below: client.sequence,
            key: self.keys[current.key].0.clone(),
            value: bytes.into(),
        })
    }

    fn attempt(&mut self, at: usize, now_us: u64, out: &mut Vec<ClientSend>) {
        let command = self.command(at);
        let client = &mut self.clients[at];
        let Some(current) = &mut client.current else { return };
        let (key, place) = &self.keys[current.key];
        let range = &mut self.ranges[*place];
        let stubborn = client.is_stubborn && self.random.u8(0..4) > 0;
        let to = if stubborn {
            range.members[at % range.members.len()]
        } else {
            range.serves(command.is_some(), &mut self.random)
        };
        // Should it be lost, somebody else may know more.
        range.leader = None;
        current.may_have_run |= command.is_some();
        let range = range.range;
        let operation = match command {
            Some(command) => Operation::Put { range, command },
            None => Operation::Get { range, key: key.clone() },
        };
        let request = Request { request_id: client.next_request, operation };
        client.next_request += 1;
        client.due_us = now_us + ATTEMPT_US;
        out.push(ClientSend { to, connection: ConnectionId(at as u64), request });
    }

    fn repeat_an_old_one(&mut self, out: &mut Vec<ClientSend>) {
        let (place, command) = self.old[self.random.usize(0..self.old.len())].clone();
        let range = &self.ranges[place];
        let to = range.serves(true, &mut self.random);
        let operation = Operation::Put { range: range.range, command };
        let request = Request { request_id: u64::MAX, operation };
        out.push(ClientSend { to, connection: ConnectionId(0), request });
    }

    pub(crate) fn reply(
        &mut self,
        now_us: u64,
        from: PeerAddress,
        connection: ConnectionId,
        response: Response,
        out: &mut Vec<ClientSend>,
    ) -> Result<(), Violation> {
        let at = usize::try_from(connection.0).expect("clients are few");
        let Response { request_id, outcome } = response;
        let client = &mut self.clients[at];
        let Some(current) = &client.current else { return Ok(()) };
        if request_id < current.first_request || request_id >= client.next_request {
            // Of an earlier operation.
            return Ok(());
        }
        let checked = self.timestamps.check(&outcome, current.known_ts);
        named(ExternalConsistency::NAME, checked)?;
        let place = self.keys[current.key].1;
        match (outcome, current.value) {
            (Outcome::Committed { .. }, Some(value)) => {
                self.ranges[place].leader = Some(from);
                self.finish(at, now_us, Action::Write(value), Known::Ok);
            }
            (Outcome::Value(found), None) => {
                self.ranges[place].leader = Some(from);
                let value = found.map(|(_, value)| {
                    u64::from_le_bytes(*value.first_chunk().expect("values have eight bytes"))
                });
                self.finish(at, now_us, Action::Read(value), Known::Ok);
            }
            (Outcome::Rejected(Rejection::NotServing { hint: Some(hint) }), _) => {
                self.ranges[place].leader = Some(hint);
                if self.random.bool() {
                    self.attempt(at, now_us, out);
                } else {
                    client.due_us = now_us + BACKOFF_US;
                }
            }
            (Outcome::Rejected(_), _) => {
                client.due_us = now_us + self.random.u64(BACKOFF_US..2 * BACKOFF_US);
            }
            (outcome, _) => unreachable!("{outcome:?} answers no put and no get"),
        }
        Ok(())
    }

    fn finish(&mut self, at: usize, now_us: u64, action: Action, outcome: Known) {
        let command = self.command(at);
        let client = &mut self.clients[at];
        let current = client.current.take().expect("there was an operation");
        if let Some(command) = command {
            let place = self.keys[current.key].1;
            if self.old.len() < 64 {
                self.old.push((place, command));
            } else {
                let instead = self.random.usize(0..64);
                self.old[instead] = (place, command);
            }
        }
        self.history.push(Recorded {
            process: client.process,
            start_ns: current.start_us * 1_000,
            end_ns: now_us * 1_000 + 1,
            key: u32::try_from(current.key).expect("keys are few"),
            action,
            outcome,
        });
        client.due_us = now_us + self.random.u64(0..=2 * self.think_us);
    }

    /// Nobody knows what becomes of it: whoever asked goes on as somebody else.
    fn give_up(&mut self, at: usize, now_us: u64) {
        let Some(current) = &self.clients[at].current else { return };
        match current.value {
            Some(value) if current.may_have_run => {
                self.finish(at, now_us, Action::Write(value), Known::Info);
            }
            _ => {
                self.clients[at].current = None;
                self.clients[at].due_us = now_us + 1;
            }
        }
        let (process, session) = (self.next_process, SessionId(self.random.u64(..)));
        self.next_process += 1;
        let client = &mut self.clients[at];
        (client.process, client.session, client.sequence) = (process, session, 0);
    }

    /// No more operations; those under way are given up when their time comes next.
    pub(crate) fn stop(&mut self, now_us: u64) {
        self.stopped = true;
        for at in 0..self.clients.len() {
            self.give_up(at, now_us);
        }
    }

    /// The operator has changed a range.
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
}

impl Range {
    /// Who serves, as far as is known.
    fn serves(&self, write: bool, random: &mut fastrand::Rng) -> PeerAddress {
        let anybody = self.members[random.usize(0..self.members.len())];
        if random.u8(0..8) == 0 {
            return anybody;
        }
        match self.mode {
            Mode::Raft => self.leader.unwrap_or(anybody),
            Mode::Chain if write => self.members[0],
            Mode::Chain => *self.members.last().expect("a chain has members"),
        }
    }
}
