//! Commit wait: nobody outside learns of a commit before its timestamp has passed.
//!
//! The problem: timestamps should order transactions as the world saw them: whoever starts after
//! having seen a commit must get a later timestamp, on any node. Clocks differ; the naive way, a
//! timestamp from the local clock and an answer at once, lets the next transaction, on a node whose
//! clock is behind, get an earlier one ("causal reverse").
//!
//! So a commit takes a timestamp not below the latest that true time may be, and whoever would learn
//! of it waits until true time is certainly later (Spanner, OSDI'12 §4.1.2): the writer for its
//! answer, and likewise a reader for the value, who may see it before the writer is answered. Then
//! any clock that is right to within its bound gives later timestamps to what follows. The wait runs
//! beside replication: what is left of it when that is done is twice the bound less the time it
//! took, if that is more than nothing.
//!
//! HAZARD: with a clock that is wrong by more than its bound the order is lost, though nothing is
//! lost of any single key.

use std::{cmp::Reverse, collections::BinaryHeap};

use palisade_clock::{Now, Timestamp};
use palisade_wire::{Outcome, Response};

use crate::ConnectionId;

/// Answers that may wait.
const MAX_WAITING: usize = 64 * 1024;

/// Answers that wait for time to pass.
#[derive(Debug, Default)]
pub(crate) struct CommitWait {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Keeps answers for the same timestamp in their order.
    next_number: u64,
}

#[derive(Debug)]
struct Waiting {
    visible_ts: Timestamp,
    number: u64,
    since_us: u64,
    connection: ConnectionId,
    response: Response,
}

impl CommitWait {
    /// Takes out the answers of a turn that must wait, and adds those that have waited.
    pub(crate) fn pass(&mut self, replies: &mut Vec<(ConnectionId, Response)>, now: Now) {
        let must_wait = |response: &Response| {
            response.outcome.visible_ts().filter(|ts| !now.wall.has_passed(*ts))
        };
        let waits = replies.extract_if(.., |(_, response)| must_wait(response).is_some());
        for (connection, response) in waits {
            let visible_ts = response.outcome.visible_ts().expect("it was looked at just now");
            let (number, since_us) = (self.next_number, now.monotonic_us);
            self.next_number += 1;
            let waiting = Waiting { visible_ts, number, since_us, connection, response };
            self.waiting.push(Reverse(waiting));
        }
        while self.waiting.peek().is_some_and(|Reverse(w)| now.wall.has_passed(w.visible_ts)) {
            let Some(Reverse(Waiting { since_us, connection, mut response, .. })) =
                self.waiting.pop()
            else {
                break;
            };
            if let Outcome::Committed { waited_us, .. } = &mut response.outcome {
                let waited = now.monotonic_us.saturating_sub(since_us);
                *waited_us = u32::try_from(waited).unwrap_or(u32::MAX);
            }
            replies.push((connection, response));
        }
    }

    /// When the next answer has waited, at the soonest.
    pub(crate) fn next_us(&self, now: Now) -> Option<u64> {
        self.waiting.peek().map(|Reverse(waiting)| now.wall.until_passed_us(waiting.visible_ts))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there is no room for what another request might bring.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.visible_ts, self.number).cmp(&(other.visible_ts, other.number))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use palisade_clock::Interval;
    use palisade_wire::Basis;

    use super::*;

    fn now(monotonic_us: u64, reading_us: u64) -> Now {
        Now { monotonic_us, wall: Interval::around(reading_us, 10) }
    }

    fn answer(request_id: u64, outcome: Outcome) -> (ConnectionId, Response) {
        (ConnectionId(1), Response { request_id, outcome })
    }

    fn committed(request_id: u64, us: u64) -> (ConnectionId, Response) {
        let commit_ts = Timestamp::from_physical_us(us);
        answer(request_id, Outcome::Committed { commit_ts, waited_us: 0 })
    }

    #[test]
    fn answers_leave_once_what_they_tell_has_passed_and_say_how_long_they_waited() {
        let mut wait = CommitWait::default();
        let value = |us, value| Outcome::Value {
            basis: Basis::Latest,
            version_ts: Timestamp::from_physical_us(us),
            value,
        };
        let mut replies = vec![
            committed(1, 1_010),
            answer(2, Outcome::ControlDone),
            answer(3, value(1_005, Some(Bytes::new()))),
            answer(4, value(900, None)),
            committed(5, 980),
        ];
        wait.pass(&mut replies, now(50, 1_000));
        let ids = |replies: &[(ConnectionId, Response)]| {
            replies.iter().map(|(_, response)| response.request_id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&replies), [2, 4, 5]);
        assert_eq!(wait.next_us(now(50, 1_000)), Some(16));
        let mut later = Vec::new();
        wait.pass(&mut later, now(65, 1_015));
        assert_eq!(ids(&later), [0_u64; 0]);
        wait.pass(&mut later, now(66, 1_016));
        assert_eq!(ids(&later), [3]);
        wait.pass(&mut later, now(75, 1_021));
        assert_eq!(ids(&later), [3, 1]);
        assert!(matches!(later[1].1.outcome, Outcome::Committed { waited_us: 25, .. }));
        assert!(wait.is_empty() && wait.next_us(now(75, 1_021)).is_none());
    }
}
