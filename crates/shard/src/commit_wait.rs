//! Commit wait: no reply reveals a commit before the commit's timestamp has passed.
//!
//! The problem: a transaction that starts after another was observed must get a later timestamp, on
//! any node. With the local clock's timestamp and an immediate reply, the second transaction could
//! get an earlier timestamp on a node whose clock is behind ("causal reverse").
//!
//! So a commit takes a timestamp that is not below the latest that true time may be. Each reply
//! that reveals it is held until true time is certainly later (Spanner, OSDI'12 §4.1.2). That
//! includes a reader's reply, because a read may see the commit before the writer is answered.
//! After that, any clock that is right to within its bound gives later timestamps to new commits.
//!
//! The wait overlaps with replication. What remains of it is twice the bound, less the time that
//! replication took, or nothing.
//!
//! HAZARD: if a clock is wrong by more than its bound, timestamps of different keys may not follow
//! real time. Each key alone stays linearizable.

use std::{cmp::Reverse, collections::BinaryHeap};

use palisade_clock::{Now, Timestamp};
use palisade_wire::{Durations, Outcome, Response};

use crate::turn::ConnectionId;

/// Waiting replies at which a shard rejects further requests.
const MAX_WAITING: usize = 64 * 1024;

/// Replies that wait for a timestamp to pass.
#[derive(Debug, Default)]
pub(crate) struct CommitWait {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Keeps replies with the same timestamp in order.
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
    /// Removes the replies that must wait from `replies`, and adds those whose wait is over.
    /// Records how long these have waited.
    pub(crate) fn pass(
        &mut self,
        replies: &mut Vec<(ConnectionId, Response)>,
        durations: &mut Durations,
        now: Now,
    ) {
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
            let waited = now.monotonic_us.saturating_sub(since_us);
            durations.record(waited);
            if let Outcome::Committed { waited_us, .. } = &mut response.outcome {
                *waited_us = u32::try_from(waited).unwrap_or(u32::MAX);
            }
            replies.push((connection, response));
        }
    }

    /// Returns the microseconds until the next wait is over, at the earliest.
    pub(crate) fn next_us(&self, now: Now) -> Option<u64> {
        self.waiting.peek().map(|Reverse(waiting)| now.wall.until_passed_us(waiting.visible_ts))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns true if no more requests may be accepted.
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
    fn replies_wait_until_their_timestamp_has_passed() {
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
        wait.pass(&mut replies, &mut Durations::default(), now(50, 1_000));
        let ids = |replies: &[(ConnectionId, Response)]| {
            replies.iter().map(|(_, response)| response.request_id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&replies), [2, 4, 5]);
        assert_eq!(wait.next_us(now(50, 1_000)), Some(16));
        let mut later = Vec::new();
        wait.pass(&mut later, &mut Durations::default(), now(65, 1_015));
        assert_eq!(ids(&later), [0_u64; 0]);
        wait.pass(&mut later, &mut Durations::default(), now(66, 1_016));
        assert_eq!(ids(&later), [3]);
        wait.pass(&mut later, &mut Durations::default(), now(75, 1_021));
        assert_eq!(ids(&later), [3, 1]);
        assert!(matches!(later[1].1.outcome, Outcome::Committed { waited_us: 25, .. }));
        assert!(wait.is_empty() && wait.next_us(now(75, 1_021)).is_none());
    }
}
