//! One replica of a range: its replication group, its state, and its pending requests.
//!
//! A call on the replica starts or continues requests; [`Replica::flush`] ends the turn. Requests
//! that wait are in one place each:
//!
//! ```text
//! commit ── locks (transactions) ── entry is applied (proposals) ── reply
//! read   ── locks (transactions) ── leadership is confirmed, then an entry ── reply
//!        at a follower: ─────────── a timestamp (all pending_reads) ───────── reply
//! ```

mod apply;
mod checkpoint;
mod checkpoint_schedule;
mod commit_timestamps;
mod commits;
mod pending_reads;
mod pending_writes;
mod reads;
mod safe_time;
mod timestamp_reads;
mod transactions;

use std::collections::VecDeque;

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::RangeDescriptor;
use palisade_replication::{After, Append, Effects, Entry, Outgoing, Refusal, Revocation};
use palisade_wire::{Outcome, PeerAddress, Rejection, ReplicaChange};

pub(crate) use apply::Applied;
pub(crate) use checkpoint_schedule::{CheckpointSchedule, Urgency};

use crate::{
    config::ReplicaConfig,
    group::Group,
    messages::PeerBody,
    snapshots::Snapshots,
    state_machine::StateMachine,
    turn::{RequestOrigin, Served, Turn},
    work::DROPPED_KEYS,
};
use apply::Proposals;
use commit_timestamps::CommitTimestamps;
use pending_reads::PendingReads;
use safe_time::SafeTime;
use transactions::Transactions;

/// Limit of each queue of pending requests at one replica: proposals, and reads of all kinds.
const MAX_WAITING: usize = 64 * 1024;

/// A replica of a range.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) group: Group,
    config: ReplicaConfig,
    applied: Applied,
    /// Committed entries that are not applied yet.
    committed: VecDeque<Entry>,
    /// States that were replaced. They are dropped in steps.
    replaced: Vec<StateMachine>,
    proposals: Proposals,
    reads: PendingReads,
    commit_timestamps: CommitTimestamps,
    transactions: Transactions,
    safe_time: SafeTime,
    snapshots: Snapshots,
    schedule: CheckpointSchedule,
    /// Index of the last entry that the log held when the replica was made.
    recovered_index: u64,
    /// Bytes of the entries in the log that are not applied, at most.
    unapplied_bytes: u64,
    /// The size of the state that the shard's total counts.
    pub(crate) counted_bytes: u64,
    /// Messages of this turn that do not come from the group itself.
    outgoing: Vec<Outgoing<PeerBody>>,
    /// Range changes found in a recovered or received snapshot, to be installed.
    changed_ranges: Vec<RangeDescriptor>,
    /// The lowest timestamp read at in this turn.
    read_ts: Option<Timestamp>,
    /// Highest commit timestamp that the log held when the replica was made.
    logged_ts: Timestamp,
}

/// Initial values of a [`Replica`].
pub(crate) struct Start {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) group: Group,
    pub(crate) applied: Applied,
    pub(crate) schedule: CheckpointSchedule,
    pub(crate) unapplied_bytes: u64,
    pub(crate) first_stream: u64,
    pub(crate) first_token: u64,
    pub(crate) logged_ts: Timestamp,
}

/// A replica's effects of a turn, for the shard to carry out.
pub(crate) struct Outbox {
    pub(crate) appends: Vec<Append>,
    pub(crate) sends: Vec<Outgoing<PeerBody>>,
    /// Peers that must no longer rely on this replica.
    pub(crate) revoked: Vec<(PeerAddress, Revocation)>,
    /// Number of the group's last write that is not durable, or 0.
    pub(crate) last_unsynced: u64,
    /// The lowest timestamp read at in this turn.
    pub(crate) read_ts: Option<Timestamp>,
}

impl Replica {
    pub(crate) fn new(start: Start, config: ReplicaConfig) -> Self {
        let Start { descriptor, group, applied, schedule, .. } = start;
        let Start { first_stream, first_token, logged_ts, unapplied_bytes, .. } = start;
        let recovered_index = group.last_index();
        Self {
            snapshots: Snapshots::new(descriptor.range, first_stream),
            descriptor,
            group,
            config,
            changed_ranges: applied.state.changed_ranges(),
            applied,
            committed: VecDeque::new(),
            replaced: Vec::new(),
            proposals: Proposals::default(),
            reads: PendingReads::default(),
            commit_timestamps: CommitTimestamps::default(),
            transactions: Transactions::new(first_token, config.planted),
            safe_time: SafeTime::default(),
            schedule,
            recovered_index,
            unapplied_bytes,
            counted_bytes: 0,
            outgoing: Vec::new(),
            read_ts: None,
            logged_ts,
        }
    }

