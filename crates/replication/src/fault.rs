//! Deliberate faults, so that tests can see the checks say no.

/// A rule of a protocol that is broken on purpose. Never set outside tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolFault {
    /// Learners count in elections and in commits as if they were voters.
    CountLearners,
    /// A vote is sent before it is durable.
    UnsyncedVote,
    /// An entry is confirmed before it is durable.
    UnsyncedConfirmation,
    /// A leader commits entries of earlier terms by counting replicas.
    CommitByCounting,
    /// A leader trusts a lease that has run out.
    EndlessLease,
    /// A voter forgets what it has promised to its leader.
    BreakPromises,
    /// A pre-candidate stands although it has promised not to since it asked.
    StandUnlooked,
    /// A leader reads before an entry of its own term is committed.
    EarlyReads,
    /// New voters take over at once, with no joint configuration between.
    NoJointConsensus,
    /// A candidate's log is not compared with the voter's.
    IncompleteLeader,
    /// A chain's tail commits what is durable at the tail alone.
    EagerTail,
}
