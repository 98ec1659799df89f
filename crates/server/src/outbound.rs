//! The sending side of a connection. Frames collect in a buffer, and one task writes them out.
//!
//! Each write is a system call, so the frames of a turn are written together. A partial write
//! followed by other bytes would corrupt the stream, so a connection is closed when a write fails.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::BytesMut;
use futures_lite::{AsyncWrite, AsyncWriteExt};

use crate::signal::Signal;

/// Limit on the buffered bytes of a slow receiver. Further frames are refused.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// Limit of one write, in bytes. A longer buffer is written in pieces.
const MAX_WRITE_BYTES: usize = 128 * 1024;

/// The frames to be sent on a connection.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    buffer: RefCell<BytesMut>,
    /// True while frames that have left the buffer are written to the stream.
    is_sending: Cell<bool>,
    filled: Signal,
    closing: Signal,
    closed: Cell<bool>,
}

impl Outbound {
    pub(crate) fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Returns the buffer of a connection that is not open yet. It refuses frames until
    /// [`Outbound::reopen`].
    pub(crate) fn unconnected() -> Rc<Self> {
        let outbound = Self::default();
        outbound.closed.set(true);
        Rc::new(outbound)
    }

    /// Adds frames, which are sent after [`Outbound::send`]. Returns false if they were refused.
    pub(crate) fn push(&self, write: impl FnOnce(&mut BytesMut)) -> bool {
        let mut buffer = self.buffer.borrow_mut();
        if self.closed.get() || buffer.len() > MAX_QUEUED_BYTES {
            return false;
        }
        write(&mut buffer);
        true
    }

    /// Starts sending the buffered frames.
    pub(crate) fn send(&self) {
        self.filled.raise();
    }

    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.filled.raise();
        self.closing.raise();
    }

    /// Starts on a new connection, with a first frame. Drops the buffered frames, because parts of
    /// them may have been sent.
    pub(crate) fn reopen(&self, hello: impl FnOnce(&mut BytesMut)) {
        self.is_sending.set(false);
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        hello(&mut buffer);
        self.closed.set(false);
        self.filled.raise();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.borrow().is_empty() && !self.is_sending.get()
    }

    /// Waits until this side closes the connection.
    pub(crate) async fn wait_closed(&self) {
        while !self.closed.get() {
            self.closing.wait().await;
        }
    }

    /// Writes buffered frames to the stream, until the connection is closed or fails.
    pub(crate) async fn drain_into(&self, mut stream: impl AsyncWrite + Unpin) {
        let mut sending = BytesMut::new();
        loop {
            self.filled.wait().await;
            if self.closed.get() {
                return;
            }
            std::mem::swap(&mut sending, &mut self.buffer.borrow_mut());
            self.is_sending.set(true);
            for piece in sending.chunks(MAX_WRITE_BYTES) {
                if stream.write_all(piece).await.is_err() {
                    self.close();
                    return;
                }
            }
            sending.clear();
            self.is_sending.set(false);
            if !self.is_empty() {
                self.filled.raise();
            }
        }
    }
}
