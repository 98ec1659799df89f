//! Primitives that pass work and progress between Palisade's threads.
//!
//! Palisade runs one executor per core, and executors share no state. Threads communicate through
//! two primitives:
//!
//! * [`fn@mailbox`]: a bounded queue with many senders and one receiver, for work. The receiver is
//!   a task of an executor. A batch of messages wakes it at most once.
//! * [`Watermark`]: a number that only grows, for progress. Publishing takes no lock while no
//!   thread waits. A thread that may block can wait for a value.
//!
//! # Invariants
//!
//! 1. **Nothing here is unbounded.** A full mailbox returns an error to the sender, because the
//!    sender is the one that can react to overload.
//! 2. **A sender never waits for the receiver**, and a publisher never waits for an observer's
//!    progress. The crate has one lock. [`Watermark::advance`] takes it only while a thread is in
//!    [`Watermark::wait_for`].
//! 3. **No wake is lost.** A receiver never sleeps while its mailbox holds a message whose sender
//!    has returned. A waiter never sleeps after the watermark has reached its target.
//! 4. **No message is lost, duplicated or stranded.** A message that `try_send` accepted is
//!    received, or is dropped soon after the receiver, even if senders are still alive.
//! 5. **Messages of one sender arrive in the order in which they were sent.**
//! 6. **A watermark never decreases.** A thread that reads a value sees all writes that precede its
//!    publication.
//!
//! Wakers are `std::task::Waker`s, so the crate does not depend on an executor.
//!
//! # How this is checked
//!
//! Each algorithm uses the private module `primitives`, which consists of loom's types under
//! `--cfg palisade_loom`. `tests/loom.rs` explores the interleavings, and the reorderings that the
//! memory model allows, within the bounds stated there. `tests/threads.rs` runs the real
//! implementation on real threads. There is no `unsafe` in this crate.

#![deny(unsafe_code)]

mod primitives;

pub mod mailbox;
pub mod watermark;

pub use self::mailbox::{Ready, Receiver, Sender, TrySendError, mailbox};
pub use self::watermark::Watermark;
