//! A number that only grows, published by one thread and observed by others.
//!
//! # The problem
//!
//! A shard's thread publishes progress, for example that it has opened its log or has drained its
//! inbox. Progress may be published often, and is rarely waited for: the server's main thread waits
//! at start and at shutdown. So publishing must cost almost nothing while no thread waits. Yet a
//! waiter must never stay asleep after the value that it waits for was published.
//!
//! # The naive designs, and why they fail
//!
//! *A lock and a condition variable around the number* are correct, but the shard takes the lock
//! and notifies at each step. Worse, an observer that is preempted while it holds the lock stops
//! the shard.
//!
//! *An atomic number, with the lock only on the waiter's side,* loses wakes: the waiter reads the
//! old value, the publisher advances and notifies before anything sleeps, and the waiter sleeps.
//!
//! *A count of waiters that the publisher reads before it takes the lock* is the right idea with a
//! trap in it. The publisher writes the value and then reads the count. The waiter writes the count
//! and then reads the value. With only acquire and release, both may read the old value: each write
//! stays in its core's store buffer while the read proceeds. The publisher sees no waiter, the
//! waiter sees no progress, and it sleeps.
//!
//! # The algorithm
//!
//! | publisher                         | waiter                                            |
//! |-----------------------------------|---------------------------------------------------|
//! | P1: `value.fetch_max`             | W1: `waiters += 1`                                |
//! | P2: `fence(SeqCst)`               | W2: `fence(SeqCst)`                               |
//! | P3: read `waiters`; done if 0     | W3: take the lock                                 |
//! | P4: take the lock, release it     | W4: read `value`; leave if reached                |
//! | P5: notify all                    | W5: atomically unlock and sleep; then W4          |
//!
//! All sequentially consistent fences have one total order. Take an advance that reaches a waiter's
//! target:
//!
//! * **P2 precedes W2.** Then each W4 of the waiter sees the value of P1 or a later one, and the
//!   waiter does not sleep.
//! * **W2 precedes P2.** Then P3 sees the waiter's increment. The count is not zero until the
//!   waiter leaves, because other waiters subtract only what they added themselves. So the
//!   publisher continues with P4. If P4 takes the lock before the waiter takes it for its latest
//!   W4, that W4 sees the value. Otherwise P4 takes the lock after the waiter has released it in
//!   W5. The waiter is registered with the condition variable by then, and P5 wakes it.
//!
//! The count is raised once for all rounds of W4 and W5. The proof holds for each round, because
//! the order of the two fences is fixed.
//!
//! The fences allow the accesses around them to be relaxed. `SeqCst` accesses would work as well,
//! but loom models only the fences exactly. It treats `SeqCst` accesses as acquire and release, so
//! it would report store-buffer effects as bugs of this code. The code that is checked should be
//! the code that runs.
//!
//! `fetch_max` releases and `get` acquires, so a thread that reads a value sees all writes of its
//! publisher before it. A later advance does not break that: it is a read-modify-write, and
//! continues the release sequence.
//!
//! # What is left out
//!
//! * *An async wait.* A task of a shard is notified by a message. Only threads that may block wait
//!   here.
//! * *Lock freedom while a thread waits.* The publisher then takes the lock in P4, and may wait for
//!   it while a waiter reads one number. Waiting is meant for start, shutdown and tests. A thread
//!   that waits repeatedly should use a mailbox.

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
    /// Creates a watermark with the value `start`.
    pub fn new(start: u64) -> Self {
        Self {
            value: AtomicU64::new(start),
            waiters: AtomicUsize::new(0),
            parking: Parking::default(),
        }
    }

    /// Raises the watermark to `to` and returns the previous value. If that is `to` or more, the
    /// watermark stays unchanged: a late or repeated report is no error.
    ///
    /// Takes no lock unless a thread is in [`Watermark::wait_for`].
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

    /// Returns the current value. It is never less than a value that the same thread has read
    /// before. All writes that precede the publication of the value are visible.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Blocks until the watermark has reached `target` or `timeout` has elapsed. Returns true if
    /// `target` was reached. Must not be called on a shard's thread, which must never block.
    #[must_use]
    pub fn wait_for(&self, target: u64, timeout: Duration) -> bool {
        if self.get() >= target {
            return true;
        }
        self.waiters.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.parking.wait_while(|| self.get() < target, timeout);
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        // Read again, because an advance may coincide with the timeout.
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
    fn advance_ignores_lower_values_and_returns_previous() {
        let watermark = Watermark::default();
        assert_eq!(watermark.advance(5), 0);
        assert_eq!(watermark.advance(5), 5);
        assert_eq!(watermark.advance(4), 5);
        assert_eq!(watermark.advance(u64::MAX), 5);
        assert_eq!(format!("{watermark:?}"), format!("Watermark({})", u64::MAX));
    }

    #[test]
    fn waiter_count_returns_to_zero_after_timeout() {
        let watermark = Watermark::new(1);
        assert!(!watermark.wait_for(2, Duration::ZERO));
        assert_eq!(watermark.waiters.load(Ordering::Relaxed), 0);
    }
}
