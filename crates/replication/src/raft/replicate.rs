//! Replicating entries (thesis §3.5) and confirming leadership for reads (§6.4).

use palisade_wire::PeerAddress;

use super::{Body, Follower, Leader, Message, Raft, ReadRound, RoleState};
use crate::{
    After, Effects, Entry,
    quorum::{majority, reached_by_majority},
};

/// Payload in one message, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Entries under way to a follower, beyond which the leader waits for its answers.
const MAX_IN_FLIGHT_ENTRIES: u64 = 16 * 1024;

/// The entries that a leader sent.
pub(super) struct Incoming {
    pub(super) from: PeerAddress,
    pub(super) previous_index: u64,
    pub(super) previous_term: u64,
    pub(super) commit_index: u64,
    pub(super) round: u64,
    pub(super) entries: Vec<Entry>,
}

impl Raft {
    /// Follower: takes in what the leader sent, and answers.
    pub(super) fn accept(&mut self, incoming: Incoming, effects: &mut Effects<Message>) {
        let Incoming { from, previous_index, previous_term, commit_index, round, entries } =
            incoming;
        if self.log.term_at(previous_index) != Some(previous_term) {
            let try_index = self.last_possible_agreement(previous_index, previous_term);
            let body = Body::Mismatched { previous_index, try_index, round };
            effects.send(from, self.message(body), After::Appends);
            return;
        }
        let heartbeat = entries.is_empty();
        let mut matched = previous_index;
        for entry in entries {
            if entry.index != matched + 1 {
                // No leader sends entries with gaps: these bytes are not to be trusted.
                return;
            }
            matched = entry.index;
            match self.log.term_at(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => {
                    assert!(
                        entry.index > self.commit_index,
                        "{}: {from} replaces the committed entry {}",
                        self.name,
                        entry.index
                    );
                    self.log.truncate(entry.index);
                }
                None => {}
            }
            self.log.append(entry, effects);
        }
        self.commit_to(commit_index.min(matched).max(self.commit_index), effects);
        let (index, after) = if heartbeat && self.log.is_durable(self.state_append) {
            // Nothing new was sent: what is durable can be confirmed without waiting for a sync.
            (matched.min(self.log.durable_index()), After::Nothing)
        } else {
            (matched, After::Appends)
        };
        effects.send(from, self.message(Body::Matched { index, round }), after);
    }

    /// The highest index before `previous_index` at which this log may agree with that of a leader
    /// whose entry there has `previous_term`: skips a whole term at a time (thesis §3.5, end).
    fn last_possible_agreement(&self, previous_index: u64, previous_term: u64) -> u64 {
        let mut index = self.log.last_index().min(previous_index.saturating_sub(1));
        while self.log.term_at(index).is_some_and(|term| term > previous_term) {
            index -= 1;
        }
        index
    }

    /// Leader: a follower confirmed entries.
    pub(super) fn matched(
        &mut self,
        from: PeerAddress,
        index: u64,
        round: u64,
        effects: &mut Effects<Message>,
    ) {
        let last_index = self.log.last_index();
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(follower) = leader.followers.get_mut(&from) else { return };
        if index > last_index {
            return;
        }
        follower.round = follower.round.max(round);
        follower.match_index = follower.match_index.max(index);
        follower.next_index = follower.next_index.max(follower.match_index + 1);
        follower.probing = false;
        follower.paused = false;
        self.advance_commit(effects);
    }

