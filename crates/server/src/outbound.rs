//! The sending side of a connection. Frames collect in buffers, and one task writes them out.
//!
//! Each write is a system call, so the frames of a turn are written together. A partial write
//! followed by other bytes would corrupt the stream, so a connection is closed when a write fails.
//!
//! Heartbeats do not wait behind bulk data: urgent frames are written before all others that have
//! not been passed to the kernel.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use bytes::BytesMut;
use futures_lite::{AsyncWrite, AsyncWriteExt};

use crate::signal::Signal;

/// Limit on the queued bytes of a slow receiver. Further frames are refused.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;

/// Limit on the queued bytes of all connections that share a [`QueuedBytes`]. Beyond it, frames are
/// refused on connections that have more than [`FAIR_BYTES`] queued.
const MAX_SHARED_BYTES: usize = 256 * 1024 * 1024;
const FAIR_BYTES: usize = 64 * 1024;

/// Bytes of frames that are written at once, about. A longer frame is written alone.
const WRITE_BYTES: usize = 128 * 1024;

/// Capacity of a buffer that is kept for the next frames, at most.
const KEPT_BYTES: usize = 1024 * 1024;

/// The bytes that are queued on several connections together.
pub(crate) type QueuedBytes = Rc<Cell<usize>>;

/// The frames to be sent on a connection.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    urgent: RefCell<BytesMut>,
    /// Whole frames, in buffers of about [`WRITE_BYTES`].
    frames: RefCell<VecDeque<BytesMut>>,
    /// An empty buffer, kept for its capacity.
    spare: RefCell<BytesMut>,
    queued_bytes: Cell<usize>,
    shared_bytes: QueuedBytes,
    /// True while frames that have left the queue are written to the stream.
    is_sending: Cell<bool>,
    filled: Signal,
    closing: Signal,
    closed: Cell<bool>,
}

impl Outbound {
    pub(crate) fn new(shared_bytes: QueuedBytes) -> Rc<Self> {
        let mut outbound = Self::default();
        outbound.shared_bytes = shared_bytes;
        Rc::new(outbound)
    }

    /// Returns the queue of a connection that is not open yet. It refuses frames until
    /// [`Outbound::reopen`].
    pub(crate) fn unconnected() -> Rc<Self> {
        let outbound = Self::default();
        outbound.closed.set(true);
        Rc::new(outbound)
    }

    /// Adds frames, which are sent after [`Outbound::send`]. Returns false if they were refused.
    pub(crate) fn push(&self, write: impl FnOnce(&mut BytesMut)) -> bool {
        if self.refuses() {
            return false;
        }
        let mut frames = self.frames.borrow_mut();
        if frames.back().is_none_or(|last| last.len() >= WRITE_BYTES) {
            frames.push_back(self.spare.take());
        }
        let last = frames.back_mut().expect("one was added just now");
        self.add(last, write);
        true
    }

    /// Adds a frame that is sent before the others. Returns false if it was refused.
    pub(crate) fn push_urgent(&self, write: impl FnOnce(&mut BytesMut)) -> bool {
        let accepts = !self.refuses();
        if accepts {
            self.add(&mut self.urgent.borrow_mut(), write);
        }
        accepts
    }

    /// Starts sending the queued frames.
    pub(crate) fn send(&self) {
        self.filled.raise();
    }

    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.filled.raise();
        self.closing.raise();
    }

    /// Starts on a new connection, with a first frame. Drops the queued frames, because parts of
    /// them may have been sent.
    pub(crate) fn reopen(&self, hello: impl FnOnce(&mut BytesMut)) {
        self.is_sending.set(false);
        self.drop_queued();
        self.add(&mut self.urgent.borrow_mut(), hello);
        self.closed.set(false);
        self.filled.raise();
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued_bytes.get() == 0 && !self.is_sending.get()
    }

    /// Waits until this side closes the connection.
    pub(crate) async fn wait_closed(&self) {
        while !self.closed.get() {
            self.closing.wait().await;
        }
    }

    /// Writes queued frames to the stream, until the connection is closed or fails.
    pub(crate) async fn drain_into(&self, mut stream: impl AsyncWrite + Unpin) {
        loop {
            self.filled.wait().await;
            if self.closed.get() {
                return;
            }
            while let Some(mut frames) = self.take() {
                self.is_sending.set(true);
                for piece in frames.chunks(WRITE_BYTES) {
                    if stream.write_all(piece).await.is_err() {
                        self.close();
                        return;
                    }
                }
                self.is_sending.set(false);
                frames.clear();
                if frames.capacity() <= KEPT_BYTES {
                    self.spare.replace(frames);
                }
            }
        }
    }

    /// Takes the frames that are written next.
    fn take(&self) -> Option<BytesMut> {
        let urgent = self.urgent.take();
        let next = if urgent.is_empty() { self.frames.borrow_mut().pop_front()? } else { urgent };
        self.count(self.queued_bytes.get() - next.len());
        Some(next)
    }

    fn add(&self, to: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
        let before = to.len();
        write(to);
        self.count(self.queued_bytes.get() + to.len() - before);
    }

    fn refuses(&self) -> bool {
        let queued = self.queued_bytes.get();
        self.closed.get()
            || queued > MAX_QUEUED_BYTES
            || (queued > FAIR_BYTES && self.shared_bytes.get() > MAX_SHARED_BYTES)
    }

    fn drop_queued(&self) {
        self.urgent.borrow_mut().clear();
        self.frames.borrow_mut().clear();
        self.count(0);
    }

    fn count(&self, queued_bytes: usize) {
        let before = self.queued_bytes.replace(queued_bytes);
        self.shared_bytes.set(self.shared_bytes.get() + queued_bytes - before);
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.drop_queued();
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn write(byte: u8, bytes: usize) -> impl FnOnce(&mut BytesMut) {
        move |out| out.put_bytes(byte, bytes)
    }

    /// Returns the first byte and the length of each piece that is taken.
    fn take_all(outbound: &Outbound) -> Vec<(u8, usize)> {
        std::iter::from_fn(|| outbound.take()).map(|frames| (frames[0], frames.len())).collect()
    }

    #[test]
    fn urgent_frames_precede_others_and_frames_stay_whole() {
        let outbound = Outbound::new(QueuedBytes::default());
        assert!(outbound.push(write(1, WRITE_BYTES - 1)) && outbound.push(write(1, 9)));
        assert!(outbound.push(write(2, 9)));
        assert!(outbound.push_urgent(write(3, 9)));
        assert_eq!(take_all(&outbound), [(3, 9), (1, WRITE_BYTES + 8), (2, 9)]);
        assert!(outbound.is_empty());
    }

    #[test]
    fn queues_are_limited_each_and_together() {
        let shared = QueuedBytes::default();
        let full = Outbound::new(shared.clone());
        while full.push(write(0, 1 << 20)) {}
        assert_eq!(shared.get(), MAX_QUEUED_BYTES + (1 << 20));
        let others: Vec<_> = (0..3).map(|_| Outbound::new(shared.clone())).collect();
        for other in &others {
            while other.push(write(0, 1 << 20)) {}
        }
        assert!(shared.get() > MAX_SHARED_BYTES);
        let modest = Outbound::new(shared.clone());
        assert!(modest.push(write(0, FAIR_BYTES)) && modest.push(write(0, 1)));
        assert!(!modest.push(write(0, 1)));
        drop((full, others));
        assert!(modest.push(write(0, 1)));
        modest.reopen(write(0, 5));
        assert_eq!(shared.get(), 5);
    }
}
