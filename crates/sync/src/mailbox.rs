//! A bounded mailbox: many senders, one receiver, and at most one wake per batch.
//!
//! # The problem
//!
//! A shard is one thread that runs the tasks of many groups. Other threads hand it work:
//!
//! * **A wake is a system call.** Waking a task on another thread's executor ends in a write to an
//!   event descriptor. At a million messages per second that write costs more than the messages.
//! * **A blocked shard stalls every group that it serves.** A sender may itself be a shard, so it
//!   must never wait: neither for room, nor for a lock whose holder was preempted.
//! * **An unbounded queue hides overload.** It turns excess work into memory and latency. By the
//!   time the overload is noticed, the queued requests have timed out. The sender must get an error
//!   while it can still refuse, shed or slow down.
//!
//! # The naive design, and why it fails
//!
//! Take a concurrent queue and a slot for the receiver's waker. The receiver pops; if the queue is
//! empty, it registers its waker and sleeps. A sender pushes, then wakes.
//!
//! *It loses wakes.* A sender may push and wake after the receiver found the queue empty, but
//! before the receiver registered its waker. The wake finds no waker. The receiver then registers
//! and sleeps although a message is queued. So the receiver must check the queue again *after* it
//! has registered.
//!
//! *It wakes for every message.* A hundred messages sent while the receiver's thread wakes up cost
//! a hundred system calls, of which the first was enough. A flag that records a pending wake saves
//! the other ninety-nine, but it can lose a wake in a new way: a sender sees the flag set and skips
//! the wake, while the receiver has just gone to sleep.
//!
//! *A tempting shortcut is wrong.* A sender could load the flag first, and skip the swap if it is
//! set, to avoid a contended write. But nothing orders that load after the sender's own push. (A
//! store followed by a load of another location is the one pair that even x86 reorders.) The
//! receiver can then clear the flag, miss the push, and sleep.
//!
//! # The algorithm
//!
//! `pending` is true from a sender's decision to wake the receiver until the receiver next prepares
//! to sleep. **Every access to it is a read-modify-write**; the proof below rests on that.
//!
//! | sender                                  | receiver, about to sleep                     |
//! |-----------------------------------------|----------------------------------------------|
//! | S1: push                                | R1: register the waker                       |
//! | S2: `pending.swap(true, AcqRel)`        | R2: `pending.swap(false, AcqRel)`            |
//! | S3: if it was false, wake               | R3: check the queue again; sleep if empty    |
//!
//! The swaps of one location have a single total order, and each reads the value that the previous
//! one wrote. Take any S2 and the receiver's last R2 before it sleeps:
//!
//! * **S2 precedes R2.** R2 reads from S2, or from a later swap in an unbroken chain of
//!   read-modify-writes, which belongs to the release sequence of S2. So S2 synchronizes with R2,
//!   and S1 happens before R3. R3 sees the message, unless it was already taken. The receiver does
//!   not sleep while that message is queued.
//! * **S2 follows R2.** The first swap after R2 is a sender's. It read `false`, so that sender
//!   continues with S3. It read from R2, so R1 happens before S3, and the wake finds the waker. (Or
//!   another wake has already taken the waker, which has the same effect.) Senders between that one
//!   and the receiver's next R2 may skip the wake, because the receiver is going to run.
//!
//! The proof needs only the order of one location, and not the single order of all sequentially
//! consistent operations. So `AcqRel` is enough.
//!
//! *At most one wake per batch* follows from the same flag: between two R2 only one swap reads
//! `false`. The receiver does not clear the flag while it drains, so a message to a busy receiver
//! causes no wake. (If R3 does find a message, the flag is false although the receiver is awake.
//! The next sender then causes one unnecessary wake. This happens only in that race.)
//!
//! *The end of the senders* counts as one more message, which needs no room. The last sender to be
//! dropped decrements `senders` in place of S1, then does S2 and S3. In R3 the receiver reads
//! `senders` first and the queue second. Each sender's pushes happen before its decrement, so a
//! receiver that reads zero sees all messages, and "closed" never overtakes a message.
//!
//! *The end of the receiver* must not strand messages: one of them may carry a reply that another
//! task waits for, and senders can live as long as the process. The receiver sets `closed`, swaps
//! `pending`, and empties the queue. A sender reads `closed` after S2, and empties the queue as
//! well if it is set. The two swaps are ordered again. If the sender's came first, the receiver
//! sees the message and drops it. If the receiver's came first, the sender sees `closed`.
//!
//! # What is left out
//!
//! * *Waiting for room.* A sender that gets [`TrySendError::Full`] decides what to do. A queue of
//!   waiting senders would again be an unbounded queue.
//! * *Fairness between senders.* A fast sender can keep the mailbox full. Where that matters, give
//!   each peer its own mailbox.
//! * *Strict wait-freedom.* The queue is crossbeam's `ArrayQueue`. A sender that is preempted
//!   between claiming a slot and filling it makes the receiver spin on that slot. A sender that is
//!   preempted between S2 and S3 delays the wake. Both last for a few instructions and one
//!   scheduling delay, and are rare with one thread per core.
//! * *Priorities, timeouts, selection.* They belong to the receiving task.

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll};

