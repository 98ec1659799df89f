//! A bounded mailbox: many senders, one receiver, and at most one wake for a batch.
//!
//! # The problem
//!
//! A shard is one thread which runs the tasks of many groups. Other threads hand it work, and three
//! things can go wrong in the handing over:
//!
//! * **A wake is a system call.** Waking a task on another thread's executor ends in a write to an
//!   event descriptor. At a million messages a second that write costs more than the messages.
//! * **A blocked shard stalls every group it serves.** So a sender that is itself a shard must
//!   never wait, neither for room nor for a lock that somebody holds while being preempted.
//! * **An unbounded queue hides overload.** It turns "too much work" into memory and latency, and
//!   by the time anyone notices, everything in the queue has timed out anyway. The sender must be
//!   told, while it can still refuse, shed or slow down.
//!
//! # The naive way, and why it fails
//!
//! Take a concurrent queue, and beside it a slot for the receiver's waker. The receiver pops; when
//! the queue is empty, it registers its waker and sleeps. A sender pushes, then wakes.
//!
//! *It loses wakes.* Between the receiver's "the queue is empty" and its registration a sender may
//! push and wake. It finds no waker to wake; the receiver then registers, and sleeps over a message
//! nobody will mention again. So the receiver must look once more *after* it registered.
//!
//! *It wakes for every message.* A hundred messages sent while the receiver's thread comes out of
//! its sleep are a hundred system calls, of which the first was enough. A flag that says "a wake
//! is already under way" saves the other ninety-nine, and brings the lost wake back in a new
//! shape: a sender trusts the flag and stays quiet, while the receiver has just gone to sleep.
//!
//! *And a tempting shortcut.* Reading the flag before swapping it, and skipping the swap when it is
//! up, spares a contended write, and is wrong: nothing orders that read after the push of the same
//! sender (a store followed by a load of another location is the one pair that even x86
//! reorders). The receiver can then lower the flag, miss the push, and sleep.
//!
//! # The algorithm
//!
//! `pending` is up from when someone undertook to wake the receiver until the receiver next makes
//! up its mind to sleep. **Every access to it is a read-modify-write**; that is the whole trick.
//!
//! | sender                                  | receiver, about to sleep                 |
//! |-----------------------------------------|------------------------------------------|
//! | S1: push                                | R1: register the waker                   |
//! | S2: `pending.swap(true, AcqRel)`        | R2: `pending.swap(false, AcqRel)`        |
//! | S3: if it was down, wake                | R3: look again; sleep only if empty      |
//!
//! The swaps of one location have a single total order, and each reads what the one before it
//! wrote. Take any S2 and the receiver's last R2 before it sleeps:
//!
//! * **S2 comes before R2.** R2 reads from S2, or from a later swap in an unbroken chain of
//!   read-modify-writes, which belongs to the release sequence of S2. So S2 synchronizes with R2,
//!   S1 happens before R3, and R3 sees the message (or it was already taken). The receiver does
//!   not sleep over it.
//! * **S2 comes after R2.** Consider the first swap after R2. It is a sender's, it read `false`, so
//!   that sender goes on to S3. It read from R2, so R1 happens before S3, and the wake finds the
//!   waker (or finds it already taken by another wake, which is as good). All the senders between
//!   that one and the receiver's next R2 may stay quiet: the receiver is going to run.
//!
//! Nothing here needs the single order of all sequentially consistent operations, only the order
//! of one location, which is why `AcqRel` is enough.
//!
//! *At most one wake for a batch* is the same flag read the other way: between two R2 only one swap
//! reads `false`. The receiver does not lower the flag while it drains, so messages sent to a busy
//! receiver wake nobody. (When R3 finds a message after all, the flag is down though the receiver
//! is awake, and the next sender wakes it for nothing: once, and only in that race.)
//!
//! *The end of the senders* is one more message that takes no room: the last one to go subtracts
//! itself from `senders` in place of S1, and then does S2 and S3. In R3 the receiver reads
//! `senders` first and the queue second. Each sender's pushes happen before its subtraction, so a
//! receiver that reads zero sees all there will ever be, and "closed" never overtakes a message.
//!
//! *The end of the receiver* must not strand messages: one may carry the reply that somebody is
//! waiting for, and senders can live as long as the process. The receiver raises `closed`, swaps
//! `pending`, and empties the queue; a sender reads `closed` after S2, and if it is up, empties the
//! queue as well. Again the two swaps are ordered. If the sender's came first, the receiver sees
//! the message and drops it; if the receiver's came first, the sender sees `closed`.
//!
//! # What is left out
//!
//! * *Waiting for room.* A sender that gets [`TrySendError::Full`] decides for itself; a queue of
//!   waiting senders would be the unbounded queue again.
//! * *Fairness between senders.* A fast one can keep the mailbox full. Where that matters, give
//!   each peer its own mailbox.
//! * *Freedom from waiting in the strict sense.* The queue is crossbeam's `ArrayQueue`: a sender
//!   that is preempted between claiming a slot and filling it makes the receiver spin on that slot,
//!   and one preempted between S2 and S3 delays the wake. Both last for a few instructions and a
//!   turn of the scheduler, and thread-per-core makes them rare.
//! * *Priorities, timeouts, selection.* Those are for the task that receives.

use std::fmt;
use std::future::poll_fn;
use std::task::{Context, Poll};

