//! Time for Palisade: hybrid logical timestamps, and the readings they are drawn from.
//!
//! Invariants:
//! - A [`Timestamp`] handed out by an [`Hlc`] is above every one that it handed out or observed
//!   before.
//! - A remote timestamp further ahead than the clock's uncertainty allows is rejected, never
//!   adopted: one broken clock must not drag the cluster into the future.
//! - Durations come from the monotonic part of a [`Now`] alone, never from the wall clock.
//!
//! Left out, until something waits on it: commit wait and the sources that report their own
//! uncertainty. The bound is a configured figure.

mod hlc;
mod source;
mod timestamp;

pub use hlc::{Hlc, HlcError};
pub use source::KernelClock;
pub use timestamp::{Interval, Now, Timestamp};
