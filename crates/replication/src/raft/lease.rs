//! Reads (thesis §6.4), and a leader that notices that it has lost its majority (§6.2).
//!
//! A leader may read its own state if nobody else can have been elected. It knows that for as long
//! as a majority's promises last, counted from when it sent the heartbeats that they echo; without
//! that it asks all followers, in one round for all reads that have gathered, and a majority's
//! answers say the same of the moment at which the round began. In both cases it waits until an
//! entry of its own term is committed: before that it may not know yet what is.

use palisade_wire::PeerAddress;

use super::{Leader, Message, Raft, ReadRound, RoleState};
use crate::{Context, Effects, ProtocolFault};

impl Raft {
    /// Until when a majority's promises keep anybody else from being elected.
    fn leased_until_us(&self, leader: &Leader, cx: Context<'_>) -> u64 {
        self.reached(|voter: PeerAddress| {
            if voter == self.me {
                return cx.peers.supports_itself_until_us(cx.now_us);
            }
            let follows_in = leader.progress.get(&voter).and_then(|p| p.follows_in);
            follows_in.map_or(0, |session| cx.peers.supported_until_us(voter, session))
        })
    }

    fn has_lease(&self, leader: &Leader, cx: Context<'_>) -> bool {
        let until_us = self.leased_until_us(leader, cx);
        if self.has_fault(ProtocolFault::EndlessLease) {
            return until_us > 0;
        }
        !leader.gave_up_lease && until_us > cx.now_us
    }

    /// Whether this replica leads, and nobody else can.
    pub fn is_leased(&self, cx: Context<'_>) -> bool {
        matches!(&self.role, RoleState::Leader(leader) if self.has_lease(leader, cx))
    }

    fn may_read(&self, index: u64) -> bool {
        self.commit_index >= index || self.has_fault(ProtocolFault::EarlyReads)
    }

    /// Leader: lets the gathered reads through, or begins a round for them.
    pub(super) fn begin_reads(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::Leader(leader) = &self.role else { return };
        if leader.new_reads.is_empty() {
            return;
        }
        let index = self.commit_index.max(leader.first_index);
        let at_once = self.has_lease(leader, cx) && self.may_read(index);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let tokens = std::mem::take(&mut leader.new_reads);
        if at_once {
            effects.reads.extend(tokens);
            return;
        }
        leader.round += 1;
        leader.rounds.push_back(ReadRound { round: leader.round, index, tokens });
        self.send_round(cx, effects);
    }

    /// Leader: lets the reads through whose round a majority answered.
    pub(super) fn release_reads(&mut self, effects: &mut Effects<Message>) {
        loop {
            let RoleState::Leader(leader) = &self.role else { return };
            let Some(oldest) = leader.rounds.front() else { return };
            let answered = self.reached(|voter| {
                if voter == self.me {
                    return u64::MAX;
                }
                leader.progress.get(&voter).map_or(0, |progress| progress.round)
            });
            if answered < oldest.round || !self.may_read(oldest.index) {
                return;
            }
            let RoleState::Leader(leader) = &mut self.role else { return };
            let oldest = leader.rounds.pop_front().expect("it was looked at just now");
            effects.reads.extend(oldest.tokens);
        }
    }

    /// Leader: steps down if a majority does not hear it any more. Otherwise clients would wait
    /// for a leader that can't commit anything, and followers that hear it while it does not hear
    /// them would never elect another.
    pub(super) fn step_down_if_lost(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::Leader(leader) = &self.role else { return };
        if cx.now_us < leader.grace_until_us {
            return;
        }
        let heard = |voter| u64::from(voter == self.me || cx.peers.hears(voter));
        if self.reached(heard) == 0 {
            self.step_down(effects);
        }
    }

    /// Whether a leader has something to watch over.
    pub(super) fn leader_wants_ticks(&self, leader: &Leader, cx: Context<'_>) -> bool {
        let (last_index, commit_index) = (self.log.last_index(), self.commit_index);
        let waits = !leader.rounds.is_empty()
            || !leader.new_reads.is_empty()
            || leader.transfer.is_some()
            || self.log.oldest_pending_us().is_some()
            || commit_index < last_index;
        waits
            || leader.progress.iter().any(|(peer, progress)| {
                cx.peers.is_heard(*peer)
                    && !Self::is_at_rest(*peer, progress, last_index, commit_index, cx)
            })
    }

    /// Whether a follower has everything, knows it, and is counted on.
    pub(super) fn is_at_rest(
        peer: PeerAddress,
        progress: &super::Progress,
        last_index: u64,
        commit_index: u64,
        cx: Context<'_>,
    ) -> bool {
        progress.is_settled(last_index, commit_index)
            && progress.follows_in == Some(cx.peers.session_of(peer))
    }
}
