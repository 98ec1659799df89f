//! Faults of the shard that tests plant to prove that their checks can fail.

use palisade_replication::ProtocolFault;

/// A guarantee that the shard breaks on purpose. Planted only in builds with the feature
/// `planted-faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestFault {
    /// A read of the newest value returns the version before it, if there is one.
    StaleReads,
    /// A restart drops the last entries of each group but the control range's, acknowledged or not.
    ForgetOnRestart {
        /// Number of entries to drop.
        entries: usize,
    },
    /// A restart drops the protocol state, such as votes, of every group but the control range.
    ForgetVotes,
    /// Snapshots leave out the outcomes of transactions.
    ForgetOutcomes,
    /// A shard whose log was lost takes part at once, as if it had never voted or acknowledged.
    TrustEmptyLog,
    /// Replies do not wait for the timestamp of the commit that they reveal to pass.
    NoCommitWait,
    /// Replies wait for only half of the clock's uncertainty.
    HalfCommitWait,
    /// Commits take effect even if their conditions do not hold.
    IgnoreConditions,
    /// Every lock request is granted at once, even if it conflicts.
    IgnoreLocks,
    /// A transaction that has lost its locks commits anyway.
    TrustLostLocks,
    /// A locked read does not wait for the writes ordered before it.
    EarlyLockedReads,
    /// Commits take effect even if they have expired.
    RunExpired,
    /// Reports requests that were passed on and got no response as rejected, although they may have
    /// run.
    ForgetForwarded,
    /// A shard that has restarted passes requests on under ids of its earlier sessions.
    ReuseForwardIds,
    /// Reads of the latest state do not wait for the writes ordered before them.
    IgnorePendingWrites,
    /// A leader that may be deposed answers locked reads.
    UnconfirmedLockedReads,
    /// A leader that may be deposed aborts transactions whose locks are lost.
    UnconfirmedAborts,
    /// Reads at a timestamp wait neither for it to pass nor for the entries ordered before.
    HastySnapshots,
    /// A follower uses the leader's safe time before it has applied the entries that it covers.
    EagerSafeTime,
    /// A replication protocol breaks one of its rules.
    Protocol(ProtocolFault),
}

impl TestFault {
    /// Returns the rule of a replication protocol that is broken.
    pub(crate) fn of_protocol(self) -> Option<ProtocolFault> {
        match self {
            Self::Protocol(fault) => Some(fault),
            _ => None,
        }
    }
}
