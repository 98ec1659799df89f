//! One replica of a range: its replication group, its state, and its pending requests.

mod pending_writes;
mod reads;
mod timestamp_reads;
mod transactions;

use std::collections::VecDeque;

use bytes::Bytes;
use palisade_clock::{Hlc, Now, Timestamp};
use palisade_control::RangeDescriptor;
use palisade_replication::{
    After, Append, Context, Effects, Entry, EntryKind, Planted, Refusal, Revocation, Send,
    SnapshotPart,
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

/// Limit of each queue of pending requests at one replica.
const MAX_WAITING: usize = 64 * 1024;

/// Approximate bytes that a log record takes beside its payload.
const RECORD_OVERHEAD_BYTES: usize = 48;

/// Where a request came from, and where its reply goes.
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
    /// Index of the last entry applied to the state.
    applied_index: u64,
    /// Digest of every entry applied so far, in order.
    digest: u32,
    writes: VecDeque<WaitingWrite>,
    reads: PendingReads,
    transactions: Transactions,
    timestamp_reads: TimestampReads,
    /// Outcomes of pending requests, to be sent at the end of this turn.
    answers: Vec<(Asker, Outcome)>,
    planted: Planted<TestFault>,
    /// Batches of this group's writes that are not durable: the shard's write count after the
    /// batch, and the group's write count after it.
    pending: VecDeque<(u64, u64)>,
    appends: u64,

    /// Range changes found in a recovered or received snapshot, to be installed.
    changed_ranges: Vec<RangeDescriptor>,
    snapshots: Snapshots,
    /// Messages of this turn that do not come from the group itself.
    other_sends: Vec<Send<PeerBody>>,
    /// A checkpoint is due once the log has grown by this and by the last checkpoint's size.
    checkpoint_bytes: u64,
    /// Target size of a snapshot part, in bytes.
    part_bytes: usize,
    log_bytes: u64,
    last_checkpoint_bytes: u64,
    /// Highest commit timestamp that the log held when the replica was made.
    pub(crate) logged_ts: Timestamp,
    /// A checkpoint was requested to free the head of the log, even if none is due.
    compacting: bool,
}

/// Initial values of a [`Replica`].
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
    pub(crate) planted: Planted<TestFault>,
}

/// A replica's effects of a turn, for the shard to carry out.
pub(crate) struct Outbox {
    pub(crate) appends: Vec<Append>,
    pub(crate) sends: Vec<Send<PeerBody>>,
    /// Peers that must no longer rely on this replica.
    pub(crate) revoked: Vec<(PeerAddress, Revocation)>,
    /// Once this many writes of the shard are durable, all writes of the group are.
    pub(crate) written: u64,
    /// The lowest timestamp read at in this turn.
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
            planted,
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
            planted,
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

    /// Proposes a payload, or returns a refusal as `Err`.
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

    /// Starts a change of the leader or the members, or returns an immediate outcome as `Err`.
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

    /// Runs periodic work: elections, timeouts, garbage collection, snapshot resends.
    pub(crate) fn tick(&mut self, hlc: &mut Hlc, now: Now, oldest_ts: Timestamp, cx: Context<'_>) {
        self.group.tick(cx);
        self.expire_locks(hlc, now, cx);
        self.tick_timestamp_reads(now);
        self.state.collect(self.oldest_ts(oldest_ts));
        for (to, message) in self.snapshots.tick(cx.now_us) {
            self.send_snapshot(to, message, After::Nothing);
        }
    }

    /// Returns true if this replica needs ticks.
    pub(crate) fn wants_ticks(&self, cx: Context<'_>) -> bool {
        self.wants_checkpoint()
            || self.snapshots.is_sending()
            || self.snapshots.is_receiving()
            || self.state.has_garbage()
            || self.transactions.wants_ticks()
            || self.timestamp_reads.wants_ticks()
            || self.group.wants_ticks(cx)
    }

