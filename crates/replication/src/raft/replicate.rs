//! Replicating entries (thesis §3.5) and committing them (§3.6).

use palisade_wire::PeerAddress;

use super::{Body, Leader, Message, Raft, RoleState};
use crate::{After, Context, Effects, Entry, EntryKind, Members, ProtocolFault};

/// The entries that a leader sent.
pub(super) struct Incoming {
    pub(super) from: PeerAddress,
    /// Index and term of the entry before them.
    pub(super) previous: (u64, u64),
    pub(super) commit_index: u64,
    pub(super) round: u64,
    pub(super) entries: Vec<Entry>,
}

/// The followers that are sent a message even if it holds no entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EvenEmpty {
    No,
    /// Followers that lack entries or have not confirmed them (`is_at_rest` is false).
    Unsettled,
    Everybody,
}

impl Raft {
    /// Follower: appends the entries that the leader sent, and replies.
    pub(super) fn accept(
        &mut self,
        incoming: Incoming,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let Incoming { from, previous, commit_index, round, mut entries } = incoming;
        let (mut previous_index, previous_term) = previous;
        let (base_index, _) = self.log.base();
        if previous_index < base_index {
            // Entries up to the base are committed, so the leader holds the same ones.
            entries.retain(|entry| entry.index > base_index);
            previous_index = base_index;
        } else if self.log.term_at(previous_index) != Some(previous_term) {
            let try_index = self.last_possible_agreement(previous_index, previous_term);
            let body = Body::Mismatched { previous_index, try_index, round };
            effects.send(from, self.message(body), After::Appends);
            return;
        }
        let heartbeat = entries.is_empty();
        let mut matched = previous_index;
        let mut terms = self.log.term_at(previous_index).unwrap_or(0)..=self.term;
        for entry in entries {
            let readable = entry.kind != EntryKind::Members
                || Members::from_peer(entry.payload.clone()).is_ok();
            if entry.index != matched + 1 || !terms.contains(&entry.term) || !readable {
                // No correct leader sends such entries: the message is corrupt.
                return;
            }
            matched = entry.index;
            terms = entry.term..=self.term;
            match self.log.term_at(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => self.truncate(from, entry.index),
                None => {}
            }
            self.append(entry, cx.now_us, effects);
        }
        self.commit_to(commit_index.min(matched).max(self.commit_index), effects);
        let (index, after) = if heartbeat && self.log.is_state_durable() {
            // A heartbeat confirms only durable entries, so the reply need not wait for a sync.
            (matched.min(self.log.durable_index()), After::Nothing)
        } else if self.planted.is(ProtocolFault::UnsyncedConfirmation) {
            (matched, After::Nothing)
        } else {
            (matched, After::Appends)
        };
        let body = Body::Matched { index, commit_index: self.commit_index, round };
        effects.send(from, self.message(body), after);
    }

    fn truncate(&mut self, leader: PeerAddress, index: u64) {
        assert!(
            index > self.commit_index,
            "{}: {leader} replaces the committed entry {index}",
            self.name
        );
        self.log.truncate(index);
        self.configurations.truncate(index);
    }

    /// Returns the highest index below `previous_index` at which this log may agree with a leader's
    /// log whose entry at `previous_index` has `previous_term`. Skips all entries of later terms at
    /// once (thesis §3.5, end).
    pub(super) fn last_possible_agreement(&self, previous_index: u64, previous_term: u64) -> u64 {
        let mut index = self.log.last_index().min(previous_index.saturating_sub(1));
        let (base_index, _) = self.log.base();
        while index > base_index && self.log.term_at(index).is_some_and(|t| t > previous_term) {
            index -= 1;
        }
        index
    }

    /// Leader: handles a follower's confirmation of its entries up to `index`.
    pub(super) fn matched(
        &mut self,
        from: PeerAddress,
        index: u64,
        commit_index: u64,
        round: u64,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let last_index = self.log.last_index();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        if index > last_index {
            return;
        }
        progress.follows_in = Some(cx.peers.session_of(from));
        progress.round = progress.round.max(round);
        progress.commit_index = progress.commit_index.max(commit_index);
        progress.matched(index);
        self.advance_commit(cx, effects);
        self.advance_transfer(cx, effects);
    }

    /// Leader: handles a follower's report that it lacks the entry before those sent.
    pub(super) fn mismatched(
        &mut self,
        from: PeerAddress,
        previous_index: u64,
        try_index: u64,
        round: u64,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        progress.follows_in = Some(cx.peers.session_of(from));
        progress.round = progress.round.max(round);
        progress.mismatched(previous_index, try_index);
        self.release_reads(effects);
    }

