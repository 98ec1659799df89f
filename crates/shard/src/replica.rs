//! One replica of a range: its group, its state, and who waits for it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use palisade_clock::{Hlc, Now};
use palisade_control::RangeDescriptor;
use palisade_replication::{Append, Effects, Entry, Refusal, Send};
use palisade_txn::CommitCommand;
use palisade_wire::{Outcome, PutCommand, Rejection, Response, check_key, check_value};

use crate::{
    ConnectionId, PeerBody, ShardEffects, TestFault,
    group::Group,
    state_machine::{StateMachine, settled},
};

/// Requests that may wait at one replica.
const MAX_WAITING: usize = 64 * 1024;

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) connection: ConnectionId,
    pub(crate) request_id: u64,
}

#[derive(Debug)]
struct WaitingWrite {
    index: u64,
    term: u64,
    asker: Asker,
}

/// A replica of a range.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) group: Group,
    state: StateMachine,
    writes: VecDeque<WaitingWrite>,
    reads: BTreeMap<u64, (Asker, Bytes)>,
    next_token: u64,
    fault: Option<TestFault>,
    /// Writes of this group in the shard's log: how many of the shard's there were with them, and
    /// how many of the group's.
    pending: VecDeque<(u64, u64)>,
    appends: u64,
}

/// What the shard has to do for a replica at the end of a turn.
pub(crate) struct Outbox {
    pub(crate) appends: Vec<Append>,
    pub(crate) sends: Vec<Send<PeerBody>>,
    /// The writes of the shard up to this one hold everything that the group has asked for.
    pub(crate) written: u64,
}

impl Replica {
    pub(crate) fn new(
        descriptor: RangeDescriptor,
        group: Group,
        state: StateMachine,
        fault: Option<TestFault>,
    ) -> Self {
        Self {
            descriptor,
            group,
            state,
            writes: VecDeque::new(),
            reads: BTreeMap::new(),
            next_token: 0,
            fault,
            pending: VecDeque::new(),
            appends: 0,
        }
    }

    /// Orders a write, or says at once why not.
    pub(crate) fn put(
        &mut self,
        asker: Asker,
        put: PutCommand,
        hlc: &mut Hlc,
        now: Now,
    ) -> Result<(), Outcome> {
        check_key(&put.key).map_err(Outcome::Rejected)?;
        check_value(&put.value).map_err(Outcome::Rejected)?;
        if !self.descriptor.holds(&put.key) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        let proposed_ts = hlc.tick(now.wall);
        if self.group.orders_writes()
            && let Some(outcome) = settled(self.state.look_up(&put, proposed_ts))
        {
            return Err(outcome);
        }
        self.propose(asker, || CommitCommand { proposed_ts, put }.to_payload())
    }

    /// Orders a payload, or says at once why not.
    pub(crate) fn propose(
        &mut self,
        asker: Asker,
        payload: impl FnOnce() -> Bytes,
    ) -> Result<(), Outcome> {
        if self.writes.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        let (index, term) = self.group.propose(payload()).map_err(refused)?;
        self.writes.push_back(WaitingWrite { index, term, asker });
        Ok(())
    }

    /// Begins a read, or says at once why not.
    pub(crate) fn get(&mut self, asker: Asker, key: &[u8]) -> Result<(), Outcome> {
        check_key(key).map_err(Outcome::Rejected)?;
        if !self.descriptor.holds(key) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        if self.reads.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        self.next_token += 1;
        self.group.read(self.next_token).map_err(refused)?;
        // A copy: the key shares the memory of everything that arrived with it.
        self.reads.insert(self.next_token, (asker, Bytes::copy_from_slice(key)));
        Ok(())
    }

    /// The shard's first `shard_appends` writes are durable.
    pub(crate) fn durable(&mut self, shard_appends: u64) -> bool {
        let mut durable = None;
        while let Some((shard, group)) = self.pending.front().copied()
            && shard <= shard_appends
        {
            durable = Some(group);
            self.pending.pop_front();
        }
        if let Some(appends) = durable {
            self.group.durable(appends);
        }
        durable.is_some()
    }

    /// Enters a later epoch of the range.
    pub(crate) fn install(&mut self, descriptor: &RangeDescriptor) {
        if descriptor.epoch > self.descriptor.epoch {
            self.descriptor.clone_from(descriptor);
            self.group.install(descriptor.membership());
        }
    }

    /// Ends the turn: applies what was committed, answers whom it can, and returns the rest.
    pub(crate) fn flush(
        &mut self,
        now: Now,
        hlc: &mut Hlc,
        shard_appends: u64,
        out: &mut ShardEffects,
    ) -> Outbox {
        let Effects { appends, sends, committed, reads, refused_reads } =
            self.group.flush(now.monotonic_us);
        for entry in committed {
            self.apply(entry, hlc, out);
        }
        for token in reads {
            let (asker, key) = self.reads.remove(&token).expect("a read is let through once");
            let stale = self.fault == Some(TestFault::StaleReads);
            out.reply(asker, self.state.get(&key, stale));
        }
        for token in refused_reads {
            let (asker, _) = self.reads.remove(&token).expect("a read is refused once");
            out.reply(asker, Outcome::Rejected(Rejection::NotServing { hint: None }));
        }
        if !self.group.holds_proposals() {
            for write in self.writes.drain(..) {
                out.reply(write.asker, Outcome::Rejected(Rejection::Unknown));
            }
        }
        if !appends.is_empty() {
            self.appends += appends.len() as u64;
            self.pending.push_back((shard_appends + appends.len() as u64, self.appends));
        }
        let written = self.pending.back().map_or(0, |(shard_appends, _)| *shard_appends);
        Outbox { appends, sends, written }
    }

    /// Whether nobody waits for an answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.writes.is_empty() && self.reads.is_empty()
    }

    fn apply(&mut self, entry: Entry, hlc: &mut Hlc, out: &mut ShardEffects) {
        let Entry { index, term, payload } = entry;
        // An empty entry only marks the beginning of a term.
        let outcome = if payload.is_empty() {
            None
        } else {
            let (outcome, changed) = self.state.apply(payload, hlc);
            out.installs.extend(changed);
            Some(outcome)
        };
        while self.writes.front().is_some_and(|write| write.index <= index) {
            let write = self.writes.pop_front().expect("it was looked at just now");
            let ours = write.index == index && write.term == term;
            let outcome = outcome.clone().filter(|_| ours);
            out.reply(write.asker, outcome.unwrap_or(Outcome::Rejected(Rejection::Unknown)));
        }
    }
}

impl ShardEffects {
    pub(crate) fn reply(&mut self, asker: Asker, outcome: Outcome) {
        let Asker { connection, request_id } = asker;
        self.replies.push((connection, Response { request_id, outcome }));
    }
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Rejected(match refusal {
        Refusal::NotServing { hint } => Rejection::NotServing { hint },
        Refusal::Overloaded => Rejection::Overloaded,
    })
}
