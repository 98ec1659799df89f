//! Writes a replica's state to its log, sends it to replicas that lag, and installs what it
//! receives.

use palisade_replication::{After, SnapshotPart};
use palisade_wal::Retained;
use palisade_wire::PeerAddress;

use super::{Replica, apply::Applied, checkpoint_schedule::RECORD_OVERHEAD_BYTES};
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
        self.snapshots.is_taking_checkpoint()
            || self.is_checkpoint_due() && !self.snapshots.is_receiving()
    }

    /// Requests a checkpoint, unless one is being taken already.
    pub(crate) fn compact(&mut self) {
        if !self.snapshots.is_taking_checkpoint() {
            self.schedule.request();
        }
    }

    /// Returns at most how many bytes of log it takes to rewrite the state, including what the
    /// entries add that are not applied yet.
    pub(crate) fn state_bytes(&self) -> u64 {
        let bytes = self.applied.state.checkpoint_bytes() + self.unapplied_bytes;
        // A sixteenth for the headers of records and for what segments leave unused.
        bytes + bytes / 16 + GROUP_OVERHEAD_BYTES
    }

    /// Adds what must be rewritten before the log can be released that is kept for this replica.
    pub(crate) fn rewrites(&self, retained: Retained, rewrites: &mut Vec<Rewrite>) {
        let Retained { from, unfinished, unapplied, .. } = retained;
        rewrites.extend(unapplied.map(|from| Rewrite { from, bytes: u64::MAX }));
        if self.snapshots.is_taking_checkpoint() {
            let bytes = self.state_bytes();
            rewrites.extend(unfinished.map(|from| Rewrite { from, bytes }));
        }
        rewrites.push(Rewrite { from, bytes: self.checkpoint_left_bytes() });
    }

    /// Returns at most how many bytes are left to write of the checkpoint that is being taken, or
    /// of the next one.
    pub(crate) fn checkpoint_left_bytes(&self) -> u64 {
        let is_taken = self.snapshots.is_taking_checkpoint();
        let written_bytes = if is_taken { self.schedule.written_bytes() } else { 0 };
        self.state_bytes().saturating_sub(written_bytes)
    }

    fn is_checkpoint_due(&self) -> bool {
        self.schedule.is_requested()
            || self.schedule.has_grown() && self.group.commit_index() >= self.group.first_index()
    }

    /// Writes the next part of a checkpoint and returns about how many bytes it takes in the log.
    pub(crate) fn advance_checkpoint(&mut self, turn: &Turn<'_>) -> usize {
        let mut bytes = 0;
        if !self.snapshots.is_taking_checkpoint() {
            if !self.is_checkpoint_due() {
                return 0;
            }
            self.schedule.accept_request();
            // Rewrite the protocol's state record too: the old one lies before this checkpoint, and
            // would keep that part of the log from being truncated.
            self.group.write_state(turn.context());
            bytes += RECORD_OVERHEAD_BYTES;
            if self.applied.index == 0 {
                return bytes;
            }
            let (head, checkpoint) = self.begin_snapshot();
            self.schedule.begin();
            self.snapshots.begin_checkpoint(checkpoint);
            bytes += self.write_snapshot(head, turn);
        }
        if let Some(part) = self.snapshots.next_of_checkpoint(&self.applied.state) {
            self.schedule.wrote_part(part.payload.len());
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

    fn write_snapshot(&mut self, part: SnapshotPart, turn: &Turn<'_>) -> usize {
        let bytes = part.payload.len() + RECORD_OVERHEAD_BYTES;
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
        self.applied = Applied::from_snapshot(built, index);
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
