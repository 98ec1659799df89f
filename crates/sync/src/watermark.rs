//! A number that only grows, published by one thread and watched by others.
//!
//! # The problem
//!
//! A shard makes progress that others care about: the position up to which its log is durable, or
//! that it has drained its mailboxes. It says so very often, and hardly ever is anybody waiting:
//! the main thread does so once, at shutdown. So publishing must cost next to nothing when nobody
//! listens, and yet a listener must never sleep through the value it waits for.
//!
//! # The naive way, and why it fails
//!
//! *A lock and a condition variable around the number* are right, and make the shard take a lock
//! and notify for each step. Worse, an observer that is preempted while it holds the lock stops
//! the shard.
//!
//! *An atomic number with the lock only on the waiter's side* loses wakes: the waiter reads the old
//! value, the publisher advances and notifies nobody, the waiter sleeps.
//!
//! *A count of waiters that the publisher reads before it takes the lock* is the right idea with a
//! trap in it. The publisher writes the value and then reads the count; the waiter writes the count
//! and then reads the value. With no more than acquire and release, both may read the old: each
//! write sits in its core's store buffer while the read goes ahead. The publisher sees no waiter,
//! the waiter sees no progress, and it sleeps.
//!
//! # The algorithm
//!
//! | publisher                         | waiter                                            |
//! |-----------------------------------|---------------------------------------------------|
//! | P1: `value.fetch_max`             | W1: `waiters += 1`                                |
//! | P2: `fence(SeqCst)`               | W2: `fence(SeqCst)`                               |
//! | P3: read `waiters`; done if 0     | W3: take the lock                                 |
//! | P4: take the lock, release it     | W4: read `value`; leave if reached                |
//! | P5: notify all                    | W5: release the lock and sleep, in one; then W4   |
//!
//! All sequentially consistent fences have one total order. Take an advance that reaches a waiter's
//! target:
//!
//! * **P2 comes before W2.** Then each W4 of the waiter sees what P1 wrote, or more, and the waiter
//!   does not sleep.
//! * **W2 comes before P2.** Then P3 sees the waiter's increment: not zero, as long as the waiter
//!   has not left, for other waiters take back only what they added themselves. So the publisher
//!   goes on to P4. If P4 took the lock before the waiter did for its latest W4, that W4 sees the
//!   value. Otherwise P4 got the lock when the waiter let go of it in W5, at which point the
//!   waiter is registered with the condition variable, and P5 wakes it.
//!
//! The count is raised once for all the rounds of W4 and W5, and the argument holds for each round:
//! both fences are ordered once and for all.
//!
//! The fences are why the accesses around them can be relaxed. Sequentially consistent accesses
//! would do as well, but loom checks only the fences to the letter (it takes such accesses for
//! acquire and release, and would report the store buffers' doing as a fault of ours), and what
//! is checked should be what runs.
//!
//! `fetch_max` releases and `get` acquires, so whoever sees a value sees all that its publisher did
//! before. A later advance does not break that: it is a read-modify-write, and carries on the
//! release sequence.
//!
//! # What is left out
//!
//! * *A way to await it.* A task of a shard is told by a message; only threads that may block wait
//!   here.
//! * *Freedom from locks while somebody waits.* The publisher then takes the lock in P4, for as
//!   long as a waiter takes to read one number. That is meant for shutdown and for tests; a
//!   thread that waits over and over belongs on a mailbox.

use std::fmt;
use std::time::Duration;

use crate::primitives::{AtomicU64, AtomicUsize, Ordering, Parking, fence};

/// A number that only grows. Share it in an `Arc`.
///
/// ```
/// use std::time::Duration;
///
/// use palisade_sync::Watermark;
///
/// let durable = Watermark::new(0);
/// assert_eq!(durable.advance(7), 0);
/// assert_eq!(durable.advance(3), 7);
/// assert_eq!(durable.get(), 7);
/// assert!(durable.wait_for(7, Duration::ZERO));
/// assert!(!durable.wait_for(8, Duration::ZERO));
/// ```
pub struct Watermark {
    value: AtomicU64,
    waiters: AtomicUsize,
    parking: Parking,
}

impl Watermark {
    /// A watermark that stands at `start`.
    pub fn new(start: u64) -> Self {
        Self {
            value: AtomicU64::new(start),
            waiters: AtomicUsize::new(0),
            parking: Parking::default(),
        }
    }

    /// Raises the watermark to `to` and returns where it stood. If it stood there or higher, it
    /// stays: a late or repeated report is no error.
    ///
    /// Takes no lock unless somebody is in [`Watermark::wait_for`].
    pub fn advance(&self, to: u64) -> u64 {
        let previous = self.value.fetch_max(to, Ordering::AcqRel);
        if previous < to {
            fence(Ordering::SeqCst);
            if self.waiters.load(Ordering::Relaxed) != 0 {
                self.parking.wake_all();
            }
        }
        previous
    }

    /// Where the watermark stands. Never less than what the same thread has seen before; all that
    /// was written before this value was published is visible.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Blocks until the watermark has reached `target`, or until `timeout` has gone by, and says
    /// whether it was reached. Not for a shard's thread, which must never block.
    #[must_use]
    pub fn wait_for(&self, target: u64, timeout: Duration) -> bool {
        if self.get() >= target {
            return true;
        }
        self.waiters.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.parking.wait_while(|| self.get() < target, timeout);
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        // Once more, for an advance that came together with the timeout.
        self.get() >= target
    }
}

impl Default for Watermark {
    fn default() -> Self {
        Self::new(0)
    }
}

impl fmt::Debug for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watermark").field(&self.get()).finish()
    }
}

#[cfg(all(test, not(palisade_loom)))]
mod tests {
    use super::*;

    #[test]
    fn going_back_is_ignored_and_reported() {
        let watermark = Watermark::default();
        assert_eq!(watermark.advance(5), 0);
        assert_eq!(watermark.advance(5), 5);
        assert_eq!(watermark.advance(4), 5);
        assert_eq!(watermark.advance(u64::MAX), 5);
        assert_eq!(format!("{watermark:?}"), format!("Watermark({})", u64::MAX));
    }

    #[test]
    fn waiters_are_counted_out_again() {
        let watermark = Watermark::new(1);
        assert!(!watermark.wait_for(2, Duration::ZERO));
        assert_eq!(watermark.waiters.load(Ordering::Relaxed), 0);
    }
}
