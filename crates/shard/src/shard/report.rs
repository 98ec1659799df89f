//! What operators see of a shard.

use palisade_clock::{BoundSource, Now};
use palisade_wire::{PeerStatus, Response, ShardStatus};

use super::Shard;
use crate::{drain::Drain, view::ReplicaView};

impl Shard {
    /// Returns the status of the shard and its ranges.
    pub fn status(&self, now: Now) -> ShardStatus {
        let now_us = now.monotonic_us;
        let replicas = self.replicas.values();
        let (me, peers) = (self.config.at, &self.peers);
        let ranges = replicas.clone();
        let ranges = ranges.map(|replica| replica.group.status(&replica.descriptor, me, peers));
        let oldest_us = replicas.clone().filter_map(|replica| replica.oldest_commit_us()).min();
        let unapplied = |view: ReplicaView<'_>| view.commit_index() - view.applied_index();
        ShardStatus {
            at: self.config.at,
            admission: self.admission.stage(),
            log_syncs: self.log.syncs,
            log_entries: self.appends,
            log_bytes: self.log.bytes,
            log_left_bytes: self.log.room.left_bytes(),
            state_bytes: self.state_bytes(),
            requests: self.requests,
            rejections: self.metrics.rejections(),
            stages: self.metrics.stages(),
            applied_entries: self.metrics.applied,
            unapplied_entries: self.views().map(unapplied).sum(),
            oldest_commit_us: oldest_us.map_or(0, |us| now_us.saturating_sub(us)),
            clock_bound_us: now.wall.bound_us(),
            clock_bound_source: self.bound_source,
            clock_rejections: self.clock_rejections,
            peers: self.peer_status(now_us),
            ranges: ranges.collect(),
        }
    }

    fn peer_status(&self, now_us: u64) -> Vec<PeerStatus> {
        let link = |at| {
            let silent_us = self.peers.echo_age_us(at, now_us);
            PeerStatus { at, silent_us, lag_entries: 0, lag_bytes: 0 }
        };
        let mut links: Vec<_> = self.peers.addresses().map(link).collect();
        for replica in self.replicas.values() {
            for (follower, entries, bytes) in replica.group.follower_lags() {
                let link = links.iter_mut().find(|link| link.at == follower);
                if let Some(link) = link
                    && link.lag_entries < entries
                {
                    link.lag_entries = entries;
                    link.lag_bytes = bytes;
                }
            }
        }
        links
    }

    /// Counts a request that the driver rejected with this response.
    pub fn record_rejected(&mut self, response: &Response) {
        self.requests += 1;
        self.metrics.count_rejection(response);
    }

    /// Records how long a sync of the log took, for [`Shard::status`].
    pub fn record_sync(&mut self, took_us: u64) {
        self.metrics.log_sync.record(took_us);
    }

    /// Sets the clock source that [`Shard::status`] reports. It has no other effect.
    pub fn set_bound_source(&mut self, bound_source: BoundSource) {
        self.bound_source = bound_source;
    }

    /// Returns true if the clock's error exceeds `max_offset_us`, so that requests are rejected.
    pub fn is_fenced(&self, now: Now) -> bool {
        now.wall.bound_us() > self.config.max_offset_us
    }

    /// Returns true once a planned stop has begun.
    pub fn is_draining(&self) -> bool {
        self.drain != Drain::Serving
    }
}
