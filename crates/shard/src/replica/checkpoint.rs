//! Writes a replica's state to its log, sends it to replicas that lag, and installs what it
//! receives.

use std::mem;

use palisade_replication::{After, RECORD_OVERHEAD_BYTES, SnapshotPart};
use palisade_wal::Retained;
use palisade_wire::PeerAddress;

use super::{Replica, apply::Applied, checkpoint_schedule::Urgency};
use crate::{
    TestFault,
    log_room::Rewrite,
    messages::{PeerBody, SnapshotMessage},
    snapshot_state::{Built, StateReader},
    snapshots::{Arrived, SnapshotInProgress},
    turn::Turn,
};

/// Bytes that the protocol's state and the first part of a checkpoint take, about.
const GROUP_OVERHEAD_BYTES: u64 = 512;

impl Replica {
    /// Returns true if a checkpoint part is to be written.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.checkpoint_urgency().is_some()
    }

    /// Returns why a checkpoint part is to be written, or `None` if none is.
    pub(crate) fn checkpoint_urgency(&self) -> Option<Urgency> {
        if self.snapshots.is_taking_checkpoint() {
            return Some(Urgency::InProgress);
        }
        if self.snapshots.is_receiving() {
            return None;
        }
        let has_new = self.group.commit_index() >= self.group.first_index();
        if self.schedule.is_requested() {
            Some(Urgency::Requested)
        } else {
            (self.schedule.has_grown() && has_new).then_some(Urgency::HasGrown)
        }
    }

    /// Returns true if a checkpoint is in progress.
    pub(crate) fn is_taking_checkpoint(&self) -> bool {
        self.snapshots.is_taking_checkpoint()
    }

    /// Requests a checkpoint, unless one is being taken, or was just taken and is not among the
    /// shard's `durable` writes yet: that one will release the log.
    pub(crate) fn compact(&mut self, durable: u64) {
        if !self.snapshots.is_taking_checkpoint() && self.schedule.is_durable(durable) {
            self.schedule.request();
        }
    }

    /// Returns at most how many bytes of log it takes to rewrite the state, including what the
    /// entries add that are not applied yet.
    pub(crate) fn state_bytes(&self) -> u64 {
        let bytes = self.applied.state.checkpoint_bytes() + self.unapplied_bytes;
        // A sixteenth for the headers of records and for what segments leave unused.
        let bytes = bytes + bytes / 16 + GROUP_OVERHEAD_BYTES;
        // A checkpoint in progress holds what was deleted since it began.
        if self.snapshots.is_taking_checkpoint() {
            return bytes.max(self.schedule.planned_bytes());
        }
        bytes
    }

    /// Adds what must be rewritten before the log can be released that is kept for this replica.
    /// The shard's first `durable` writes are durable.
    pub(crate) fn rewrites(&self, retained: Retained, durable: u64, rewrites: &mut Vec<Rewrite>) {
        let Retained { from, unfinished, unapplied, .. } = retained;
        rewrites.extend(unapplied.map(|from| Rewrite { from, bytes: u64::MAX }));
        // A checkpoint that was just taken releases the log up to its own beginning.
        let was_taken = !self.schedule.is_durable(durable);
        if self.snapshots.is_taking_checkpoint() || was_taken {
            let bytes = self.state_bytes();
            rewrites.extend(unfinished.map(|from| Rewrite { from, bytes }));
        }
        let bytes = if was_taken { 0 } else { self.checkpoint_left_bytes() };
        rewrites.push(Rewrite { from, bytes });
    }

    /// Returns at most how many bytes are left to write of the checkpoint that is being taken, or
    /// of the next one.
    pub(crate) fn checkpoint_left_bytes(&self) -> u64 {
        let bytes = self.state_bytes();
        if !self.snapshots.is_taking_checkpoint() {
            return bytes;
        }
        // At least the next part is left.
        let left_bytes = bytes.saturating_sub(self.schedule.written_bytes());
        left_bytes.max(self.config.part_bytes as u64)
    }

    /// Writes the next part of a checkpoint and returns about how many bytes it takes in the log.
    pub(crate) fn advance_checkpoint(&mut self, turn: &Turn<'_>) -> u64 {
        let mut bytes = 0;
        if !self.snapshots.is_taking_checkpoint() {
            if self.checkpoint_urgency().is_none() {
                return 0;
            }
            self.schedule.accept_request();
            // Rewrite the protocol's state record too: the old one lies before this checkpoint, and
            // would keep that part of the log from being truncated.
            self.group.write_state(turn.context());
            bytes += RECORD_OVERHEAD_BYTES;
            if self.applied.index == 0 && !self.group.has_removed_entries() {
                return bytes;
            }
            let (head, checkpoint) = self.begin_snapshot();
            self.schedule.begin(self.state_bytes());
            self.snapshots.begin_checkpoint(checkpoint);
            bytes += self.write_snapshot(head, turn);
        }
        if let Some(part) = self.snapshots.next_of_checkpoint(&self.applied.state) {
            self.schedule.wrote_part(part.payload.len(), part.last);
            bytes += self.write_snapshot(part, turn);
        }
        bytes
    }

    fn begin_snapshot(&self) -> (SnapshotPart, SnapshotInProgress) {
        let head = self.group.snapshot_head(self.applied.index);
        let forget_outcomes = self.config.planted.is(TestFault::ForgetOutcomes);
        let Applied { state, digest, .. } = &self.applied;
        let reader = StateReader::new(state, *digest, self.config.part_bytes, forget_outcomes);
        let snapshot = SnapshotInProgress::new(&head, reader);
        (head, snapshot)
    }

    fn write_snapshot(&mut self, part: SnapshotPart, turn: &Turn<'_>) -> u64 {
        let bytes = part.payload.len() as u64 + RECORD_OVERHEAD_BYTES;
        self.group.write_snapshot(part, self.schedule.keep_bytes(), turn.context());
        bytes
    }

    /// Starts to send a snapshot to each of the replicas, unless one is being sent to it.
    pub(super) fn send_snapshots(&mut self, to: Vec<PeerAddress>, turn: &Turn<'_>) {
        let to: Vec<_> = to.into_iter().filter(|to| self.snapshots.can_send_to(*to)).collect();
        for to in to {
            let (head, snapshot) = self.begin_snapshot();
            let message = self.snapshots.send_to(to, head, snapshot, turn.now.monotonic_us);
            self.send_snapshot(to, message, After::Nothing);
        }
    }

    /// Handles a part of a snapshot, or the acknowledgement of one.
    pub(crate) fn receive_snapshot(
        &mut self,
        from: PeerAddress,
        message: SnapshotMessage,
        turn: &Turn<'_>,
    ) {
        let now_us = turn.now.monotonic_us;
        match message {
            SnapshotMessage::Part { part, .. } if !self.group.accepts_snapshot(&part) => {}
            SnapshotMessage::Part { stream, part } => {
                let commit_index = self.group.commit_index();
                match self.snapshots.arrived((from, stream), &part, commit_index, now_us) {
                    Ok(Arrived::Known(answer)) => {
                        self.send_snapshot(from, answer, After::Appends);
                    }
                    Ok(Arrived::Next(answer, whole)) => {
                        let index = part.index;
                        self.write_snapshot(part, turn);
                        if let Some(built) = whole {
                            self.install_state(*built, index);
                        }
                        self.send_snapshot(from, answer, After::Appends);
                    }
                    // Treat an invalid part as lost.
                    Ok(Arrived::Ignored) | Err(_) => {}
                }
            }
            SnapshotMessage::Received { stream, parts, done: false } => {
                let state = &self.applied.state;
                let next = self.snapshots.confirmed((from, stream), parts, state, now_us);
                for message in next {
                    self.send_snapshot(from, message, After::Nothing);
                }
            }
            SnapshotMessage::Received { stream, done: true, .. } => {
                if let Some(index) = self.snapshots.installed((from, stream)) {
                    self.group.snapshot_installed(from, index, turn.context());
                }
            }
        }
    }

    fn install_state(&mut self, built: Built, index: u64) {
        self.schedule.installed(built.bytes);
        self.changed_ranges = built.state.changed_ranges();
        let replaced = mem::replace(&mut self.applied, Applied::from_snapshot(built, index));
        self.replaced.push(replaced.state);
    }

    pub(super) fn send_snapshot(
        &mut self,
        to: PeerAddress,
        message: SnapshotMessage,
        after: After,
    ) {
        let range = self.descriptor.range;
        self.send(to, PeerBody::Snapshot { range, message }, after);
    }
}
