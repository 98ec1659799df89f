//! Time for Palisade: hybrid logical timestamps, and the readings they are drawn from.
//!
//! Invariants:
//! - A [`Timestamp`] that [`Hlc::tick`] hands out is above every one that it handed out or observed
//!   before. It never lies ahead of what some node's clock showed.
//! - A remote timestamp further ahead than the clock's uncertainty allows is rejected, never
//!   adopted: one broken clock must not drag the cluster into the future.
//! - A commit's timestamp is not below true time when it was asked for, as long as the clock is
//!   right to within its bound; what has passed by one clock has passed by all.
//! - Durations come from the monotonic part of a [`Now`] alone, never from the wall clock.
//!
//! Left out: a bound on issued timestamps that is written ahead of them. What a restart finds in
//! its log is all that it knows of them, which is enough: nobody learned of more before it had
//! passed. With `clockbound`, a feature, that daemon is a source.

#[cfg(feature = "clockbound")]
mod clockbound;
mod hlc;
mod source;
mod timestamp;

pub use hlc::{Hlc, HlcError};
pub use source::{ClockSource, Estimate, KernelClock, Voucher};
pub use timestamp::{Interval, Now, Timestamp};
