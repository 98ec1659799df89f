//! Tests of the protocols under loom: every interleaving, and every value that a load may return
//! under the memory model, within the bound on preemptions that each test states.
//!
//! ```text
//! RUSTFLAGS="--cfg palisade_loom" CARGO_TARGET_DIR=target-loom \
//!     cargo test -p palisade-sync --test loom --release
//! ```
//!
//! The flag is global to the build, but only Palisade's crates read it. Use a separate target
//! directory, because each change of the flag would rebuild the whole workspace.
//!
//! The bounds: at most three threads, at most two messages per sender, and at most [`PAIR`] or
//! [`TRIO`] preemptions. A preemption is a switch away from a thread that could have continued;
//! switches at blocking operations are not counted. Known bugs of such protocols need one or two.
//! `LOOM_MAX_PREEMPTIONS` overrides the bound for longer runs.
//!
//! A lost wake shows as loom's "deadlock", or as a failed assertion about the received messages.
//! The queue is a model that orders nothing by itself (see `src/primitives.rs`), so the orderings
//! that these tests verify are the protocol's own.

#![cfg(palisade_loom)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use palisade_sync::{Receiver, TrySendError, Watermark, mailbox};

/// The bound on preemptions for models of two threads.
const PAIR: usize = 3;
/// The bound on preemptions for models of three threads, which have far more interleavings.
const TRIO: usize = 2;

/// Ignored: under loom a wait has no timeout (see `src/primitives.rs`).
const NO_TIMEOUT: Duration = Duration::MAX;

fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// Receives until there are `count` messages. The senders must stay alive meanwhile, so that only a
/// wake for a message can end the wait.
fn receive(receiver: &mut Receiver<u8>, count: usize) -> Vec<u8> {
    block_on(async {
        let mut got = Vec::new();
        while got.len() < count {
            let taken = receiver.recv_batch(&mut got, 8).await;
            assert_ne!(taken, 0, "closed under a living sender");
        }
        got
    })
}

/// Receives until all senders are dropped.
fn receive_all(receiver: &mut Receiver<u8>) -> Vec<u8> {
    block_on(async {
        let mut got = Vec::new();
        while receiver.recv_batch(&mut got, 8).await != 0 {}
        got
    })
}

/// Counts its own drops.
struct Tracked(Arc<AtomicUsize>);

