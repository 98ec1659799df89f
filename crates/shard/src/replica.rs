//! One replica of a range: its group, its state, and who waits for it.

mod pending_writes;
mod reads;
mod timestamp_reads;
mod transactions;

use std::collections::VecDeque;

use bytes::Bytes;
use palisade_clock::{Hlc, Now, Timestamp};
use palisade_control::RangeDescriptor;
use palisade_replication::{
    After, Append, Context, Effects, Entry, EntryKind, Refusal, Revocation, Send, SnapshotPart,
};
use palisade_wire::{Outcome, PeerAddress, Rejection, ReplicaChange, Response};

use crate::{
    ConnectionId, PeerBody, ShardEffects, SnapshotMessage, TestFault,
    group::Group,
    snapshot_state::{Built, StateBuilder, StateReader},
    snapshots::{Arrived, Snapshots, Taking},
    state_machine::StateMachine,
};
use reads::PendingReads;
use timestamp_reads::TimestampReads;
use transactions::Transactions;

/// Requests that may wait at one replica.
const MAX_WAITING: usize = 64 * 1024;

/// What a record takes in the log beside its payload, about.
const RECORD_OVERHEAD_BYTES: usize = 48;

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
    /// The last entry that is in the state.
    applied_index: u64,
    /// Of every entry applied so far.
    digest: u32,
    writes: VecDeque<WaitingWrite>,
    reads: PendingReads,
    transactions: Transactions,
    timestamp_reads: TimestampReads,
    /// What this turn has to say to those who waited.
    answers: Vec<(Asker, Outcome)>,
    fault: Option<TestFault>,
    /// Writes of this group in the shard's log: how many of the shard's there were with them, and
    /// how many of the group's.
    pending: VecDeque<(u64, u64)>,
    appends: u64,

    /// What a snapshot tells of ranges that have changed.
    changed_ranges: Vec<RangeDescriptor>,
    snapshots: Snapshots,
    /// What is sent in this turn beside what the group itself sends.
    other_sends: Vec<Send<PeerBody>>,
    /// A checkpoint is due once the log has grown by this much, and by its own size.
    checkpoint_bytes: u64,
    /// Bytes of a part of a snapshot.
    part_bytes: usize,
    log_bytes: u64,
    last_checkpoint_bytes: u64,
    /// The last timestamp that the log held when the replica was made.
    pub(crate) logged_ts: Timestamp,
    /// What the log holds is to be written anew, whether or not a checkpoint is due.
    compacting: bool,
}

/// What a replica begins with.
pub(crate) struct Start {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) group: Group,
    pub(crate) state: StateMachine,
    pub(crate) applied_index: u64,
    pub(crate) digest: u32,
    pub(crate) log_bytes: u64,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) part_bytes: usize,
    pub(crate) last_checkpoint_bytes: u64,
    pub(crate) first_stream: u64,
    pub(crate) first_token: u64,
    pub(crate) logged_ts: Timestamp,
    pub(crate) fault: Option<TestFault>,
}

/// What the shard has to do for a replica at the end of a turn.
pub(crate) struct Outbox {
    pub(crate) appends: Vec<Append>,
    pub(crate) sends: Vec<Send<PeerBody>>,
    /// Peers that must not count on this replica any more.
    pub(crate) revoked: Vec<(PeerAddress, Revocation)>,
    /// The writes of the shard up to this one hold everything that the group has asked for.
    pub(crate) written: u64,
    /// The lowest timestamp that was read at.
    pub(crate) read_ts: Option<Timestamp>,
}

