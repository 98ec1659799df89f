//! Leadership transfer (thesis §3.10): on request, away from a slow disk, before a planned stop.
//!
//! ```text
//! transfer(to) ── `to` holds every entry ──> Transfer ──> `to` stands, despite promises
//!      proposals are refused, with `to` as the hint
//! ```

use palisade_wire::PeerAddress;

use super::{Body, Message, Raft, RoleState, Transfer};
use crate::{After, Context, Effects, Refusal};

/// A voter that lacks at most this many entries counts as nearly as advanced as the first.
const NEARLY: u64 = 1_000;

impl Raft {
    /// Transfers leadership to the voter `to` as soon as it holds every entry. Proposals are
    /// refused until the transfer succeeds or is given up after
    /// [`Timing::transfer_us`](super::Timing::transfer_us).
    ///
    /// # Errors
    ///
    /// [`Refusal::NotServing`] if this replica does not lead. [`Refusal::NotNow`] if `to` is not
    /// another voter, is not live or about to stop, or if a transfer is pending. Both are
    /// retryable.
    pub fn transfer(
        &mut self,
        to: PeerAddress,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) -> Result<(), Refusal> {
        let hint = self.leader();
        let can_lead = self.members().voters.contains(&to) && to != self.me;
        let RoleState::Leader(leader) = &mut self.role else {
            return Err(Refusal::NotServing { hint });
        };
        if !can_lead || leader.transfer.is_some() || !cx.peers.may_take_over(to) {
            return Err(Refusal::NotNow);
        }
        let deadline_us = cx.now_us + self.timing.transfer_us;
        leader.transfer = Some(Transfer { to, deadline_us, told_us: None });
        self.advance_transfer(cx, effects);
        Ok(())
    }

    /// Leader: asks the target of a transfer to stand once it holds every entry. Gives up after the
    /// deadline, or if the target is about to stop itself.
    pub(super) fn advance_transfer(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let last_index = self.log.last_index();
        let message = self.message(Body::Transfer);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let caught_up =
            leader.progress.get(&transfer.to).is_some_and(|p| p.match_index == last_index);
        let is_due = transfer.told_us.is_none_or(|us| cx.now_us >= us + self.timing.heartbeat_us);
        if cx.now_us >= transfer.deadline_us || !cx.peers.may_take_over(transfer.to) {
            leader.failed_successor = Some(transfer.to);
            leader.transfer = None;
        } else if caught_up && is_due {
            // The message may be lost, so it is repeated.
            transfer.told_us = Some(cx.now_us);
            // The target requests votes despite any promise to this leader, and the message may
            // arrive arbitrarily late. So this leader has no lease for the rest of the term.
            leader.gave_up_lease = true;
            effects.send(transfer.to, message, After::Nothing);
        }
    }

    /// Stands for election, if the leader of this term hands over to this replica, and its shard is
    /// not about to stop.
    pub(super) fn take_over(
        &mut self,
        from: PeerAddress,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        if self.leader() == Some(from) && self.is_voter() && !cx.peers.is_draining() {
            self.campaign(true, cx, effects);
        }
    }

    /// Leader: transfers leadership to another voter, if its shard is about to stop, or if its own
    /// disk is slow and the others commit without it.
    pub(super) fn transfer_if_due(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let slow_disk_us = self.timing.slow_disk_us;
        let oldest_us = self.log.oldest_pending_us();
        let slow = oldest_us.is_some_and(|asked_us| asked_us + slow_disk_us < cx.now_us);
        let others_commit = self.commit_index > self.log.durable_index();
        let RoleState::Leader(leader) = &mut self.role else { return };
        if !cx.peers.is_draining() {
            if !slow || !others_commit || cx.now_us < leader.slow_disk_due_us {
                return;
            }
            leader.slow_disk_due_us = cx.now_us + self.timing.transfer_us;
        }
        if let Some(to) = self.successor(cx) {
            // A transfer that fails is tried again.
            let _ = self.transfer(to, cx, effects);
        }
    }

    /// Leader: returns a voter that may take over, or `None` if there is none. Among those that are
    /// nearly as advanced as the first, the range decides, so that the leaderships of a node spread
    /// over the others. Always `None` at other replicas.
    fn successor(&self, cx: Context<'_>) -> Option<PeerAddress> {
        let RoleState::Leader(leader) = &self.role else { return None };
        let voters = &self.members().voters;
        let able = leader.progress.iter();
        let able = able.filter(|(to, _)| voters.contains(to) && cx.peers.may_take_over(**to));
        let mut able: Vec<_> = able.map(|(to, progress)| (*to, progress.match_index)).collect();
        if able.len() > 1 {
            able.retain(|(to, _)| Some(*to) != leader.failed_successor);
        }
        let best = able.iter().map(|(_, match_index)| *match_index).max()?;
        able.retain(|(_, match_index)| match_index + NEARLY >= best);
        // Hashed: in a cluster of both modes, the ranges in Raft mode have every second number.
        let hash = self.name.range.0.wrapping_mul(0x9E37_79B9) >> 16;
        Some(able[hash as usize % able.len()].0)
    }

    /// Returns true until another replica leads, if one can: this one leads, or is a voter without
    /// a leader.
    pub fn hands_over(&self, cx: Context<'_>) -> bool {
        let voters = &self.members().voters;
        match self.role {
            RoleState::Leader(_) => self.successor(cx).is_some(),
            _ => {
                let able = voters.iter().any(|voter| cx.peers.may_take_over(*voter));
                self.is_voter() && self.leader.is_none() && able
            }
        }
    }
}
