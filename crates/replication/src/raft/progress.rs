//! A leader's view of another replica, and the limits on sending ahead of its replies.

use std::collections::VecDeque;

use crate::{
    Entry,
    entry_log::{EntryLog, bytes_of},
};

/// Entries and bytes in flight to a follower beyond which the leader waits for its replies.
const MAX_IN_FLIGHT_ENTRIES: u64 = 16 * 1024;
const MAX_IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;

/// A leader's view of a follower or learner.
#[derive(Debug)]
pub(super) struct Progress {
    /// Last index that is durable at the follower and equal to the leader's log.
    pub(super) match_index: u64,
    /// The follower's commit index, as last reported.
    pub(super) commit_index: u64,
    /// Index of the next entry to send.
    next_index: u64,
    state: State,
    /// The latest round that the follower answered.
    pub(super) round: u64,
    /// The session of the follower's shard in which it replied as a follower of this term.
    pub(super) follows_in: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// The index up to which the logs agree is unknown. Sends one message at a time until one
    /// matches.
    Probing {
        /// True after a message was sent, until a reply or the next heartbeat.
        paused: bool,
    },
    /// Sends entries ahead of the replies. Holds the last index and the size of each message in
    /// flight.
    Streaming { in_flight: VecDeque<(u64, usize)>, bytes: usize },
    /// Needs a snapshot, because the leader no longer holds the entries that the follower lacks.
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

    /// Returns true if the follower has confirmed all entries and the commit index.
    pub(super) fn is_settled(&self, last_index: u64, commit_index: u64) -> bool {
        self.match_index == last_index && self.commit_index == commit_index
    }

    pub(super) fn is_lagging(&self) -> bool {
        matches!(self.state, State::Lagging)
    }

    /// Handles a confirmation that the follower holds everything up to an index.
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
                // Messages from before are no longer in flight, or lie beyond the matching entries.
                self.next_index = self.match_index + 1;
                self.state = State::Streaming { in_flight: VecDeque::new(), bytes: 0 };
            }
        }
    }

    /// Handles a report that the follower lacks the entry before those sent. The logs may agree at
    /// `try_index`.
    pub(super) fn mismatched(&mut self, previous_index: u64, try_index: u64) {
        // A reply to a message from before the latest confirmation contains nothing new.
        if previous_index > self.match_index && previous_index < self.next_index {
            self.next_index = (try_index + 1).min(previous_index).max(self.match_index + 1);
            self.state = State::Probing { paused: false };
        }
    }

    /// Starts to probe again, because the peer's shard was unreachable and messages in flight may
    /// be lost.
    pub(super) fn restart_probing(&mut self) {
        if !self.is_lagging() {
            self.next_index = self.next_index.max(self.match_index + 1);
            self.state = State::Probing { paused: false };
        }
    }

    /// Returns the entries to send next, after the index of the entry before them. Returns `None`
    /// if there is nothing to send, and an empty batch only if `even_empty` is true.
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
            // The next message waits for a reply or for the next heartbeat. `next_index` has not
            // moved, so if the reply is lost, the heartbeat sends the same entries again.
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

    /// Allows another probe with the next heartbeat, because the reply to the last one may be lost.
    pub(super) fn unpause(&mut self) {
        if let State::Probing { paused } = &mut self.state {
            *paused = false;
        }
    }
}
