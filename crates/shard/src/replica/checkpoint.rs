//! Writes a replica's state to its log, sends it to replicas that lag, and installs what it
//! receives.

use palisade_replication::{After, SnapshotPart};
use palisade_wire::PeerAddress;

use super::{Replica, apply::Applied, checkpoint_schedule::RECORD_OVERHEAD_BYTES};
use crate::{
    TestFault,
    messages::{PeerBody, SnapshotMessage},
    snapshot_state::{Built, StateReader},
    snapshots::{Arrived, SnapshotInProgress},
    turn::Turn,
};

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

    /// Returns about how many bytes a checkpoint takes now.
    pub(crate) fn state_bytes(&self) -> u64 {
        self.schedule.state_bytes()
    }

    fn is_checkpoint_due(&self) -> bool {
        self.schedule.is_requested()
            || self.schedule.has_grown() && self.group.commit_index() >= self.group.first_index()
    }

    /// Writes the next part of a checkpoint and returns about how many bytes it takes in the log.
    pub(crate) fn advance_checkpoint(&mut self, turn: &Turn<'_>) -> usize {
        let mut bytes = 0;
        if !self.snapshots.is_taking_checkpoint() {
            // The head of a snapshot is at the commit index, but entries committed in this turn are
            // applied when it ends. Wait until the state includes them.
            if !self.is_checkpoint_due() || self.applied.index < self.group.commit_index() {
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
        let head = self.group.snapshot_head();
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