impl Replica {
    pub(crate) fn new(start: Start) -> Self {
        let Start { descriptor, group, state, applied_index, digest, .. } = start;
        let changed_ranges = state.changed_ranges();
        let Start {
            log_bytes,
            checkpoint_bytes,
            part_bytes,
            last_checkpoint_bytes,
            first_stream,
            first_token,
            logged_ts,
            fault,
            ..
        } = start;
        Self {
            descriptor,
            group,
            state,
            applied_index,
            digest,
            writes: VecDeque::new(),
            reads: PendingReads::default(),
            transactions: Transactions::new(first_token),
            timestamp_reads: TimestampReads::default(),
            answers: Vec::new(),
            fault,
            pending: VecDeque::new(),
            appends: 0,
            changed_ranges,
            snapshots: Snapshots::new(first_stream),
            other_sends: Vec::new(),
            checkpoint_bytes,
            part_bytes,
            log_bytes,
            last_checkpoint_bytes,
            logged_ts,
            compacting: false,
        }
    }

    pub(crate) fn digest(&self) -> u32 {
        self.digest
    }

    /// Orders a payload, or says at once why not.
    pub(crate) fn propose(
        &mut self,
        asker: Asker,
        payload: impl FnOnce() -> Bytes,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        if self.writes.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        let (index, term) = self.group.propose(payload(), cx).map_err(refused)?;
        self.writes.push_back(WaitingWrite { index, term, asker });
        Ok(())
    }

    /// Begins a change of the leader or the members, or says at once what becomes of it.
    pub(crate) fn change(
        &mut self,
        asker: Asker,
        change: ReplicaChange,
        cx: Context<'_>,
    ) -> Result<(), Outcome> {
        match self.group.change(change, cx).map_err(refused)? {
            None => Err(Outcome::ControlDone),
            Some((index, term)) => {
                self.writes.push_back(WaitingWrite { index, term, asker });
                Ok(())
            }
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, hlc: &mut Hlc, now: Now, oldest_ts: Timestamp, cx: Context<'_>) {
        self.group.tick(cx);
        self.expire_locks(hlc, now, cx);
        self.tick_timestamp_reads(now);
        self.state.collect(self.oldest_ts(oldest_ts));
        for (to, message) in self.snapshots.tick(cx.now_us) {
            self.send_snapshot(to, message, After::Nothing);
        }
    }

    /// Whether time must be told.
    pub(crate) fn wants_ticks(&self, cx: Context<'_>) -> bool {
        self.wants_checkpoint()
            || self.snapshots.is_sending()
            || self.snapshots.is_receiving()
            || self.state.has_garbage()
            || self.transactions.wants_ticks()
            || self.timestamp_reads.wants_ticks()
            || self.group.wants_ticks(cx)
    }

    /// Whether a part of a checkpoint is to be written.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let is_due = self.compacting || self.is_checkpoint_due();
        self.snapshots.is_taking_checkpoint() || is_due && !self.snapshots.is_receiving()
    }

    /// Has everything that the log holds of this replica written anew.
    pub(crate) fn compact(&mut self) {
        self.compacting |= !self.snapshots.is_taking_checkpoint();
    }

