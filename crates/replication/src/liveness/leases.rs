//! How long promises and leases hold that heartbeats renew.

use palisade_wire::PeerAddress;

use super::Peers;

impl Peers {
    /// Returns until when this shard must not vote against a leader on peer `leader` in `session`.
    pub(crate) fn promised_until_us(&self, leader: PeerAddress, session: u64) -> u64 {
        let peer = self.peers.get(&leader).filter(|peer| peer.session == session);
        let heard_us = peer.and_then(|peer| peer.heard).map(|(at_us, _)| at_us);
        heard_us.map_or(0, |heard_us| heard_us + self.timing.promise_us)
    }

    /// Returns until when the promises of this shard's earlier sessions may hold.
    pub(crate) fn inherited_promises_until_us(&self) -> u64 {
        self.started_us + self.timing.promise_us
    }

    /// Returns until when a leader may count on a follower that confirmed its leadership in
    /// `session`.
    pub(crate) fn supported_until_us(&self, follower: PeerAddress, session: u64) -> u64 {
        let peer = self.peers.get(&follower).filter(|peer| peer.session == session);
        let acked_us = peer.and_then(|peer| peer.acked_us);
        acked_us.map_or(0, |acked_us| acked_us + self.timing.lease_us)
    }

    /// Returns until when a leader may count on itself.
    pub(crate) fn supports_itself_until_us(&self, now_us: u64) -> u64 {
        now_us + self.timing.lease_us
    }
}
