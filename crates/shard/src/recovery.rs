//! Creates a replica from what its shard's log held.

use palisade_clock::Timestamp;
use palisade_control::{RangeDescriptor, RangeMap};
use palisade_replication::{Entry, EntryKind, RecoveredGroup};
use palisade_txn::CommitCommand;
use palisade_wire::{RangeId, WireError};

use crate::{
    config::ReplicaConfig,
    group::{Group, GroupSetup},
    replica::{Applied, CheckpointSchedule, Replica, Start},
    snapshot_state::StateBuilder,
    state_machine::StateMachine,
};

/// A replica that is to be created.
#[derive(Debug)]
pub(crate) struct Recovery<'a> {
    pub(crate) descriptor: &'a RangeDescriptor,
    /// The first range map: the initial state of the control plane's own range.
    pub(crate) ranges: &'a RangeMap,
    /// What the log held of the group.
    pub(crate) recovered: RecoveredGroup,
}

impl Recovery<'_> {
    /// Creates the replica.
    ///
    /// # Errors
    ///
    /// [`WireError`] if the recovered state cannot be decoded.
    pub(crate) fn replica(
        self,
        config: ReplicaConfig,
        random: &mut fastrand::Rng,
        now_us: u64,
    ) -> Result<Box<Replica>, WireError> {
        let Self { descriptor, ranges, mut recovered } = self;
        let is_control = descriptor.range == RangeId::CONTROL;
        let state =
            if is_control { StateMachine::Control(ranges.clone()) } else { StateMachine::keys() };
        let mut applied = Applied { state, index: 0, digest: 0 };
        let mut snapshot_bytes = 0;
        let mut logged_ts = Timestamp::ZERO;
        if let Some(snapshot) = &mut recovered.snapshot {
            let mut builder = StateBuilder::new(descriptor.range);
            // Part 0 belongs to the protocol.
            for part in snapshot.parts.drain(1..) {
                builder.push(part)?;
            }
            let built = builder.finish()?;
            (logged_ts, snapshot_bytes) = (built.last_ts, built.bytes);
            applied = Applied::from_snapshot(built, snapshot.index);
        }
        if !is_control {
            logged_ts = logged_ts.max(last_proposed_ts(&recovered)?);
        }
        let log_bytes: u64 = recovered.entries.iter().map(Entry::log_bytes).sum();
        let schedule = CheckpointSchedule::new(config.checkpoint_bytes, log_bytes, snapshot_bytes);
        let setup = GroupSetup { descriptor, recovered, random_seed: random.u64(..), now_us };
        let start = Start {
            descriptor: descriptor.clone(),
            group: Group::new(setup, config)?,
            applied,
            schedule,
            unapplied_bytes: log_bytes,
            first_stream: random.u64(..),
            first_token: random.u64(..),
            logged_ts,
        };
        Ok(Box::new(Replica::new(start, config)))
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