use crate::primitives::{Arc, ArrayQueue, AtomicBool, AtomicUsize, AtomicWaker, Ordering};

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// Up while the receiver is awake or somebody is bound to wake it. Swapped, never just read
    /// or written: see the module's argument.
    pending: AtomicBool,
    waker: AtomicWaker,
    /// Counted here and not read off the `Arc`: "the last sender" must be decided by one atomic
    /// step, and the receiver holds the `Arc` as well.
    senders: AtomicUsize,
    /// The receiver is gone.
    closed: AtomicBool,
}

impl<T> Shared<T> {
    /// S2 and S3 of the module's argument.
    fn signal(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Drops what nobody will receive any more.
    fn sweep(&self) {
        while self.queue.pop().is_some() {}
    }
}

/// Makes a mailbox with room for `capacity` messages.
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

/// The end of a mailbox that work is put into. Clone it for each thread that sends.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Sender<T> {
    /// Puts a message into the mailbox, and wakes the receiver unless that was already done for
    /// this batch. Never blocks.
    ///
    /// `Ok` means accepted, not received: a receiver which goes away drops what is in its mailbox.
    ///
    /// # Errors
    ///
    /// [`TrySendError::Full`] when there is no room now, [`TrySendError::Closed`] when the receiver
    /// is gone. Both hand the message back.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        // Only the caller's errand is spared here; the load below is the one that matters.
        if self.is_closed() {
            return Err(TrySendError::Closed(message));
        }
        self.shared.queue.push(message).map_err(TrySendError::Full)?;
        self.shared.signal();
        // After the swap in `signal`, so that either this sees `closed` or the receiver, while it
        // goes, sees the message. The message cannot be told from others any more, so it is not
        // handed back: it counts as sent just before the receiver went.
        if self.is_closed() {
            self.shared.sweep();
        }
        Ok(())
    }

    /// Whether the receiver is gone. Once true it stays so.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        // Relaxed: the count cannot reach zero meanwhile, for it includes the sender being cloned.
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: self.shared.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // Release for this sender's pushes, acquire so that the last one passes on all the others'.
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

/// The end of a mailbox that work is taken from. There is one; it may move to another thread.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// What there is for the receiver to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// At least one message is there for [`Receiver::drain`].
    Messages,
    /// All the senders are gone and the mailbox is empty. It will stay so.
    Closed,
}

impl<T> Receiver<T> {
    /// Moves at most `max` messages that are there already to the end of `into`, and returns how
    /// many it moved. Never blocks.
    ///
    /// The bound is needed: senders may refill the mailbox as fast as it is drained, and the task
    /// that drains it shares its thread with others.
    ///
    /// Messages that arrive after this returned wake nobody until [`Receiver::poll_ready`] has
    /// said `Pending`. A task must not go to sleep on the word of this method alone.
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

    /// Says whether there is something to do, or else has the task of `cx` woken once there is.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Ready> {
        if !self.shared.queue.is_empty() {
            return Poll::Ready(Ready::Messages);
        }
        self.shared.waker.register(cx.waker());
        // A swap whose result is not wanted, and not a store: it must read what the senders wrote,
        // to see what they had pushed.
        self.shared.pending.swap(false, Ordering::AcqRel);
        // Before the queue: once there are no senders, what the queue holds is final.
        let abandoned = self.shared.senders.load(Ordering::Acquire) == 0;
        if !self.shared.queue.is_empty() {
            Poll::Ready(Ready::Messages)
        } else if abandoned {
            Poll::Ready(Ready::Closed)
        } else {
            Poll::Pending
        }
    }

    /// Waits for messages, moves at most `max` of them to the end of `into`, and returns how many.
    /// Zero means that all the senders are gone and the mailbox is empty, and nothing else.
    ///
    /// Dropping the future before it is done loses no message.
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
        // Ordered against the swap of each sender, like R2; left up, since there is nobody to wake.
        self.shared.pending.swap(true, Ordering::AcqRel);
        self.shared.sweep();
        // Senders may live for long, and a waker keeps its task's memory.
        self.shared.waker.clear();
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// Why a message was not accepted. It holds the message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// There is no room now. **Retryable**: the receiver may make room at any time. It is also the
    /// sign of overload, so retry at a pace, or refuse the work to whoever asked for it.
    Full(T),
    /// The receiver is gone. **Not retryable**: it will not come back.
    Closed(T),
}

impl<T> TrySendError<T> {
    /// Whether the same message may be accepted later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full(_))
    }

    /// The message that was not accepted.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

// By hand, so that an error over any message can be unwrapped, logged and boxed.
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
    fn errors_say_whether_to_retry_and_give_the_message_back() {
        let full = TrySendError::Full(1);
        let closed = TrySendError::Closed(2);
        assert!(full.is_retryable());
        assert!(!closed.is_retryable());
        assert_eq!(full.to_string(), "the mailbox is full");
        assert_eq!(format!("{closed:?}"), "Closed(..)");
        assert_eq!((full.into_inner(), closed.into_inner()), (1, 2));
    }

    #[test]
    fn the_last_sender_is_counted_through_clones() {
        let (sender, receiver) = mailbox::<u8>(1);
        let clone = sender.clone();
        assert_eq!(receiver.shared.senders.load(Ordering::Relaxed), 2);
        drop(sender);
        drop(clone);
        assert_eq!(receiver.shared.senders.load(Ordering::Relaxed), 0);
    }

    #[test]
    #[should_panic(expected = "capacity must be non-zero")]
    fn a_mailbox_has_room_for_something() {
        let _ = mailbox::<u8>(0);
    }
}