use crate::primitives::{Arc, ArrayQueue, AtomicBool, AtomicUsize, AtomicWaker, Ordering};

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// True from a sender's decision to wake the receiver until the receiver next prepares to
    /// sleep. Only swapped, never loaded or stored: see the proof in the module documentation.
    pending: AtomicBool,
    waker: AtomicWaker,
    /// The number of senders. The `Arc`'s count does not serve: the last sender must be found by
    /// one atomic operation, and the receiver holds the `Arc` as well.
    senders: AtomicUsize,
    /// The receiver was dropped.
    closed: AtomicBool,
}

impl<T> Shared<T> {
    /// Does S2 and S3 of the algorithm in the module documentation.
    fn signal(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Drops all queued messages, because no receiver will take them.
    fn sweep(&self) {
        while self.queue.pop().is_some() {}
    }
}

/// Creates a mailbox with room for `capacity` messages.
///
/// ```
/// use palisade_sync::{TrySendError, mailbox};
///
/// let (sender, mut receiver) = mailbox(2);
/// sender.try_send("a").unwrap();
/// sender.try_send("b").unwrap();
/// assert_eq!(sender.try_send("c"), Err(TrySendError::Full("c")));
///
/// let mut batch: Vec<&str> = Vec::new();
/// assert_eq!(receiver.drain(&mut batch, 16), 2);
/// assert_eq!(batch, ["a", "b"]);
/// ```
///
/// # Panics
///
/// If `capacity` is zero.
pub fn mailbox<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        pending: AtomicBool::new(false),
        waker: AtomicWaker::default(),
        senders: AtomicUsize::new(1),
        closed: AtomicBool::new(false),
    });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

/// The sending end of a mailbox. Clone it for each thread that sends.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Puts a message into the mailbox, and wakes the receiver unless a wake for this batch has
    /// already been sent. Never blocks.
    ///
    /// `Ok` means accepted, not received: a receiver that is dropped drops its queued messages.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] if the mailbox has no room now (retryable), [`TrySendError::Closed`]
    /// if the receiver was dropped (not retryable). Both return the message.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        // Returns the message if the mailbox is known to be closed. The second check below is the
        // one that prevents stranded messages.
        if self.is_closed() {
            return Err(TrySendError::Closed(message));
        }
        self.shared.queue.push(message).map_err(TrySendError::Full)?;
        self.shared.signal();
        // After the swap in `signal`: either this load sees `closed`, or the receiver's `drop` sees
        // the message. The message can't be identified in the queue any more, so it is not
        // returned: it counts as sent just before the receiver was dropped.
        if self.is_closed() {
            self.shared.sweep();
        }
        Ok(())
    }

    /// Returns true if the receiver was dropped. Once true, it stays true.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        // Relaxed: the count can't reach zero meanwhile, because it includes `self`.
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // Release for this sender's pushes. Acquire, so that the last sender's swap in `signal`
        // publishes the pushes of all other senders, too.
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.signal();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The receiving end of a mailbox. There is exactly one; it may move to another thread.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// Why a receiver is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// At least one message is queued for [`Receiver::drain`].
    Messages,
    /// All senders were dropped and the mailbox is empty. This is final.
    Closed,
}