    /// Returns a digest of all applied entries, in order.
    pub(crate) fn digest(&self) -> u32 {
        self.applied.digest
    }

    /// Returns the index of the last entry that is applied.
    pub(crate) fn last_applied(&self) -> u64 {
        self.applied.index
    }

    /// Returns when the oldest request was ordered that is not applied, on the monotonic clock.
    pub(crate) fn oldest_commit_us(&self) -> Option<u64> {
        self.proposals.oldest_us()
    }

    /// Returns the highest commit timestamp that the log held when the replica was made.
    pub(crate) fn logged_ts(&self) -> Timestamp {
        self.logged_ts
    }

    /// Returns the index of the last entry that a checkpoint would cover. `u64::MAX` if it would
    /// replace all entries in the log, because the group has removed those after it.
    pub(crate) fn applied_index(&self) -> u64 {
        if self.group.has_removed_entries() { u64::MAX } else { self.applied.index }
    }

    /// Returns true until the entries are applied that the log held when the replica was made.
    /// Whether they are committed shows only with further messages.
    pub(crate) fn is_recovering(&self) -> bool {
        self.applied.index < self.recovered_index.min(self.group.last_index())
    }

    /// Proposes a payload.
    pub(crate) fn propose(
        &mut self,
        origin: RequestOrigin,
        payload: Bytes,
        turn: &Turn<'_>,
    ) -> Result<Served, Rejection> {
        if self.proposals.len() >= MAX_WAITING {
            return Err(Rejection::Overloaded);
        }
        let at = self.group.propose(payload, turn.context()).map_err(refused)?;
        self.proposals.push(at, origin, turn);
        Ok(Served::Pending)
    }

    /// Starts a change of the leader or the members.
    pub(crate) fn change(
        &mut self,
        origin: RequestOrigin,
        change: ReplicaChange,
        turn: &Turn<'_>,
    ) -> Result<Served, Rejection> {
        match self.group.change(change, turn.context()).map_err(refused)? {
            None => Ok(Served::Done(Outcome::ControlDone)),
            Some(at) => {
                self.proposals.push(at, origin, turn);
                Ok(Served::Pending)
            }
        }
    }

    /// Runs periodic work: elections, timeouts, garbage collection, snapshot resends. `oldest_ts`
    /// is the lowest timestamp whose versions the shard keeps.
    pub(crate) fn tick(&mut self, oldest_ts: Timestamp, turn: &mut Turn<'_>) {
        self.group.tick(turn.context());
        self.expire_locks(turn);
        self.tick_timestamp_reads(turn);
        self.applied.state.collect(self.oldest_ts(oldest_ts), turn.work);
        for (to, message) in self.snapshots.tick(turn.now.monotonic_us) {
            self.send_snapshot(to, message, After::Nothing);
        }
    }

    /// Returns true if this replica needs ticks.
    pub(crate) fn wants_ticks(&self, turn: &Turn<'_>) -> bool {
        self.wants_checkpoint()
            || self.snapshots.is_sending()
            || self.snapshots.is_receiving()
            || self.applied.state.has_garbage()
            || self.transactions.wants_ticks()
            || self.reads.wait_for_safe_time()
            || self.group.wants_ticks(turn.context())
    }

    /// Enters a later epoch of the range. Ignores earlier ones.
    pub(crate) fn install(&mut self, descriptor: &RangeDescriptor, turn: &Turn<'_>) {
        if descriptor.epoch > self.descriptor.epoch {
            self.descriptor.clone_from(descriptor);
            self.group.install(descriptor, turn.context());
        }
    }

