//! Deliberate faults, so that tests can see the checks say no.

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
}
