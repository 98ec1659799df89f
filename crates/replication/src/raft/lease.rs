//! Reads (thesis §6.4), and a leader that steps down when it has lost its majority (§6.2).
//!
//! A leader may read its own state if no other replica can have been elected. Under a lease it
//! knows that without messages: the lease lasts as long as the promises of a majority, counted from
//! when it sent the heartbeats that they echo. Without a lease it sends one round to all followers
//! for all reads that have gathered. The replies of a majority prove that no other replica had been
//! elected when the round began. In both cases it waits until an entry of its own term is
//! committed, because before that its commit index may be too low.

use palisade_wire::PeerAddress;

use super::{Leader, Message, Raft, ReadRound, RoleState};
use crate::{Context, Effects, ProtocolFault};

impl Raft {
    /// Returns until when the promises of a majority prevent the election of another replica.
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
        if self.planted.is(ProtocolFault::EndlessLease) {
            return until_us > 0;
        }
        !leader.gave_up_lease && until_us > cx.now_us
    }

    /// Returns true if this replica leads and no other replica can be elected.
    pub fn is_leased(&self, cx: Context<'_>) -> bool {
        matches!(&self.role, RoleState::Leader(leader) if self.has_lease(leader, cx))
    }

    fn may_read(&self, index: u64) -> bool {
        self.commit_index >= index || self.planted.is(ProtocolFault::EarlyReads)
    }

    /// Leader: releases the gathered reads under a lease, or begins a round for them.
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

    /// Leader: releases the reads whose round a majority has answered.
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

    /// Leader: steps down if a majority no longer receives its heartbeats. Otherwise clients would
    /// wait for a leader that cannot commit. Followers that receive its heartbeats, but whose own
    /// heartbeats do not reach it, would never elect another leader.
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

    /// Returns true if a leader has work that depends on time.
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

    /// Returns true if a follower has confirmed all entries and the commit index, and has replied
    /// in the current session of its shard.
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
