//! What a leader knows of another replica, and how much it sends it ahead of its answers.

use std::collections::VecDeque;

use crate::{
    Entry,
    entry_log::{EntryLog, bytes_of},
};

/// Entries and bytes under way to a follower, beyond which the leader waits for its answers.
const MAX_IN_FLIGHT_ENTRIES: u64 = 16 * 1024;
const MAX_IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;

/// A follower or learner, as its leader sees it.
#[derive(Debug)]
pub(super) struct Progress {
    /// Durable there, and equal to the leader's log.
    pub(super) match_index: u64,
    /// What it knows to be committed.
    pub(super) commit_index: u64,
    /// The next entry to send.
    next_index: u64,
    state: State,
    /// The latest round that it answered.
    pub(super) round: u64,
    /// The session of its shard in which it answered as a follower of this term.
    pub(super) follows_in: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// Where the logs meet is not known: one message at a time, until one matches.
    Probing {
        /// A message is under way.
        paused: bool,
    },
    /// Entries are sent ahead of the answers: the last index of each message, and its bytes.
    Streaming { in_flight: VecDeque<(u64, usize)>, bytes: usize },
    /// Its log ends before the leader's begins: it needs a snapshot.
    Lagging,
}

impl Progress {
    pub(super) fn new(next_index: u64) -> Self {
        Self {
            match_index: 0,
            commit_index: 0,
            next_index,
            state: State::Probing { paused: false },
            round: 0,
            follows_in: None,
        }
    }

    /// Whether it has everything, and knows it.
    pub(super) fn is_settled(&self, last_index: u64, commit_index: u64) -> bool {
        self.match_index == last_index && self.commit_index == commit_index
    }

    pub(super) fn is_lagging(&self) -> bool {
        matches!(self.state, State::Lagging)
    }

    /// It confirmed that it holds everything up to an index.
    pub(super) fn matched(&mut self, index: u64) {
        self.match_index = self.match_index.max(index);
        self.next_index = self.next_index.max(self.match_index + 1);
        match &mut self.state {
            State::Streaming { in_flight, bytes } => {
                while let Some((last, of_message)) = in_flight.front()
                    && *last <= index
                {
                    *bytes -= of_message;
                    in_flight.pop_front();
                }
            }
            State::Probing { .. } | State::Lagging => {
                // What was sent before is not under way any more, or is beyond what matched.
                self.next_index = self.match_index + 1;
                self.state = State::Streaming { in_flight: VecDeque::new(), bytes: 0 };
            }
        }
    }

    /// It does not hold the entry before those sent; the logs may agree at `try_index`.
    pub(super) fn mismatched(&mut self, previous_index: u64, try_index: u64) {
        // An answer to something older than what was confirmed since tells nothing new.
        if previous_index > self.match_index && previous_index < self.next_index {
            self.next_index = (try_index + 1).min(previous_index).max(self.match_index + 1);
            self.state = State::Probing { paused: false };
        }
    }

    /// Its shard was away: what was under way may be lost.
    pub(super) fn probe_anew(&mut self) {
        if !self.is_lagging() {
            self.next_index = self.next_index.max(self.match_index + 1);
            self.state = State::Probing { paused: false };
        }
    }

    /// What to send next, after which index: an empty batch only if `even_empty`.
    pub(super) fn next_entries(
        &mut self,
        log: &EntryLog,
        max_bytes: usize,
        even_empty: bool,
    ) -> Option<(u64, Vec<Entry>)> {
        if self.next_index < log.first_index() {
            self.next_index = log.first_index();
            self.state = State::Lagging;
        }
        let previous_index = self.next_index - 1;
        let entries = match &self.state {
            State::Probing { paused: true } | State::Lagging => Vec::new(),
            State::Probing { paused: false } => log.slice(self.next_index, max_bytes),
            State::Streaming { bytes, .. } => {
                let ahead = previous_index - self.match_index;
                if ahead >= MAX_IN_FLIGHT_ENTRIES || *bytes >= MAX_IN_FLIGHT_BYTES {
                    Vec::new()
                } else {
                    log.slice(self.next_index, max_bytes)
                }
            }
        };
        if entries.is_empty() && !even_empty {
            return None;
        }
        match &mut self.state {
            // The next message waits for an answer or the next heartbeat; should the answer be
            // lost, `next_index` has not moved and the heartbeat asks again.
            State::Probing { paused } => *paused = true,
            State::Streaming { in_flight, bytes } => {
                if let Some(last) = entries.last() {
                    let of_message = entries.iter().map(bytes_of).sum();
                    in_flight.push_back((last.index, of_message));
                    *bytes += of_message;
                    self.next_index = last.index + 1;
                }
            }
            State::Lagging => {}
        }
        Some((previous_index, entries))
    }

    /// A heartbeat is due: a probe whose answer was lost may be sent again.
    pub(super) fn unpause(&mut self) {
        if let State::Probing { paused } = &mut self.state {
            *paused = false;
        }
    }
}
