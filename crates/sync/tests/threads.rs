//! Tests of the real implementation on real threads: crossbeam's queue and parking_lot's locks,
//! which loom does not check. Wake counts are exact where they can be. Deadlines only turn a hang
//! into a failure.

#![cfg(not(palisade_loom))]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use palisade_sync::{Ready, Receiver, Sender, TrySendError, Watermark, mailbox};

/// Longer than one step takes on any machine, however loaded.
const PATIENCE: Duration = Duration::from_secs(60);

/// A waker that counts its wakes and unparks the thread that created it.
struct Unpark {
    thread: Thread,
    wakes: AtomicUsize,
    woken: AtomicBool,
}

impl Unpark {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            thread: thread::current(),
            wakes: AtomicUsize::new(0),
            woken: AtomicBool::new(false),
        })
    }

    fn wakes(&self) -> usize {
        self.wakes.load(Ordering::SeqCst)
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.woken.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Polls only when woken, so that a lost wake fails the test and no extra poll hides it.
fn block_on<F: Future>(unpark: &Arc<Unpark>, future: F) -> F::Output {
    let waker = Waker::from(Arc::clone(unpark));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        let asleep = Instant::now();
        while !unpark.woken.swap(false, Ordering::SeqCst) {
            assert!(asleep.elapsed() < PATIENCE, "the receiver was not woken");
            thread::park_timeout(PATIENCE);
        }
    }
}

fn send_patiently<T>(sender: &Sender<T>, mut message: T) {
    let start = Instant::now();
    loop {
        match sender.try_send(message) {
            Ok(()) => return,
            Err(TrySendError::Full(back)) => message = back,
            Err(TrySendError::Closed(_)) => panic!("the receiver went away"),
        }
        assert!(start.elapsed() < PATIENCE, "the mailbox is not drained");
        thread::yield_now();
    }
}

#[test]
fn mailbox_and_watermark_can_move_between_threads() {
    fn send<T: Send>() {}
    fn share<T: Sync>() {}
    send::<Sender<u8>>();
    share::<Sender<u8>>();
    send::<Receiver<u8>>();
    send::<Watermark>();
    share::<Watermark>();
}

#[test]
fn mailbox_loses_and_reorders_nothing_with_four_senders() {
    const SENDERS: usize = 4;
    const EACH: usize = 50_000;

    let (sender, mut receiver) = mailbox::<(usize, usize)>(256);
    let senders: Vec<_> = (0..SENDERS)
        .map(|id| {
            let sender = sender.clone();
            thread::spawn(move || {
                for n in 0..EACH {
                    send_patiently(&sender, (id, n));
                }
            })
        })
        .collect();
    drop(sender);

    let unpark = Unpark::new();
    let mut next = [0; SENDERS];
    let mut batch = Vec::new();
    while block_on(&unpark, receiver.recv_batch(&mut batch, 64)) != 0 {
        assert!(batch.len() <= 64);
        for (id, n) in batch.drain(..) {
            assert_eq!(n, next[id], "sender {id}");
            next[id] += 1;
        }
    }
    assert_eq!(next, [EACH; SENDERS]);
    for sender in senders {
        sender.join().unwrap();
    }
    // At most one wake for each message and one for the end. Doubled, because a registration that
    // races with a wake may wake the task a second time.
    assert!(unpark.wakes() <= 2 * (SENDERS * EACH + 1), "{} wakes", unpark.wakes());
}

#[test]
fn mailbox_of_capacity_one_loses_nothing_under_load() {
    const EACH: usize = 5_000;

    let (sender, mut receiver) = mailbox::<usize>(1);
    let other = sender.clone();
    let senders = [sender, other].map(|sender| {
        thread::spawn(move || {
            for n in 1..=EACH {
                send_patiently(&sender, n);
            }
        })
    });
    let unpark = Unpark::new();
    let mut batch = Vec::new();
    let (mut count, mut sum) = (0, 0);
    while block_on(&unpark, receiver.recv_batch(&mut batch, usize::MAX)) != 0 {
        count += batch.len();
        sum += batch.drain(..).sum::<usize>();
    }
    assert_eq!(count, 2 * EACH);
    assert_eq!(sum, EACH * (EACH + 1));
    for sender in senders {
        sender.join().unwrap();
    }
}

#[test]
fn mailbox_wakes_receiver_once_per_batch() {
    const ROUNDS: usize = 200;
    const SENDERS: usize = 4;
    const EACH: usize = 16;

    let (sender, mut receiver) = mailbox::<usize>(SENDERS * EACH);
    let unpark = Unpark::new();
    let waker = Waker::from(Arc::clone(&unpark));
    let mut cx = Context::from_waker(&waker);
    let mut batch = Vec::new();

    for round in 1..=ROUNDS {
        assert_eq!(receiver.poll_ready(&mut cx), Poll::Pending);
        thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    for n in 0..EACH {
                        sender.try_send(n).unwrap();
                    }
                });
            }
        });
        assert_eq!(unpark.wakes(), round, "one wake for all that came while it slept");
        assert_eq!(receiver.poll_ready(&mut cx), Poll::Ready(Ready::Messages));
        batch.clear();
        assert_eq!(receiver.drain(&mut batch, usize::MAX), SENDERS * EACH);
    }

    sender.try_send(0).unwrap();
    assert_eq!(unpark.wakes(), ROUNDS, "an awake receiver is not woken");
    assert_eq!(receiver.poll_ready(&mut cx), Poll::Ready(Ready::Messages));
}

