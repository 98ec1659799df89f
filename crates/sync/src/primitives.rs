//! What the algorithms are built from, in two makes: the real one, and loom's.
//!
//! The switch is `cfg(palisade_loom)` and never `cfg(loom)`: flags are global to a build, and
//! several crates we depend on change their shape under the latter.
//!
//! Under loom the queue is a model, not crossbeam's code. What we own, and so what we must prove,
//! is the wake protocol *around* the queue. The model is therefore made to promise no more than the
//! real queue does; see the note on `modelled::ArrayQueue`.

#[cfg(palisade_loom)]
pub(crate) use self::modelled::{
    Arc, ArrayQueue, AtomicBool, AtomicU64, AtomicUsize, AtomicWaker, Ordering, Parking, fence,
};
#[cfg(not(palisade_loom))]
pub(crate) use self::real::{
    Arc, ArrayQueue, AtomicBool, AtomicU64, AtomicUsize, AtomicWaker, Ordering, Parking, fence,
};

#[cfg(not(palisade_loom))]
mod real {
    use std::task::Waker;
    use std::time::Duration;

    use parking_lot::{Condvar, Mutex};

    pub(crate) use crossbeam::queue::ArrayQueue;
    pub(crate) use std::sync::Arc;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

    /// One slot for the waker of the task to wake.
    #[derive(Default)]
    pub(crate) struct AtomicWaker(atomic_waker::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }

        pub(crate) fn clear(&self) {
            drop(self.0.take());
        }
    }

    /// A place where threads block until something they look at has changed.
    #[derive(Default)]
    pub(crate) struct Parking {
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Parking {
        /// Blocks while `condition` holds, `timeout` at most in all, however often it is woken.
        /// The condition is looked at under the lock which [`Parking::wake_all`] takes.
        pub(crate) fn wait_while(&self, mut condition: impl FnMut() -> bool, timeout: Duration) {
            let mut guard = self.lock.lock();
            self.changed.wait_while_for(&mut guard, |_| condition(), timeout);
        }

        /// Wakes every waiter. A waiter that looked before this call is asleep by the time of the
        /// notification, and not between its look and its sleep: that is what the lock is for.
        pub(crate) fn wake_all(&self) {
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }
}

#[cfg(palisade_loom)]
mod modelled {
    use std::collections::VecDeque;
    use std::task::Waker;
    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

    const NEVER_POISONED: &str = "loom's locks are never poisoned";

    /// A model of crossbeam's queue, with as much of its surface as is used.
    ///
    /// A lock alone would make too good a queue: looking at it would order the looker after every
    /// earlier push, and the protocol around it would pass its tests with no ordering of its own.
    /// So emptiness is read from a relaxed counter, outside the lock. All that this promises is
    /// coherence: a push that happens before a look is seen by it, any other may be missed. The
    /// ordering must then come from the protocol, as it must with the real queue.
    pub(crate) struct ArrayQueue<T> {
        slots: Mutex<VecDeque<T>>,
        len: AtomicUsize,
        capacity: usize,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            assert!(capacity > 0, "capacity must be non-zero");
            Self { slots: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0), capacity }
        }

        pub(crate) fn push(&self, value: T) -> Result<(), T> {
            let mut slots = self.slots.lock().expect(NEVER_POISONED);
            if slots.len() == self.capacity {
                return Err(value);
            }
            slots.push_back(value);
            // Counted under the lock, so that a popper never subtracts what was not yet added.
            self.len.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            if self.is_empty() {
                return None;
            }
            let mut slots = self.slots.lock().expect(NEVER_POISONED);
            let value = slots.pop_front();
            if value.is_some() {
                self.len.fetch_sub(1, Ordering::Relaxed);
            }
            value
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len.load(Ordering::Relaxed) == 0
        }
    }

    /// One slot for the waker of the task to wake.
    #[derive(Default)]
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }

        pub(crate) fn clear(&self) {
            drop(self.0.take_waker());
        }
    }

    /// A place where threads block until something they look at has changed.
    #[derive(Default)]
    pub(crate) struct Parking {
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Parking {
        /// Without the timeout: loom has no time, and a wait which only a timeout would end is the
        /// very fault we look for. Loom reports it as a deadlock.
        pub(crate) fn wait_while(&self, mut condition: impl FnMut() -> bool, _timeout: Duration) {
            let mut guard = self.lock.lock().expect(NEVER_POISONED);
            while condition() {
                guard = self.changed.wait(guard).expect(NEVER_POISONED);
            }
        }

        pub(crate) fn wake_all(&self) {
            drop(self.lock.lock().expect(NEVER_POISONED));
            self.changed.notify_all();
        }
    }
}
