//! The sending side of a connection: frames gather in a buffer, one task writes them out.
//!
//! Each write is a system call, and a write that was cut short and then forgotten corrupts the
//! stream. So everything that a turn sends goes out in one write, and a connection whose write
//! fails is closed.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::BytesMut;
use futures_lite::{AsyncWrite, AsyncWriteExt};

use crate::signal::Signal;

/// Bytes that may wait for a slow receiver.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of one write. A write that can't finish at once is copied to the ring, all of it and each
/// time anew.
const MAX_WRITE_BYTES: usize = 128 * 1024;

/// Frames on their way out.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    buffer: RefCell<BytesMut>,
    filled: Signal,
    closing: Signal,
    closed: Cell<bool>,
}

impl Outbound {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// For a connection that is yet to be made: nothing is taken before [`Outbound::reopen`].
    pub(crate) fn unconnected() -> Rc<Self> {
        let outbound = Self::default();
        outbound.closed.set(true);
        Rc::new(outbound)
    }

    /// Adds frames, which leave when [`Outbound::send`] is called. Tells whether they were taken.
    pub(crate) fn push(&self, write: impl FnOnce(&mut BytesMut)) -> bool {
        let mut buffer = self.buffer.borrow_mut();
        if self.closed.get() || buffer.len() > MAX_QUEUED_BYTES {
            return false;
        }
        write(&mut buffer);
        true
    }

    /// Lets the gathered frames leave.
    pub(crate) fn send(&self) {
        self.filled.raise();
    }

    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.filled.raise();
        self.closing.raise();
    }

    /// Begins anew on a fresh connection, with a first frame. What had gathered is lost: part of it
    /// may have been sent.
    pub(crate) fn reopen(&self, hello: impl FnOnce(&mut BytesMut)) {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        hello(&mut buffer);
        self.closed.set(false);
        self.filled.raise();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.borrow().is_empty()
    }

    /// Ends when the connection is closed from this side.
    pub(crate) async fn wait_closed(&self) {
        while !self.closed.get() {
            self.closing.wait().await;
        }
    }

    /// Writes out whatever gathers, until the connection is closed or fails.
    pub(crate) async fn drain_into(&self, mut stream: impl AsyncWrite + Unpin) {
        let mut sending = BytesMut::new();
        loop {
            self.filled.wait().await;
            if self.closed.get() {
                return;
            }
            std::mem::swap(&mut sending, &mut self.buffer.borrow_mut());
            for piece in sending.chunks(MAX_WRITE_BYTES) {
                if stream.write_all(piece).await.is_err() {
                    self.close();
                    return;
                }
            }
            sending.clear();
            if !self.is_empty() {
                self.filled.raise();
            }
        }
    }
}
