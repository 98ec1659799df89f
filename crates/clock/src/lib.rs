//! Time for Palisade: hybrid logical timestamps, and the clock readings they are derived from.
//!
//! Invariants:
//! - [`Hlc::tick`] returns a [`Timestamp`] above every one that it returned or observed before.
//!   Only the logical counter can take it above the highest clock reading of any node.
//! - A remote timestamp too far above the local reading is rejected, never adopted. One broken
//!   clock must not drag the cluster into the future.
//! - A commit's timestamp is not below true time at the call, as long as the clock's error is
//!   within its bound.
//! - A timestamp that has passed by one such clock is below true time. Later commits on any node
//!   get higher timestamps.
//! - Durations come only from the monotonic part of a [`Now`], never from the wall clock.
//!
//! Left out: a durable upper bound that is written ahead of issued timestamps. After a restart, a
//! node knows only the timestamps in its log. That is enough, because no timestamp is revealed
//! before it has passed. The feature `clockbound` adds the ClockBound daemon as a clock source.

#[cfg(feature = "clockbound")]
mod clockbound;
mod hlc;
mod source;
mod timestamp;

pub use hlc::{Hlc, HlcError};
pub use source::{BoundSource, ClockSource, Estimate, KernelClock};
pub use timestamp::{Interval, Now, Timestamp};
