//! The types that the algorithms are built from, in two versions: the real ones and loom's.
//!
//! The switch is `cfg(palisade_loom)` and never `cfg(loom)`: flags are global to a build, and
//! several dependencies change their types under `cfg(loom)`.
//!
//! Under loom the queue is a model, not crossbeam's code. This crate owns, and so must prove, the
//! wake protocol *around* the queue. The model therefore guarantees no more than the real queue
//! does; see `modelled::ArrayQueue`.

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

    /// A slot for the waker of one task.
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

    /// A lock and a condition variable, for threads that block until a condition changes.
    #[derive(Default)]
    pub(crate) struct Parking {
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Parking {
        /// Blocks while `condition` holds, for at most `timeout` in total over all wakes. Evaluates
        /// the condition under the lock that [`Parking::wake_all`] takes.
        pub(crate) fn wait_while(&self, mut condition: impl FnMut() -> bool, timeout: Duration) {
            let mut guard = self.lock.lock();
            self.changed.wait_while_for(&mut guard, |_| condition(), timeout);
        }

        /// Wakes every waiter. The lock ensures that a waiter that evaluated its condition before
        /// this call is already asleep when the notification is sent.
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

    /// A model of crossbeam's queue, with the methods that this crate uses.
    ///
    /// A lock alone would be too strong a model: a read under it would be ordered after every
    /// earlier push, and the protocol would pass its tests with no ordering of its own. So
    /// emptiness is read from a relaxed counter outside the lock. The counter guarantees only
    /// coherence: a read sees each push that happens before it, and may miss any other. The
    /// ordering must then come from the protocol, as with the real queue.
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
            // Incremented under the lock, so that no pop decrements before its push increments.
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

    /// A slot for the waker of one task.
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

    /// A lock and a condition variable, for threads that block until a condition changes.
    #[derive(Default)]
    pub(crate) struct Parking {
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Parking {
        /// Ignores the timeout, because loom has no time. A wait that only a timeout would end is
        /// the bug that the tests look for, and loom reports it as a deadlock.
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
