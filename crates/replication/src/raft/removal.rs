//! Informs replicas that were removed from the group without learning it (thesis §4.2.3).
//!
//! The problem: the leader stops sending to a replica once the final configuration is committed,
//! and that replica may not have received it. It would stand for election for ever. As a learner it
//! would do nothing, but keep its entries that are not committed, and thus the log of its shard.
//!
//! So a replica asks from time to time while it has such entries and receives none, and a leader
//! answers messages of replicas that are no members. The answer holds the entries that lead to the
//! final configuration. If the leader has dropped them, it sends a snapshot.

use palisade_wire::PeerAddress;

use super::{Body, Message, Raft, RoleState};
use crate::{After, Context, Effects};

/// Limit of the entries in a message to a replica that was removed, in bytes.
const INFORM_BYTES: usize = 64 * 1024;

/// Interval at which a replica asks whether it was removed, in microseconds.
const ASK_US: u64 = 2_000_000;

impl Raft {
    /// Returns true if this replica may have to ask whether it was removed.
    pub(super) fn may_be_removed(&self) -> bool {
        self.commit_index < self.log.last_index()
    }

    /// Records a message of the leader: this replica is a member.
    pub(super) fn informed(&mut self, cx: Context<'_>) {
        self.ask_due_us = cx.now_us + ASK_US;
    }

    /// Follower that does not stand for election: asks whether it was removed, if it has entries
    /// that are not committed and has received nothing from a leader for a while. A pre-vote
    /// request changes no state at its receivers, and a leader answers those of removed replicas.
    pub(super) fn ask_if_removed(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        if !self.may_be_removed() || cx.now_us < self.ask_due_us {
            return;
        }
        self.informed(cx);
        self.request_pre_votes(effects);
    }

    /// Leader: answers a message of a replica that is no member.
    pub(super) fn answer_removed(
        &self,
        from: PeerAddress,
        message: &Message,
        effects: &mut Effects<Message>,
    ) {
        let last_index = match &message.body {
            Body::Matched { index, commit_index, .. }
                if *commit_index < self.configurations.index() =>
            {
                *index
            }
            Body::Mismatched { try_index, .. } => *try_index,
            _ => return,
        };
        if message.term == self.term {
            let last_term = self.log.term_at(last_index).unwrap_or(0);
            self.inform_removed(from, (last_term, last_index), effects);
        }
    }

    /// Leader: sends entries, or else a snapshot, to a replica that is no member. `last` is the
    /// term and index of the replica's last entry.
    pub(super) fn inform_removed(
        &self,
        to: PeerAddress,
        last: (u64, u64),
        effects: &mut Effects<Message>,
    ) {
        let RoleState::Leader(_) = self.role else { return };
        let (last_term, last_index) = last;
        let mut previous_index = last_index.min(self.log.last_index());
        if self.log.term_at(last_index) != Some(last_term) {
            previous_index = self.last_possible_agreement(last_index, last_term);
        }
        // If the logs differ further back, the reply says so.
        let (base_index, _) = self.log.base();
        let Some(previous_term) =
            self.log.term_at(previous_index).filter(|_| last_index >= base_index)
        else {
            effects.lagging.push(to);
            return;
        };
        let entries = self.log.slice(previous_index + 1, INFORM_BYTES);
        let commit_index = self.commit_index;
        let body = Body::Append { previous_index, previous_term, commit_index, round: 0, entries };
        effects.send(to, self.message(body), After::Nothing);
    }
}