#[test]
fn mailbox_at_capacity_rejects_and_keeps_order() {
    let (sender, mut receiver) = mailbox::<u32>(3);
    for n in 0..3 {
        sender.try_send(n).unwrap();
    }
    assert_eq!(sender.try_send(3), Err(TrySendError::Full(3)));
    let mut got = Vec::new();
    assert_eq!(receiver.drain(&mut got, 1), 1);
    sender.try_send(3).unwrap();
    assert_eq!(sender.try_send(4), Err(TrySendError::Full(4)));
    assert_eq!(receiver.drain(&mut got, 0), 0);
    assert_eq!(receiver.drain(&mut got, 10), 3);
    assert_eq!(got, [0, 1, 2, 3]);
    assert_eq!(receiver.drain(&mut got, 10), 0);
}

#[test]
fn mailbox_closes_and_wakes_when_last_sender_drops() {
    let (sender, mut receiver) = mailbox::<u8>(4);
    let unpark = Unpark::new();
    let waker = Waker::from(Arc::clone(&unpark));
    let mut cx = Context::from_waker(&waker);
    let clone = sender.clone();

    assert_eq!(receiver.poll_ready(&mut cx), Poll::Pending);
    drop(clone);
    assert_eq!(unpark.wakes(), 0);
    assert_eq!(receiver.poll_ready(&mut cx), Poll::Pending);
    sender.try_send(9).unwrap();
    drop(sender);
    assert_eq!(unpark.wakes(), 1, "the message and the end are one batch");

    let mut got = Vec::new();
    assert_eq!(block_on(&unpark, receiver.recv_batch(&mut got, 8)), 1);
    assert_eq!(block_on(&unpark, receiver.recv_batch(&mut got, 8)), 0);
    assert_eq!(block_on(&unpark, receiver.recv_batch(&mut got, 8)), 0);
    assert_eq!(got, [9]);
}

#[test]
fn mailbox_receiver_drop_closes_and_frees_waker() {
    let (sender, mut receiver) = mailbox(2);
    let message = Arc::new(());
    let unpark = Unpark::new();
    {
        let waker = Waker::from(Arc::clone(&unpark));
        assert_eq!(receiver.poll_ready(&mut Context::from_waker(&waker)), Poll::Pending);
    }
    assert_eq!(Arc::strong_count(&unpark), 2);
    assert!(!sender.is_closed());
    drop(receiver);
    assert_eq!(Arc::strong_count(&unpark), 1);
    assert!(sender.is_closed());
    let error = sender.try_send(Arc::clone(&message)).unwrap_err();
    assert!(!error.is_retryable());
    assert!(Arc::ptr_eq(&error.into_inner(), &message));
}

#[test]
fn mailbox_frees_messages_racing_with_receiver_drop() {
    for _ in 0..500 {
        let (sender, receiver) = mailbox(8);
        let message = Arc::new(());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        let _ = sender.try_send(Arc::clone(&message));
                    }
                });
            }
            scope.spawn(move || drop(receiver));
        });
        assert_eq!(Arc::strong_count(&message), 1, "the sender is still there, the message not");
        assert!(sender.is_closed());
    }
}

#[test]
fn watermark_waiters_wake_at_their_target() {
    const TOP: u64 = 20_000;

    let watermark = Watermark::new(0);
    thread::scope(|scope| {
        for step in [1, 7, 501] {
            let watermark = &watermark;
            scope.spawn(move || {
                let mut target = step;
                while target <= TOP {
                    assert!(watermark.wait_for(target, PATIENCE));
                    let seen = watermark.get();
                    assert!(seen >= target);
                    target = seen + step;
                }
            });
        }
        scope.spawn(|| {
            for to in 1..=TOP {
                assert_eq!(watermark.advance(to), to - 1);
            }
        });
    });
    assert_eq!(watermark.get(), TOP);
}

#[test]
fn watermark_wait_ends_at_timeout() {
    let watermark = Watermark::new(4);
    assert!(watermark.wait_for(4, Duration::ZERO));
    let start = Instant::now();
    assert!(!watermark.wait_for(5, Duration::from_millis(30)));
    assert!(start.elapsed() >= Duration::from_millis(30));
    watermark.advance(5);
    assert!(watermark.wait_for(5, Duration::MAX));
}

#[test]
fn watermark_advances_below_target_do_not_extend_wait() {
    let watermark = Watermark::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            let mut to = 0;
            while !done.load(Ordering::SeqCst) && start.elapsed() < PATIENCE {
                to += 1;
                watermark.advance(to);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let start = Instant::now();
        let reached = watermark.wait_for(u64::MAX, Duration::from_millis(50));
        done.store(true, Ordering::SeqCst);
        assert!(!reached);
        assert!(start.elapsed() < PATIENCE);
    });
}