    /// Leader: a follower does not hold the entry before those sent.
    pub(super) fn mismatched(
        &mut self,
        from: PeerAddress,
        previous_index: u64,
        try_index: u64,
        round: u64,
        effects: &mut Effects<Message>,
    ) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(follower) = leader.followers.get_mut(&from) else { return };
        follower.round = follower.round.max(round);
        // An answer to something older than what was confirmed since tells nothing new.
        if previous_index > follower.match_index && previous_index < follower.next_index {
            follower.next_index = (try_index + 1).min(previous_index).max(follower.match_index + 1);
            follower.probing = true;
            follower.paused = false;
        }
        self.release_reads(effects);
    }

    /// Leader: commits what a majority holds durably, if it is of this term.
    pub(super) fn advance_commit(&mut self, effects: &mut Effects<Message>) {
        let RoleState::Leader(leader) = &self.role else { return };
        let mut matches: Vec<u64> = leader.followers.values().map(|f| f.match_index).collect();
        matches.push(self.log.durable_index());
        let index = reached_by_majority(&mut matches);
        // Counting replicas says nothing of an entry of an earlier term (thesis, figure 3.7).
        if index > self.commit_index && self.log.term_at(index) == Some(self.term) {
            self.commit_to(index, effects);
        }
        self.release_reads(effects);
    }

    /// Leader: begins a round for the reads that came in since the last one.
    pub(super) fn begin_read_round(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        let commit_index = self.commit_index;
        let RoleState::Leader(leader) = &mut self.role else { return };
        if leader.new_reads.is_empty() {
            return;
        }
        leader.round += 1;
        leader.rounds.push_back(ReadRound {
            round: leader.round,
            index: commit_index.max(leader.first_index),
            tokens: std::mem::take(&mut leader.new_reads),
        });
        self.heartbeat(now_us, effects);
    }

    /// Leader: lets the reads through whose round a majority answered.
    pub(super) fn release_reads(&mut self, effects: &mut Effects<Message>) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        while let Some(oldest) = leader.rounds.front() {
            let answers = leader.followers.values().filter(|f| f.round >= oldest.round).count();
            if answers + 1 < majority(self.membership.members.len())
                || self.commit_index < oldest.index
            {
                return;
            }
            let oldest = leader.rounds.pop_front().expect("it was looked at just now");
            effects.reads.extend(oldest.tokens);
        }
    }

    /// Leader: sends every follower what it lacks, or nothing at all, so as to be heard.
    pub(super) fn heartbeat(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        self.send_to_all(now_us, true, effects);
    }

    /// Leader: sends the followers what they lack.
    pub(super) fn send_entries(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        let RoleState::Leader(leader) = &self.role else { return };
        let fresh = leader.heartbeat_due_us == 0;
        self.send_to_all(now_us, fresh, effects);
    }

    fn send_to_all(&mut self, now_us: u64, even_empty: bool, effects: &mut Effects<Message>) {
        let (term, commit_index) = (self.term, self.commit_index);
        let heartbeat_us = self.timing.heartbeat_us;
        let log = &self.log;
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Leader { followers, round, heartbeat_due_us, .. } = leader;
        if even_empty {
            *heartbeat_due_us = now_us + heartbeat_us;
        }
        for (peer, follower) in followers.iter_mut() {
            let mut sent = false;
            while let Some((previous_index, entries)) =
                follower.next_entries(log, even_empty && !sent)
            {
                let previous_term =
                    log.term_at(previous_index).expect("what was sent before is in the log");
                let body = Body::Append {
                    previous_index,
                    previous_term,
                    commit_index,
                    round: *round,
                    entries,
                };
                effects.send(*peer, Message { term, body }, After::Nothing);
                sent = true;
            }
        }
    }
}

impl Follower {
    /// What to send next, after which index: an empty batch only if `even_empty`.
    fn next_entries(
        &mut self,
        log: &crate::entry_log::EntryLog,
        even_empty: bool,
    ) -> Option<(u64, Vec<Entry>)> {
        let in_flight = self.next_index - 1 - self.match_index;
        let held_back = if self.probing { self.paused } else { in_flight >= MAX_IN_FLIGHT_ENTRIES };
        let previous_index = self.next_index - 1;
        let entries =
            if held_back { Vec::new() } else { log.slice(self.next_index, MAX_MESSAGE_BYTES) };
        if entries.is_empty() && !even_empty {
            return None;
        }
        if self.probing {
            // The next message waits for an answer or the next heartbeat; should the answer be
            // lost, `next_index` has not moved and the heartbeat asks again.
            self.paused = true;
        } else {
            self.next_index += entries.len() as u64;
        }
        Some((previous_index, entries))
    }
}
