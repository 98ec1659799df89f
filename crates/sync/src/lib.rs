//! The few lock-free pieces that pass work and progress between Palisade's threads.
//!
//! Palisade runs one executor per core and shares nothing between them. What must cross from one
//! thread to another crosses in one of two ways, and both live here:
//!
//! * [`fn@mailbox`]: a bounded queue with many senders and one receiver, for work. The receiver is
//!   a task of some executor; it is woken at most once for a batch.
//! * [`Watermark`]: a number that only grows, for progress. It costs its publisher no lock while
//!   nobody is waiting, and lets a thread that may block wait for a value.
//!
//! # Invariants
//!
//! 1. **Nothing here is unbounded.** A mailbox that is full says so to the sender, which is where
//!    overload must be felt.
//! 2. **A sender never waits for a receiver**, nor a publisher for an observer's progress. The one
//!    lock in the crate is taken by [`Watermark::advance`] only when a waiter has announced itself.
//! 3. **No wake is lost.** A receiver never sleeps over a message whose sender has returned, nor a
//!    waiter over a watermark that has reached its target.
//! 4. **No message is lost, doubled or stranded.** What `try_send` accepted is either received or
//!    dropped soon after the receiver; it does not linger because some sender is still alive.
//! 5. **Messages of one sender arrive in the order they were sent.**
//! 6. **A watermark never falls**, and seeing a value means seeing all that was written before it
//!    was published.
//!
//! The wakers are `std::task::Waker`s, so nothing here knows which executor it serves.
//!
//! # How this is checked
//!
//! Each algorithm is written against the private module `primitives`, which under
//! `--cfg palisade_loom` is made of loom's types. `tests/loom.rs` then explores the interleavings
//! and the reorderings allowed by the memory model, within the bounds stated there;
//! `tests/threads.rs` runs the real thing on real threads. There is no `unsafe` in this crate.

#![deny(unsafe_code)]

mod primitives;

pub mod mailbox;
pub mod watermark;

pub use self::mailbox::{Ready, Receiver, Sender, TrySendError, mailbox};
pub use self::watermark::Watermark;
