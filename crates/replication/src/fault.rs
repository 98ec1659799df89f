//! Deliberate faults, which prove that the tests' checks can fail.

/// A protocol rule that a test breaks on purpose. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolFault {
    /// Learners count in elections and commits as if they were voters.
    CountLearners,
    /// A vote is sent before it is durable.
    UnsyncedVote,
    /// An entry is confirmed before it is durable.
    UnsyncedConfirmation,
    /// A leader commits entries of earlier terms by counting replicas.
    CommitByCounting,
    /// A leader relies on a lease that has expired.
    EndlessLease,
    /// A voter ignores its promises to its leader.
    BreakPromises,
    /// A pre-candidate stands without checking whether a promise was renewed since its pre-vote
    /// began.
    StandUnlooked,
    /// A leader serves reads before an entry of its own term is committed.
    EarlyReads,
    /// New voters take over at once, without a joint configuration.
    NoJointConsensus,
    /// A voter does not compare a candidate's log with its own.
    IncompleteLeader,
    /// A chain's tail commits what is durable at the tail alone.
    EagerTail,
}