    /// What a checkpoint would take, at most, but for what entries add that are not there any more.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.last_checkpoint_bytes + self.log_bytes
    }

    fn is_checkpoint_due(&self) -> bool {
        self.log_bytes >= self.checkpoint_bytes.max(self.last_checkpoint_bytes)
            && self.group.commit_index() >= self.group.first_index()
    }

    /// Writes the next part of a checkpoint, and returns about how many bytes that takes.
    pub(crate) fn advance_checkpoint(&mut self, cx: Context<'_>) -> usize {
        let mut bytes = 0;
        if !self.snapshots.is_taking_checkpoint() {
            // What was committed in this turn is not in the state before the turn ends.
            let is_due = self.compacting || self.is_checkpoint_due();
            if !is_due || self.applied_index < self.group.commit_index() {
                return 0;
            }
            self.compacting = false;
            // It is older than the checkpoint that begins here, and would keep the log as long.
            self.group.write_state(cx);
            bytes += RECORD_OVERHEAD_BYTES;
            if self.applied_index == 0 {
                return bytes;
            }
            let (head, taking) = self.begin_snapshot();
            self.log_bytes = 0;
            self.last_checkpoint_bytes = 0;
            self.snapshots.begin_checkpoint(taking);
            bytes += self.write_snapshot(head, cx);
        }
        if let Some(part) = self.snapshots.next_of_checkpoint(&self.state) {
            self.last_checkpoint_bytes += part.payload.len() as u64;
            bytes += self.write_snapshot(part, cx);
        }
        bytes
    }

    fn begin_snapshot(&self) -> (SnapshotPart, Taking) {
        let head = self.group.snapshot_head();
        let forget_outcomes = self.fault == Some(TestFault::ForgetOutcomes);
        let reader = StateReader::new(&self.state, self.digest, self.part_bytes, forget_outcomes);
        let taking = Taking::new(&head, reader);
        (head, taking)
    }

    fn write_snapshot(&mut self, part: SnapshotPart, cx: Context<'_>) -> usize {
        let bytes = part.payload.len() + RECORD_OVERHEAD_BYTES;
        // To whoever lacks no more than that, entries are sent sooner than the snapshot.
        let keep_bytes = self.checkpoint_bytes.max(self.last_checkpoint_bytes) / 2;
        let keep_bytes = usize::try_from(keep_bytes).unwrap_or(usize::MAX);
        self.group.write_snapshot(part, keep_bytes, cx);
        bytes
    }

    /// A message about a snapshot arrived.
    pub(crate) fn receive_snapshot(
        &mut self,
        from: PeerAddress,
        message: SnapshotMessage,
        cx: Context<'_>,
    ) {
        match message {
            SnapshotMessage::Part { stream, part } => {
                let commit_index = self.group.commit_index();
                match self.snapshots.arrived(from, stream, &part, commit_index, cx.now_us) {
                    Ok(Arrived::Known(answer)) => {
                        self.send_snapshot(from, answer, After::Appends);
                    }
                    Ok(Arrived::Next(answer, whole)) => {
                        let index = part.index;
                        self.write_snapshot(part, cx);
                        if let Some(builder) = whole {
                            self.install_state(*builder, index);
                        }
                        self.send_snapshot(from, answer, After::Appends);
                    }
                    // Bytes that make no sense are as good as lost.
                    Ok(Arrived::Ignored) | Err(_) => {}
                }
            }
            SnapshotMessage::Received { stream, parts, done } => {
                let known = self.snapshots.index_of(from, stream);
                let (state, now_us) = (&self.state, cx.now_us);
                let next = self.snapshots.confirmed(from, stream, parts, done, state, now_us);
                for message in next {
                    self.send_snapshot(from, message, After::Nothing);
                }
                if done && let Some(index) = known {
                    self.group.snapshot_installed(from, index, cx);
                }
            }
        }
    }

    fn install_state(&mut self, builder: StateBuilder, index: u64) {
        let Built { state, digest, bytes, .. } = builder.finish();
        (self.log_bytes, self.last_checkpoint_bytes) = (0, bytes);
        self.changed_ranges = state.changed_ranges();
        self.state = state;
        self.applied_index = index;
        self.digest = digest;
    }

    fn send_snapshot(&mut self, to: PeerAddress, message: SnapshotMessage, after: After) {
        let range = self.descriptor.range;
        let message = PeerBody::Snapshot { range, message };
        self.other_sends.push(Send { to, message, after });
    }

    /// The shard's first `shard_appends` writes are durable.
    pub(crate) fn durable(&mut self, shard_appends: u64, cx: Context<'_>) {
        let mut durable = None;
        while let Some((shard, group)) = self.pending.front().copied()
            && shard <= shard_appends
        {
            durable = Some(group);
            self.pending.pop_front();
        }
        if let Some(appends) = durable {
            self.group.durable(appends, cx);
        }
    }

    /// Enters a later epoch of the range.
    pub(crate) fn install(&mut self, descriptor: &RangeDescriptor, cx: Context<'_>) {
        if descriptor.epoch > self.descriptor.epoch {
            self.descriptor.clone_from(descriptor);
            self.group.install(descriptor.membership(), cx);
        }
    }

    /// Ends the turn: applies what was committed, answers whom it can, and returns the rest.
    /// Versions that a read at `oldest_ts` sees are kept.
    pub(crate) fn flush(
        &mut self,
        cx: Context<'_>,
        now: Now,
        shard_appends: u64,
        oldest_ts: Timestamp,
        out: &mut ShardEffects,
    ) -> Outbox {
        let Effects { appends, mut sends, committed, reads, refused_reads, lagging, revoked } =
            self.group.flush(self.descriptor.range, cx);
        // Before entries of a successor are applied: its writes took no notice of the locks here.
        self.check_leadership();
        out.installs.append(&mut self.changed_ranges);
        for entry in committed {
            // A snapshot may have overtaken what was committed earlier in the turn.
            if entry.index > self.applied_index {
                self.apply(entry, oldest_ts, out);
            }
        }
        self.forget_applied_writes();
        for token in reads {
            self.confirmed(token);
        }
        self.answer_reads();
        self.answer_safe_reads(now);
        for token in refused_reads {
            self.not_confirmed(token);
        }
        for (asker, outcome) in self.answers.drain(..) {
            out.reply(asker, outcome);
        }
        if !self.group.holds_proposals() {
            for write in self.writes.drain(..) {
                out.reply(write.asker, Outcome::Rejected(Rejection::Unknown));
            }
        }
        for to in
            lagging.into_iter().filter(|to| self.snapshots.can_send_to(*to)).collect::<Vec<_>>()
        {
            let (head, taking) = self.begin_snapshot();
            let message = self.snapshots.send_to(to, head, taking, cx.now_us);
            self.send_snapshot(to, message, After::Nothing);
        }
        sends.append(&mut self.other_sends);
        if !appends.is_empty() {
            self.log_bytes += appends.iter().map(bytes_of).sum::<u64>();
            self.appends += appends.len() as u64;
            self.pending.push_back((shard_appends + appends.len() as u64, self.appends));
        }
        let written = self.pending.back().map_or(0, |(shard_appends, _)| *shard_appends);
        let read_ts = self.timestamp_reads.read_ts.take();
        Outbox { appends, sends, revoked, written, read_ts }
    }

    /// Versions that a read at this timestamp, or at a later one, sees are kept. `oldest_ts` is what
    /// the shard keeps.
    fn oldest_ts(&self, oldest_ts: Timestamp) -> Timestamp {
        let read_ts = self.timestamp_reads.read_ts.unwrap_or(Timestamp::MAX);
        oldest_ts.min(read_ts).min(self.snapshots.protected_ts())
    }

    /// Whether nobody waits for an answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.writes.is_empty()
            && self.reads.is_empty()
            && self.transactions.is_idle()
            && self.timestamp_reads.is_idle()
    }

    fn apply(&mut self, entry: Entry, oldest_ts: Timestamp, out: &mut ShardEffects) {
        let Entry { index, term, kind, payload } = entry;
        assert_eq!(
            index,
            self.applied_index + 1,
            "{}: applies out of order",
            self.descriptor.range
        );
        self.applied_index = index;
        self.digest = digest(self.digest, index, term, &payload);
        let outcome = if kind == EntryKind::Members {
            Some(Outcome::ControlDone)
        } else if payload.is_empty() {
            // It only marks the beginning of a term.
            None
        } else {
            let oldest_ts = self.oldest_ts(oldest_ts);
            let (outcome, changed) = self.state.apply(payload, oldest_ts, self.fault);
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

fn digest(before: u32, index: u64, term: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(before);
    hasher.update(&index.to_le_bytes());
    hasher.update(&term.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// What a write takes in the log, checkpoints not counted.
fn bytes_of(append: &Append) -> u64 {
    match append {
        Append::Entry(entry) => (entry.payload.len() + RECORD_OVERHEAD_BYTES) as u64,
        Append::State { .. } => RECORD_OVERHEAD_BYTES as u64,
        Append::Snapshot { .. } => 0,
    }
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Rejected(match refusal {
        Refusal::NotServing { hint } => Rejection::NotServing { hint },
        Refusal::Overloaded => Rejection::Overloaded,
        Refusal::NotNow => Rejection::NotNow,
    })
}