impl<T> Receiver<T> {
    /// Moves at most `max` queued messages to the end of `into`, and returns their number. Never
    /// blocks.
    ///
    /// The limit is needed because senders may refill the mailbox as fast as it is drained, and the
    /// draining task shares its thread with others.
    ///
    /// Messages that arrive after this call may cause no wake until [`Receiver::poll_ready`] has
    /// returned `Pending`. A task must not go to sleep because this method returned zero.
    pub fn drain(&mut self, into: &mut impl Extend<T>, max: usize) -> usize {
        let mut taken = 0;
        into.extend(std::iter::from_fn(|| {
            if taken == max {
                return None;
            }
            let message = self.shared.queue.pop()?;
            taken += 1;
            Some(message)
        }));
        taken
    }

    /// Returns `Ready` if a message is queued or the mailbox is closed. Otherwise returns `Pending`
    /// and wakes the task of `cx` once one of these is true.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Ready> {
        if !self.shared.queue.is_empty() {
            return Poll::Ready(Ready::Messages);
        }
        self.shared.waker.register(cx.waker());
        // A swap although its result is unused: only a read of a sender's swap makes the sender's
        // pushes visible. A store would not.
        self.shared.pending.swap(false, Ordering::AcqRel);
        // Read before the queue: once there are no senders, the contents of the queue are final.
        let abandoned = self.shared.senders.load(Ordering::Acquire) == 0;
        if !self.shared.queue.is_empty() {
            Poll::Ready(Ready::Messages)
        } else if abandoned {
            Poll::Ready(Ready::Closed)
        } else {
            Poll::Pending
        }
    }

    /// Waits for messages, moves at most `max` of them to the end of `into`, and returns their
    /// number. Returns zero only if all senders were dropped and the mailbox is empty.
    ///
    /// Dropping the future before it completes loses no message.
    ///
    /// # Panics
    ///
    /// If `max` is zero.
    pub async fn recv_batch(&mut self, into: &mut Vec<T>, max: usize) -> usize {
        assert!(max > 0, "a batch of no messages cannot be told from a closed mailbox");
        loop {
            let ready = poll_fn(|cx| self.poll_ready(cx)).await;
            match ready {
                Ready::Closed => return 0,
                Ready::Messages => {
                    let taken = self.drain(into, max);
                    if taken > 0 {
                        return taken;
                    }
                }
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        // Ordered against the swap of each sender, like R2. The flag stays true, because there is
        // no receiver to wake.
        self.shared.pending.swap(true, Ordering::AcqRel);
        self.shared.sweep();
        // Senders may live long, and a waker keeps its task's memory allocated.
        self.shared.waker.clear();
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// Why a message was not accepted. Contains the message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The mailbox is full. **Retryable**: the receiver may make room at any time. Since it is also
    /// the sign of overload, pace the retries, or refuse the work to its requester.
    Full(T),
    /// The receiver was dropped. **Not retryable**: the mailbox stays closed.
    Closed(T),
}

impl<T> TrySendError<T> {
    /// Returns true if the same message may be accepted later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    /// Returns the message that was not accepted.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

// Implemented by hand, without `T: Debug`, so that an error over any `T` can be unwrapped, logged
// and boxed.
impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the mailbox is full",
            Self::Closed(_) => "the mailbox is closed: its receiver is gone",
        })
    }
}

impl<T> std::error::Error for TrySendError<T> {}

#[cfg(all(test, not(palisade_loom)))]
mod tests {
    use super::*;

    #[test]
    fn send_error_returns_message_and_retryability() {
        let full = TrySendError::Full(1);
        let closed = TrySendError::Closed(2);
        assert!(full.is_retryable());
        assert!(!closed.is_retryable());
        assert_eq!(full.to_string(), "the mailbox is full");
        assert_eq!(format!("{closed:?}"), "Closed(..)");
        assert_eq!((full.into_inner(), closed.into_inner()), (1, 2));
    }

    #[test]
    fn sender_count_includes_clones() {
        let (sender, receiver) = mailbox::<u8>(1);
        let clone = sender.clone();
        assert_eq!(receiver.shared.senders.load(Ordering::Relaxed), 2);
        drop(sender);
        drop(clone);
        assert_eq!(receiver.shared.senders.load(Ordering::Relaxed), 0);
    }

    #[test]
    #[should_panic(expected = "capacity must be non-zero")]
    fn capacity_of_zero_panics() {
        let _ = mailbox::<u8>(0);
    }
}
