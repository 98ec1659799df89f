//! Passes messages of peers to the replicas that they are for.

use palisade_clock::Now;
use palisade_control::RangeDescriptor;
use palisade_replication::{RecoveredGroup, raft};
use palisade_wire::{Mode, PeerAddress, RangeId};

use super::Shard;
use crate::{
    messages::{Hello, PeerBody, PeerMessage},
    recovery::Recovery,
};

/// Bytes of entries that a group takes from a message although there is no room, beyond the first
/// entry.
const FEW_ENTRIES_BYTES: usize = 4 * 1024;

impl Shard {
    pub(super) fn receive(&mut self, from: PeerAddress, message: PeerMessage, now: Now) {
        let PeerMessage { session, sent_ts, mut body } = message;
        if self.hlc.observe(sent_ts, now.wall).is_err() {
            self.clock_rejections += 1;
            return;
        }
        if let PeerBody::Hello(hello) = &body
            && hello.shape_checksum != self.admission.shape_checksum()
        {
            self.other_shape = Some(from);
            return;
        }
        if let PeerBody::Hello(hello) = &body
            && !self.admission.receive(from, hello.incarnation, hello.registered)
        {
            // The sender has another log than the one that this shard registered for its address.
            return;
        }
        let Some(restarted) = self.peers.observe(from, session) else { return };
        if restarted {
            self.active.extend(self.replicas.keys());
        }
        let fits = !body.is_to_be_written() || self.has_room_for(&mut body);
        match body {
            PeerBody::Hello(hello) => self.receive_hello(from, &hello, now),
            PeerBody::Ranges(descriptors) => {
                // For every shard of this node, including this one.
                let changed = RangeDescriptor::from_bytes(&descriptors).unwrap_or_default();
                self.effects.installs.extend(changed);
            }
            PeerBody::Request { to_session, request } => {
                self.receive_request((from, session), to_session, request, now);
            }
            PeerBody::Response(response) => self.receive_response(from, response, now),
            _ if !self.admission.is_admitted() => {}
            PeerBody::Raft { range, mut message } if !fits && self.is_new_leader(range, from) => {
                // The replica must know its leader, even if it can't hold the entries.
                message.body.keep_entries(None);
                self.with_replica(range, now, |replica, turn| {
                    replica.group.receive_raft(from, message, turn.context());
                });
            }
            // Drop it like a lost message. The peer sends it again, and there may be room then.
            _ if !fits => {}
            PeerBody::Raft { range, message } => {
                self.add_replica_if_asked(range, &message.body, now);
                self.with_replica(range, now, |replica, turn| {
                    replica.group.receive_raft(from, message, turn.context());
                });
            }
            PeerBody::Chain { range, message } => {
                self.with_replica(range, now, |replica, turn| {
                    replica.group.receive_chain(from, message, turn.context());
                });
            }
            PeerBody::Snapshot { range, message } => {
                self.with_replica(range, now, |replica, turn| {
                    replica.receive_snapshot(from, message, turn);
                });
            }
            PeerBody::SafeTime { range, message } => {
                self.with_replica(range, now, |replica, turn| {
                    replica.receive_safe_time(from, message, turn);
                });
            }
        }
    }

    /// Returns true if there is room for what a peer's message writes.
    fn has_room_for(&self, body: &mut PeerBody) -> bool {
        let (room, reserve) = (self.log.room, self.log_reserve);
        if room.accepts_peers(reserve) {
            return true;
        }
        // A few entries at a time: they show which earlier ones are committed.
        body.keep_entries(FEW_ENTRIES_BYTES);
        self.holds_back_log(body.range()) && room.accepts_checkpoint(u64::MAX, reserve)
    }

    /// Returns true if a range has a replica here that does not follow `leader`.
    fn is_new_leader(&self, range: RangeId, leader: PeerAddress) -> bool {
        let replica = self.replicas.get(&range);
        replica.is_some_and(|replica| replica.group.leader() != Some(leader))
    }

    /// Returns true if a group has entries for which the log is kept until further messages show
    /// that they are committed.
    fn holds_back_log(&self, range: Option<RangeId>) -> bool {
        range.is_some_and(|range| {
            let replica = self.replicas.get(&range);
            self.stuck.contains(&range) || replica.is_some_and(|replica| replica.is_recovering())
        })
    }

    fn receive_hello(&mut self, from: PeerAddress, hello: &Hello, now: Now) {
        let revocations = self.peers.receive(from, &hello.heartbeat, now.monotonic_us);
        if hello.ranges_version < self.ranges.version() {
            let changed = RangeDescriptor::to_bytes(self.ranges.changed());
            self.hellos.push((from, PeerBody::Ranges(changed)));
        }
        if !self.admission.is_admitted() {
            return;
        }
        for revocation in revocations {
            self.with_replica(revocation.range, now, |replica, turn| {
                replica.group.revoked(from, revocation, turn.context());
            });
        }
    }

    /// Creates the replica if a Raft leader sends entries for a range that has none here: the
    /// leader has added this shard to the group.
    fn add_replica_if_asked(&mut self, range: RangeId, body: &raft::Body, now: Now) {
        let asked = matches!(body, raft::Body::Append { .. });
        if !asked || self.replicas.contains_key(&range) {
            return;
        }
        let Some(descriptor) = self.ranges.get(range) else { return };
        if descriptor.mode == Mode::Raft {
            let (ranges, recovered) = (&self.ranges, RecoveredGroup::default());
            let config = self.config.of_replicas();
            let replica = Recovery { descriptor, ranges, recovered }
                .replica(config, &mut self.random, now.monotonic_us)
                .expect("nothing recovered, nothing to misread");
            self.replicas.insert(range, replica);
        }
    }
}
