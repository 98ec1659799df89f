//! Deliberate faults, so that tests can see the checks say no.

use palisade_replication::ProtocolFault;

/// A way in which a shard breaks its promises on purpose. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestFault {
    /// Reads return the version before the newest one, if there is one.
    StaleReads,
    /// A restart forgets the last entries of every group, acknowledged or not.
    ForgetOnRestart {
        /// How many.
        entries: usize,
    },
    /// A restart forgets for whom each group has voted.
    ForgetVotes,
    /// Snapshots leave out what became of transactions.
    ForgetOutcomes,
    /// A shard whose log was lost takes part at once, as if it had never voted or confirmed.
    TrustEmptyLog,
    /// Answers don't wait for the timestamp of what they tell to pass.
    NoCommitWait,
    /// Answers wait until half of the clock's uncertainty has passed.
    HalfCommitWait,
    /// Commits are made whether or not their conditions hold.
    IgnoreConditions,
    /// Whoever asks for a lock has it, whoever else has.
    IgnoreLocks,
    /// A transaction whose locks are lost commits all the same.
    TrustLostLocks,
    /// A locked read does not wait for what was ordered before it.
    EarlyLockedReads,
    /// Heartbeats of a turn are built before the turn's revocations.
    EarlyHeartbeats,
    /// Commits are made whether or not they have expired.
    RunExpired,
    /// Reads of the latest state do not wait for what was ordered before.
    IgnorePendingWrites,
    /// Locked reads are answered by a leader that may have been superseded.
    UnconfirmedLockedReads,
    /// A transaction without its locks is called aborted by a leader that may have been superseded.
    UnconfirmedAborts,
    /// Reads at a timestamp wait neither for it to pass nor for what was ordered before.
    HastySnapshots,
    /// A replica takes what it is told of safe time for what it knows, before it knows it.
    EagerSafeTime,
    /// A rule of a replication protocol is broken.
    Protocol(ProtocolFault),
}

impl TestFault {
    pub(crate) fn of_protocol(fault: Option<Self>) -> Option<ProtocolFault> {
        match fault {
            Some(Self::Protocol(fault)) => Some(fault),
            _ => None,
        }
    }
}