impl Drop for Tracked {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn mailbox_loses_no_wake_between_two_senders() {
    check(TRIO, || {
        let (first, mut receiver) = mailbox::<u8>(2);
        let second = first.clone();
        // `join` returns the senders, so that they outlive the call to `receive`.
        let first = thread::spawn(move || {
            first.try_send(1).unwrap();
            first
        });
        let second = thread::spawn(move || {
            second.try_send(2).unwrap();
            second
        });
        let mut got = receive(&mut receiver, 2);
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
        drop((first.join().unwrap(), second.join().unwrap()));
    });
}

#[test]
fn mailbox_loses_no_wake_between_batches() {
    check(PAIR, || {
        let (sender, mut receiver) = mailbox::<u8>(2);
        let sending = thread::spawn(move || {
            sender.try_send(1).unwrap();
            sender.try_send(2).unwrap();
            sender
        });
        assert_eq!(receive(&mut receiver, 2), [1, 2]);
        drop(sending.join().unwrap());
    });
}

#[test]
fn mailbox_wakes_receiver_when_last_sender_drops() {
    check(PAIR, || {
        let (sender, mut receiver) = mailbox::<u8>(1);
        let dropping = thread::spawn(move || drop(sender));
        assert!(receive_all(&mut receiver).is_empty());
        dropping.join().unwrap();
    });
}

#[test]
fn mailbox_wakes_receiver_when_both_senders_drop() {
    check(TRIO, || {
        let (first, mut receiver) = mailbox::<u8>(1);
        let second = first.clone();
        let first = thread::spawn(move || drop(first));
        let second = thread::spawn(move || drop(second));
        assert!(receive_all(&mut receiver).is_empty());
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn mailbox_close_never_overtakes_message() {
    check(PAIR, || {
        let (sender, mut receiver) = mailbox::<u8>(2);
        let sending = thread::spawn(move || {
            sender.try_send(1).unwrap();
            sender.try_send(2).unwrap();
        });
        assert_eq!(receive_all(&mut receiver), [1, 2]);
        sending.join().unwrap();
    });
}

#[test]
fn mailbox_delivers_accepted_and_returns_rejected_messages() {
    check(TRIO, || {
        let (first, mut receiver) = mailbox::<u8>(1);
        let second = first.clone();
        let send = |sender: palisade_sync::Sender<u8>, message: u8| {
            move || match sender.try_send(message) {
                Ok(()) => Some(message),
                Err(error) => {
                    assert_eq!(error, TrySendError::Full(message));
                    None
                }
            }
        };
        let first = thread::spawn(send(first, 1));
        let second = thread::spawn(send(second, 2));
        let mut got = receive_all(&mut receiver);
        got.sort_unstable();
        let accepted: Vec<u8> =
            [first.join().unwrap(), second.join().unwrap()].into_iter().flatten().collect();
        assert!(!accepted.is_empty(), "one of them found the mailbox empty");
        assert_eq!(got, accepted);
    });
}

#[test]
fn mailbox_preserves_order_per_sender() {
    check(TRIO, || {
        let (first, mut receiver) = mailbox::<u8>(4);
        let second = first.clone();
        let first = thread::spawn(move || {
            first.try_send(10).unwrap();
            first.try_send(11).unwrap();
        });
        let second = thread::spawn(move || {
            second.try_send(20).unwrap();
            second.try_send(21).unwrap();
        });
        let mut got: Vec<u8> = Vec::new();
        // Drain once while the senders run and once after, to split the messages over two batches.
        receiver.drain(&mut got, 3);
        first.join().unwrap();
        second.join().unwrap();
        receiver.drain(&mut got, 4);
        assert_eq!(got.len(), 4);
        for tens in [1_u8, 2] {
            let of_one: Vec<u8> = got.iter().copied().filter(|n| n / 10 == tens).collect();
            assert_eq!(of_one, [tens * 10, tens * 10 + 1]);
        }
    });
}

#[test]
fn mailbox_frees_message_sent_during_receiver_drop() {
    check(PAIR, || {
        let released = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = mailbox::<Tracked>(2);
        let message = Tracked(released.clone());
        let sending = thread::spawn(move || {
            // A rejected message is dropped here, an accepted one by the mailbox.
            drop(sender.try_send(message));
            sender
        });
        drop(receiver);
        let sender = sending.join().unwrap();
        assert_eq!(released.load(Ordering::Relaxed), 1, "it waits for the sender to go");
        let late = sender.try_send(Tracked(released));
        assert!(matches!(late, Err(TrySendError::Closed(_))));
    });
}

#[test]
fn mailbox_frees_messages_of_two_senders_during_receiver_drop() {
    check(TRIO, || {
        let released = Arc::new(AtomicUsize::new(0));
        let (first, receiver) = mailbox::<Tracked>(2);
        let second = first.clone();
        let message = Tracked(released.clone());
        let first = thread::spawn(move || {
            drop(first.try_send(message));
            first
        });
        let message = Tracked(released.clone());
        let second = thread::spawn(move || {
            drop(second.try_send(message));
            second
        });
        drop(receiver);
        let senders = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(released.load(Ordering::Relaxed), 2);
        drop(senders);
    });
}

#[test]
fn mailbox_receiver_may_drop_while_being_woken() {
    check(PAIR, || {
        let (sender, mut receiver) = mailbox::<u8>(1);
        let sending = thread::spawn(move || {
            let _ = sender.try_send(1);
        });
        // Leaves a registered waker, as a cancelled task does. Loom reports leaks.
        block_on(poll_fn(|cx| {
            let _ = receiver.poll_ready(cx);
            Poll::Ready(())
        }));
        drop(receiver);
        sending.join().unwrap();
    });
}

#[test]
fn watermark_waiter_misses_no_advance() {
    check(PAIR, || {
        let watermark = Arc::new(Watermark::new(0));
        let publisher = {
            let watermark = watermark.clone();
            thread::spawn(move || {
                watermark.advance(1);
                watermark.advance(2);
            })
        };
        assert!(watermark.wait_for(2, NO_TIMEOUT));
        assert_eq!(watermark.get(), 2);
        publisher.join().unwrap();
    });
}

#[test]
fn watermark_two_waiters_miss_no_advance() {
    check(TRIO, || {
        let watermark = Arc::new(Watermark::new(0));
        let near = {
            let watermark = watermark.clone();
            thread::spawn(move || assert!(watermark.wait_for(1, NO_TIMEOUT)))
        };
        let far = {
            let watermark = watermark.clone();
            thread::spawn(move || assert!(watermark.wait_for(2, NO_TIMEOUT)))
        };
        watermark.advance(1);
        watermark.advance(2);
        near.join().unwrap();
        far.join().unwrap();
    });
}

#[test]
fn watermark_never_decreases() {
    check(PAIR, || {
        let watermark = Arc::new(Watermark::new(0));
        let publisher = {
            let watermark = watermark.clone();
            thread::spawn(move || {
                assert_eq!(watermark.advance(1), 0);
                assert_eq!(watermark.advance(3), 1);
                assert_eq!(watermark.advance(2), 3);
            })
        };
        let seen = [watermark.get(), watermark.get(), watermark.get()];
        assert!(seen.is_sorted(), "{seen:?}");
        publisher.join().unwrap();
        assert_eq!(watermark.get(), 3);
    });
}

#[test]
fn watermark_advance_publishes_preceding_writes() {
    check(PAIR, || {
        let watermark = Arc::new(Watermark::new(0));
        let data = Arc::new(AtomicUsize::new(0));
        let publisher = {
            let watermark = watermark.clone();
            let data = data.clone();
            thread::spawn(move || {
                data.store(7, Ordering::Relaxed);
                watermark.advance(1);
                watermark.advance(2);
            })
        };
        assert!(watermark.wait_for(1, NO_TIMEOUT));
        assert_eq!(data.load(Ordering::Relaxed), 7);
        publisher.join().unwrap();
    });
}
