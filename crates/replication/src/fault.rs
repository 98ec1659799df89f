//! Faults planted on purpose, which prove that the checks of the tests can fail.
//!
//! Without the feature `planted-faults`, [`Planted`] is empty and [`Planted::get`] returns `None`,
//! so the compiler removes every planted branch from the product.

use std::fmt;

/// The rule that this replica breaks on purpose, if any.
///
/// # Examples
///
/// ```
/// use palisade_replication::{Planted, ProtocolFault};
///
/// let planted = Planted::<ProtocolFault>::default();
/// assert!(!planted.is(ProtocolFault::EagerTail));
/// ```
#[derive(Clone, Copy)]
pub struct Planted<F> {
    #[cfg(feature = "planted-faults")]
    fault: Option<F>,
    #[cfg(not(feature = "planted-faults"))]
    none: std::marker::PhantomData<F>,
}

impl<F: Copy + PartialEq> Planted<F> {
    /// Plants a fault.
    #[cfg(feature = "planted-faults")]
    pub const fn new(fault: F) -> Self {
        Self { fault: Some(fault) }
    }

    /// Returns the planted fault.
    #[cfg(feature = "planted-faults")]
    pub fn get(self) -> Option<F> {
        self.fault
    }

    /// Returns `None`: this build plants no faults.
    #[cfg(not(feature = "planted-faults"))]
    #[inline(always)]
    pub fn get(self) -> Option<F> {
        None
    }

    /// Returns true if this fault is planted.
    #[inline(always)]
    pub fn is(self, fault: F) -> bool {
        self.get() == Some(fault)
    }

    /// Returns the part of the planted fault that concerns another layer.
    pub fn and_then<G>(self, part: impl FnOnce(F) -> Option<G>) -> Planted<G> {
        #[cfg(feature = "planted-faults")]
        return Planted { fault: self.fault.and_then(part) };
        #[cfg(not(feature = "planted-faults"))]
        {
            let _ = part;
            Planted::default()
        }
    }
}

impl<F> Default for Planted<F> {
    fn default() -> Self {
        #[cfg(feature = "planted-faults")]
        return Self { fault: None };
        #[cfg(not(feature = "planted-faults"))]
        Self { none: std::marker::PhantomData }
    }
}

impl<F: Copy + PartialEq + fmt::Debug> fmt::Debug for Planted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// A rule of a protocol that a test breaks.
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
