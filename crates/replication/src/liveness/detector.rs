//! Decides after how long a silence a peer is suspected.

/// Timing of the heartbeats between shards.
#[derive(Clone, Copy, Debug)]
pub struct PeerTiming {
    /// Interval between two heartbeats to a peer, in microseconds.
    pub heartbeat_us: u64,
    /// How long a follower does not vote against its leader, from when it received a heartbeat of
    /// the leader's shard, in microseconds.
    pub promise_us: u64,
    /// How long a leader counts on a follower, from when it sent the heartbeat that the follower
    /// echoed, in microseconds.
    pub lease_us: u64,
    /// The shortest and the longest silence after which a peer is suspected, in microseconds.
    pub suspect_us: (u64, u64),
}

impl Default for PeerTiming {
    fn default() -> Self {
        Self {
            heartbeat_us: 50_000,
            promise_us: 220_000,
            lease_us: 175_000,
            suspect_us: (240_000, 2_000_000),
        }
    }
}

/// Averages over the intervals between a peer's heartbeats.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    mean_us: f64,
    deviation_us: f64,
}

impl Arrivals {
    /// Takes in the interval between two heartbeats.
    pub(super) fn count(&mut self, interval_us: u64) {
        // Deviations count for about a hundred heartbeats: a peer that was slow once is given more
        // time for that long, and a single pause changes little.
        const WEIGHT: f64 = 1.0 / 64.0;
        let interval_us = interval_us.min(2_000_000) as f64;
        self.mean_us += (interval_us - self.mean_us) * WEIGHT;
        let deviation_us = (interval_us - self.mean_us).abs();
        self.deviation_us += (deviation_us - self.deviation_us) * WEIGHT;
    }

    /// Returns a silence that is much longer than the intervals so far, within bounds.
    pub(super) fn suspect_us(&self, timing: &PeerTiming) -> u64 {
        let (shortest_us, longest_us) = timing.suspect_us;
        let long_us = self.mean_us * 2.0 + self.deviation_us * 8.0;
        (long_us as u64).clamp(shortest_us, longest_us)
    }
}
