//! Creates a replica from what its shard's log held.

use palisade_clock::Timestamp;
use palisade_control::{RangeDescriptor, RangeMap};
use palisade_replication::{EntryKind, Planted, RecoveredGroup};
use palisade_txn::CommitCommand;
use palisade_wire::{PeerAddress, RangeId, WireError};

use crate::{
    TestFault,
    group::Group,
    replica::{Replica, Start},
    snapshot_state::StateBuilder,
    state_machine::StateMachine,
};

/// Settings that all replicas of a shard share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) me: PeerAddress,
    pub(crate) now_us: u64,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) part_bytes: usize,
    pub(crate) max_message_bytes: usize,
    pub(crate) planted: Planted<TestFault>,
}

impl Surroundings {
    /// Creates a replica from its recovered group. `ranges` is the first range map; it is the
    /// initial state of the control plane's own range.
    pub(crate) fn replica(
        &self,
        descriptor: &RangeDescriptor,
        ranges: &RangeMap,
        mut recovered: RecoveredGroup,
        random: &mut fastrand::Rng,
    ) -> Result<Replica, WireError> {
        let is_control = descriptor.range == RangeId::CONTROL;
        let mut state =
            if is_control { StateMachine::Control(ranges.clone()) } else { StateMachine::keys() };
        let (mut applied_index, mut digest, mut last_checkpoint_bytes) = (0, 0, 0);
        let mut logged_ts = Timestamp::ZERO;
        if let Some(snapshot) = &mut recovered.snapshot {
            let mut builder = StateBuilder::new();
            // Part 0 belongs to the protocol.
            for part in snapshot.parts.drain(1..) {
                builder.push(part)?;
            }
            let built = builder.finish();
            (state, digest, last_checkpoint_bytes) = (built.state, built.digest, built.bytes);
            applied_index = snapshot.index;
            logged_ts = built.last_ts;
        }
        if !is_control {
            logged_ts = logged_ts.max(last_proposed_ts(&recovered)?);
        }
        let log_bytes = recovered.entries.iter().map(|entry| entry.payload.len() as u64).sum();
        let group = Group::new(
            self.me,
            descriptor,
            recovered,
            random.u64(..),
            self.now_us,
            self.max_message_bytes,
            self.planted.and_then(TestFault::of_protocol),
        )?;
        Ok(Replica::new(Start {
            descriptor: descriptor.clone(),
            group,
            state,
            applied_index,
            digest,
            log_bytes,
            checkpoint_bytes: self.checkpoint_bytes,
            part_bytes: self.part_bytes,
            last_checkpoint_bytes,
            first_stream: random.u64(..),
            first_token: random.u64(..),
            logged_ts,
            planted: self.planted,
        }))
    }
}

fn last_proposed_ts(recovered: &RecoveredGroup) -> Result<Timestamp, WireError> {
    let mut latest = Timestamp::ZERO;
    for entry in &recovered.entries {
        if entry.kind == EntryKind::Command && !entry.payload.is_empty() {
            let command = CommitCommand::from_payload(entry.payload.clone())?;
            latest = latest.max(command.proposed_ts);
        }
    }
    Ok(latest)
}