    /// Ends the turn: applies committed entries and answers requests, as far as the turn's work
    /// allows, and returns the remaining effects. Versions that a read at `oldest_ts` or later sees
    /// are kept. The writes are the shard's writes from `written + 1` on.
    pub(crate) fn flush(
        &mut self,
        written: u64,
        oldest_ts: Timestamp,
        turn: &mut Turn<'_>,
    ) -> Outbox {
        let Effects { appends, mut sends, committed, reads, refused_reads, lagging, revoked } =
            self.group.flush(self.descriptor.range, written, turn.context());
        // Do this before applying entries of a later leader, which ignored the locks held here.
        self.check_leadership(turn);
        turn.effects.installs.append(&mut self.changed_ranges);
        self.committed.extend(committed);
        self.apply_committed(oldest_ts, turn);
        for token in reads {
            self.confirmed(token, turn);
        }
        self.answer_applied_reads(turn);
        self.answer_safe_reads(turn);
        for token in refused_reads {
            self.not_confirmed(token, turn);
        }
        if !self.group.holds_proposals() {
            self.proposals.lost(turn);
        }
        self.send_snapshots(lagging, turn);
        sends.append(&mut self.outgoing);
        self.schedule.wrote(&appends, written);
        self.count_unapplied(&appends);
        let last_unsynced = self.group.last_unsynced();
        Outbox { appends, sends, revoked, last_unsynced, read_ts: self.read_ts.take() }
    }

    /// Applies committed entries, and drops replaced states, as far as the turn's work allows.
    /// Reads that can be answered get a half.
    fn apply_committed(&mut self, oldest_ts: Timestamp, turn: &mut Turn<'_>) {
        let for_reads = if self.owes_reads() { turn.work.left() / 2 } else { 0 };
        while turn.work.left() > for_reads
            && let Some(entry) = self.committed.pop_front()
        {
            // A snapshot that was installed since may include this entry.
            if entry.index > self.applied.index {
                turn.work.apply(entry.payload.len());
                self.apply(entry, oldest_ts, turn);
            }
        }
        self.transactions.applied(self.applied.index);
        while turn.work.is_left()
            && let Some(state) = self.replaced.last_mut()
        {
            turn.work.keys(DROPPED_KEYS, 0);
            if !state.drop_keys(DROPPED_KEYS) {
                self.replaced.pop();
            }
        }
    }

    /// Returns true if work is left over that needs no further input.
    pub(crate) fn is_unfinished(&self) -> bool {
        !self.committed.is_empty() || !self.replaced.is_empty() || self.owes_reads()
    }

    /// Returns at most how many bytes the entries take that are not applied.
    pub(crate) fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// Returns the number of committed entries that are not applied.
    pub(crate) fn backlog(&self) -> usize {
        self.committed.len()
    }

    /// Returns true if reads can be answered and were not, because the turn's work was used up.
    pub(crate) fn owes_reads(&self) -> bool {
        self.reads.is_any_ready(self.applied.index, self.safe_ts())
    }

    /// Returns true if no request waits for an answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.proposals.is_empty() && self.reads.is_empty() && self.transactions.is_idle()
    }

    /// Counts the entries of a turn that are not applied yet.
    fn count_unapplied(&mut self, appends: &[Append]) {
        if self.applied.index >= self.group.last_index() {
            self.unapplied_bytes = 0;
            return;
        }
        let entries = appends.iter().filter(|append| matches!(append, Append::Entry(_)));
        self.unapplied_bytes += entries.map(Append::bytes).sum::<u64>();
        // Entries that were replaced are not applied.
        self.unapplied_bytes = self.unapplied_bytes.min(self.group.entries_bytes());
    }

    fn apply(&mut self, entry: Entry, oldest_ts: Timestamp, turn: &mut Turn<'_>) {
        let at = (entry.index, entry.term);
        let oldest_ts = self.oldest_ts(oldest_ts);
        let range = self.descriptor.range;
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(entry.log_bytes());
        let (outcome, changed) =
            self.applied.apply(range, entry, oldest_ts, self.config.planted, turn.work);
        turn.effects.installs.extend(changed);
        turn.metrics.applied += 1;
        self.proposals.applied(range, at, outcome.as_ref(), turn);
    }

    /// Returns the lowest timestamp whose versions this replica keeps. `oldest_ts` is the shard's.
    fn oldest_ts(&self, oldest_ts: Timestamp) -> Timestamp {
        let read_ts = self.read_ts.unwrap_or(Timestamp::MAX);
        oldest_ts.min(read_ts).min(self.snapshots.protected_ts())
    }

    fn send(&mut self, to: PeerAddress, message: PeerBody, after: After) {
        self.outgoing.push(Outgoing { to, message, after });
    }
}

fn refused(refusal: Refusal) -> Rejection {
    match refusal {
        Refusal::NotServing { hint } => Rejection::NotServing { hint },
        Refusal::Overloaded => Rejection::Overloaded,
        Refusal::NotNow => Rejection::NotNow,
    }
}
