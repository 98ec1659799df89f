//! Ticks whose interval may be below one millisecond, the resolution of tokio's timers. With those
//! timers, an open loop's latency would grow by more than a commit takes.

use std::{
    io,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// A thread that ticks until this is dropped.
#[derive(Debug)]
pub(crate) struct Pacer {
    ticks: Arc<Notify>,
}

impl Pacer {
    /// Starts a thread that ticks once every `step`.
    pub(crate) fn start(step: Duration) -> io::Result<Self> {
        let ticks = Arc::new(Notify::new());
        let told = Arc::downgrade(&ticks);
        thread::Builder::new()
            .name("palisade-pacer".to_owned())
            .spawn(move || tick(&told, step))?;
        Ok(Self { ticks })
    }

    /// Waits for the next tick, or returns at once if the thread has ticked since the last call.
    pub(crate) async fn tick(&self) {
        self.ticks.notified().await;
    }
}

fn tick(told: &Weak<Notify>, step: Duration) {
    let mut next = Instant::now() + step;
    loop {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let Some(ticks) = told.upgrade() else { return };
        ticks.notify_one();
        // Missed ticks are not made up for: the loop sends everything that is due at each tick.
        next = (next + step).max(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pacer_respects_interval_and_stops_when_dropped() {
        const STEP: Duration = Duration::from_micros(300);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let start = Instant::now();
        let pacer = Pacer::start(STEP).unwrap();
        runtime.block_on(async {
            for _ in 0..20 {
                pacer.tick().await;
            }
        });
        assert!(start.elapsed() >= 20 * STEP);
        let told = Arc::downgrade(&pacer.ticks);
        drop(pacer);
        // The thread may hold a strong reference for the length of one tick.
        while told.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