    /// Returns true if a checkpoint part is to be written.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let is_due = self.compacting || self.is_checkpoint_due();
        self.snapshots.is_taking_checkpoint() || is_due && !self.snapshots.is_receiving()
    }

    /// Requests a checkpoint, unless one is being taken already.
    pub(crate) fn compact(&mut self) {
        self.compacting |= !self.snapshots.is_taking_checkpoint();
    }

    /// Returns about how many bytes a checkpoint takes now: the last one, plus the log since then.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.last_checkpoint_bytes + self.log_bytes
    }

    fn is_checkpoint_due(&self) -> bool {
        self.log_bytes >= self.checkpoint_bytes.max(self.last_checkpoint_bytes)
            && self.group.commit_index() >= self.group.first_index()
    }

    /// Writes the next part of a checkpoint and returns about how many bytes it takes in the log.
    pub(crate) fn advance_checkpoint(&mut self, cx: Context<'_>) -> usize {
        let mut bytes = 0;
        if !self.snapshots.is_taking_checkpoint() {
            // The head of a snapshot is at the commit index, but entries committed in this turn are
            // applied when it ends. Wait until the state includes them.
            let is_due = self.compacting || self.is_checkpoint_due();
            if !is_due || self.applied_index < self.group.commit_index() {
                return 0;
            }
            self.compacting = false;
            // Rewrite the protocol's state record too: the old one lies before this checkpoint, and
            // would keep that part of the log from being truncated.
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
        let forget_outcomes = self.planted.is(TestFault::ForgetOutcomes);
        let reader = StateReader::new(&self.state, self.digest, self.part_bytes, forget_outcomes);
        let taking = Taking::new(&head, reader);
        (head, taking)
    }

    fn write_snapshot(&mut self, part: SnapshotPart, cx: Context<'_>) -> usize {
        let bytes = part.payload.len() + RECORD_OVERHEAD_BYTES;
        // Keep the last entries in memory: a follower that lacks only these catches up faster from
        // entries than from a snapshot.
        let keep_bytes = self.checkpoint_bytes.max(self.last_checkpoint_bytes) / 2;
        let keep_bytes = usize::try_from(keep_bytes).unwrap_or(usize::MAX);
        self.group.write_snapshot(part, keep_bytes, cx);
        bytes
    }

    /// Handles a part of a snapshot, or the acknowledgement of one.
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
                    // Treat an invalid part as lost.
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

    /// Enters a later epoch of the range. Ignores earlier ones.
    pub(crate) fn install(&mut self, descriptor: &RangeDescriptor, cx: Context<'_>) {
        if descriptor.epoch > self.descriptor.epoch {
            self.descriptor.clone_from(descriptor);
            self.group.install(descriptor.membership(), cx);
        }
    }

    /// Ends the turn: applies committed entries, answers requests, and returns the remaining
    /// effects. Versions that a read at `oldest_ts` or later sees are kept.
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
        // Do this before applying entries of a later leader, which ignored the locks held here.
        self.check_leadership();
        out.installs.append(&mut self.changed_ranges);
        for entry in committed {
            // A snapshot installed in this turn may already include this entry.
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

    /// Returns the lowest timestamp whose versions this replica keeps. `oldest_ts` is the shard's.
    fn oldest_ts(&self, oldest_ts: Timestamp) -> Timestamp {
        let read_ts = self.timestamp_reads.read_ts.unwrap_or(Timestamp::MAX);
        oldest_ts.min(read_ts).min(self.snapshots.protected_ts())
    }

    /// Returns true if no request waits for an answer.
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
            // The entry only marks the start of a term.
            None
        } else {
            let oldest_ts = self.oldest_ts(oldest_ts);
            let (outcome, changed) = self.state.apply(payload, oldest_ts, self.planted);
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

/// Returns about how many bytes a write takes in the log, or 0 for a snapshot part.
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