    /// Leader: records that the member `at` has installed a snapshot up to `index`, durably.
    /// Ignored if `index` is above the commit index.
    pub fn snapshot_installed(
        &mut self,
        at: PeerAddress,
        index: u64,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let known = index <= self.commit_index;
        let RoleState::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.progress.get_mut(&at).filter(|_| known) {
            progress.matched(index);
            self.advance_commit(cx, effects);
        }
    }

    /// Returns how many entries each follower lacks, or has not confirmed, and about how many bytes
    /// they take. None unless this replica leads.
    pub fn follower_lags(&self) -> impl Iterator<Item = (PeerAddress, u64, u64)> {
        let progress = match &self.role {
            RoleState::Leader(leader) => Some(&leader.progress),
            _ => None,
        };
        let last_index = self.log.last_index();
        progress.into_iter().flatten().map(move |(peer, progress)| {
            let entries = last_index.saturating_sub(progress.match_index);
            (*peer, entries, self.log.bytes_of_last(entries))
        })
    }

    /// Leader: commits the entries that a majority holds durably, if the last is of this term.
    pub(super) fn advance_commit(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let RoleState::Leader(leader) = &self.role else { return };
        let index = self.reached(|voter| {
            if voter == self.me {
                return self.log.durable_index();
            }
            leader.progress.get(&voter).map_or(0, |progress| progress.match_index)
        });
        // Counting replicas does not commit an entry of an earlier term (thesis, figure 3.7).
        let of_this_term = self.log.term_at(index) == Some(self.term)
            || self.planted.is(ProtocolFault::CommitByCounting);
        if index > self.commit_index && of_this_term {
            self.commit_to(index, effects);
            self.settle_members(cx, effects);
        }
        self.release_reads(effects);
    }

    /// Leader: runs the checks that depend on time, and sends the heartbeats that are due.
    pub(super) fn tick_leader(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        self.step_down_if_lost(cx, effects);
        self.settle_members(cx, effects);
        self.advance_transfer(cx, effects);
        self.transfer_if_due(cx, effects);
        let RoleState::Leader(leader) = &mut self.role else { return };
        if cx.now_us >= leader.heartbeat_due_us {
            leader.heartbeat_due_us = cx.now_us + self.timing.heartbeat_us;
            for progress in leader.progress.values_mut() {
                progress.unpause();
            }
            let whom =
                if leader.rounds.is_empty() { EvenEmpty::Unsettled } else { EvenEmpty::Everybody };
            self.send_to_all(whom, cx, effects);
        }
    }

    /// Leader: starts a round, which asks all followers to confirm that it still leads.
    pub(super) fn send_round(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        self.send_to_all(EvenEmpty::Everybody, cx, effects);
    }

    /// Leader: sends the followers the entries that they lack.
    pub(super) fn send_entries(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        self.send_to_all(EvenEmpty::No, cx, effects);
    }

    fn send_to_all(&mut self, whom: EvenEmpty, cx: Context<'_>, effects: &mut Effects<Message>) {
        let (term, commit_index) = (self.term, self.commit_index);
        let log = &self.log;
        let last_index = log.last_index();
        let max_bytes = self.timing.max_message_bytes;
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Leader { progress, round, .. } = &mut **leader;
        for (peer, progress) in progress.iter_mut() {
            // Sends nothing to a peer whose heartbeats do not arrive. Messages in flight may be
            // lost, so its log is probed again once they do.
            if !cx.peers.is_heard(*peer) {
                progress.restart_probing();
                continue;
            }
            let mut even_empty = match whom {
                EvenEmpty::No => false,
                EvenEmpty::Unsettled => {
                    !Self::is_at_rest(*peer, progress, last_index, commit_index, cx)
                }
                EvenEmpty::Everybody => true,
            };
            let heartbeat = even_empty;
            while let Some((previous_index, entries)) =
                progress.next_entries(log, max_bytes, even_empty)
            {
                let previous_term =
                    log.term_at(previous_index).expect("what was sent before is in the log");
                let round = *round;
                let body =
                    Body::Append { previous_index, previous_term, commit_index, round, entries };
                effects.send(*peer, Message { term, body }, After::Nothing);
                even_empty = false;
            }
            if heartbeat && progress.is_lagging() {
                effects.lagging.push(*peer);
            }
        }
    }
}
