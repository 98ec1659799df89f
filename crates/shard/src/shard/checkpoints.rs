//! Decides which replicas write parts of their checkpoints in a turn.

use std::ops::Bound;

use palisade_clock::Now;
use palisade_wire::RangeId;

use super::{Shard, lent};
use crate::replica::Urgency;

impl Shard {
    /// Writes parts of checkpoints, up to a limit. The limit is for all ticks of a turn together,
    /// so a late turn writes no more than others.
    ///
    /// One checkpoint is completed before the next begins: a crash makes the ones in progress
    /// worthless, and the room of the log counts on the loss of one. Those that were requested, to
    /// release the log, come first. While the log has little room, no others begin.
    pub(super) fn advance_checkpoints(&mut self, now: Now) {
        let after = (Bound::Excluded(self.last_checkpoint), Bound::Unbounded);
        let in_turn = self.touched.range(after).chain(&self.touched).take(self.touched.len());
        let is_slow = self.log.room.is_slow(self.log_reserve);
        let urgency_of = |range: &RangeId| self.replicas[range].checkpoint_urgency();
        let mut due: Vec<_> =
            in_turn.filter_map(|range| Some((urgency_of(range)?, *range))).collect();
        due.retain(|(urgency, _)| !is_slow || *urgency < Urgency::HasGrown);
        due.sort_by_key(|(urgency, _)| *urgency);
        let turn = lent!(self, now);
        let limit_bytes = self.log_reserve.checkpoint_turn_bytes();
        let mut written_bytes = 0;
        for (_, range) in due {
            let replica = self.replicas.get_mut(&range).expect("only replicas are touched");
            // A checkpoint frees more log than it takes, but only later. It must not fill the log.
            let room = self.log.room.without(written_bytes);
            if !room.accepts_checkpoint(replica.checkpoint_left_bytes(), self.log_reserve) {
                continue;
            }
            self.last_checkpoint = range;
            while written_bytes < limit_bytes {
                let part_bytes = replica.advance_checkpoint(&turn);
                turn.work.keys(0, part_bytes as usize);
                written_bytes += part_bytes;
                if !replica.is_taking_checkpoint() {
                    break;
                }
            }
            if written_bytes >= limit_bytes {
                return;
            }
        }
    }
}
