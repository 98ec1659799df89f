//! Logs the progress of the verification of a long log.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use palisade_wal::OpenProgress;
use palisade_wire::PeerAddress;

/// Logs progress every two seconds, so that a slow start is not mistaken for a hang.
#[derive(Debug)]
pub(crate) struct LogProgress {
    at: PeerAddress,
    start: Instant,
    reported_s: AtomicU64,
}

const INTERVAL_S: u64 = 2;

impl LogProgress {
    pub(crate) fn new(at: PeerAddress) -> Self {
        Self { at, start: Instant::now(), reported_s: AtomicU64::new(0) }
    }

    /// Records progress, and logs it if that is due. Several threads call this.
    pub(crate) fn report(&self, progress: OpenProgress) {
        let now_s = self.start.elapsed().as_secs();
        let reported_s = self.reported_s.load(Ordering::Relaxed);
        let is_due = now_s >= reported_s + INTERVAL_S;
        let OpenProgress { verified_bytes, total_bytes } = progress;
        if is_due
            && self
                .reported_s
                .compare_exchange(reported_s, now_s, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let percent = 100 * verified_bytes / total_bytes.max(1);
            tracing::info!("{}: verifying the log, {percent}% of {total_bytes} bytes", self.at);
        }
    }
}
