//! Slows commits down to what checkpoints keep up with, while the log has little room.
//!
//! In each interval, commits may write as many bytes as leave room until the checkpoints in
//! progress have released log. The others wait in the order of their arrival: first a client sees
//! longer latency, then `LogFull`. Deletes do not wait.

use std::collections::VecDeque;

use palisade_clock::Now;
use palisade_wire::{Operation, Rejection};

use crate::turn::RequestOrigin;

/// Time between two allowances, in microseconds.
const INTERVAL_US: u64 = 10_000;

/// A commit that waits longer than this is rejected with `LogFull`, in microseconds.
const MAX_WAIT_US: u64 = 1_000_000;

/// Commits and their bytes that may wait at one shard.
const MAX_WAITING: usize = 16 * 1024;
const MAX_WAITING_BYTES: i64 = 16 * 1024 * 1024;

/// Bytes that a commit takes beside its keys and values, about.
const OVERHEAD_BYTES: i64 = 128;

/// Commits that wait for room in the log.
#[derive(Debug, Default)]
pub(crate) struct Pacing {
    /// Bytes that commits may still write in this interval; below zero if the last one was larger
    /// than what was left. `None` if there is no limit.
    allowance_bytes: Option<i64>,
    next_interval_us: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: i64,
}

#[derive(Debug)]
struct Waiting {
    origin: RequestOrigin,
    operation: Operation,
    bytes: i64,
    since_us: u64,
}

/// What becomes of a commit that has waited.
pub(crate) enum Waited {
    /// It may be served.
    Admitted(RequestOrigin, Operation),
    /// It is rejected with `LogFull`.
    TooLong(RequestOrigin),
}

impl Pacing {
    /// Begins a new interval if one is due. `allowance_bytes` returns the bytes that commits may
    /// write in it.
    pub(crate) fn begin_interval(
        &mut self,
        allowance_bytes: impl FnOnce() -> Option<u64>,
        now: Now,
    ) {
        if now.monotonic_us >= self.next_interval_us {
            self.next_interval_us = now.monotonic_us + INTERVAL_US;
            let debt_bytes = self.allowance_bytes.unwrap_or(0).min(0);
            let granted = allowance_bytes().map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
            self.allowance_bytes = granted.map(|bytes| bytes + debt_bytes);
        }
    }

    /// Returns the operation if it need not wait; queues it and returns `None` otherwise.
    pub(crate) fn pass(
        &mut self,
        origin: RequestOrigin,
        operation: Operation,
        now: Now,
    ) -> Result<Option<Operation>, Rejection> {
        let Some(left_bytes) = self.allowance_bytes else { return Ok(Some(operation)) };
        let Some(bytes) = paced_bytes(&operation) else { return Ok(Some(operation)) };
        if self.waiting.is_empty() && left_bytes > 0 {
            self.allowance_bytes = Some(left_bytes - bytes);
            return Ok(Some(operation));
        }
        if self.waiting.len() >= MAX_WAITING || self.waiting_bytes + bytes > MAX_WAITING_BYTES {
            return Err(Rejection::LogFull);
        }
        self.waiting_bytes += bytes;
        let operation = detached(operation);
        self.waiting.push_back(Waiting { origin, operation, bytes, since_us: now.monotonic_us });
        Ok(None)
    }

    /// Removes and returns the first waiting commit if it may be served now, or has waited for too
    /// long.
    pub(crate) fn next(&mut self, now: Now) -> Option<Waited> {
        let Waiting { bytes, since_us, .. } = *self.waiting.front()?;
        let admitted = self.allowance_bytes.is_none_or(|left_bytes| left_bytes > 0);
        if !admitted && now.monotonic_us < since_us + MAX_WAIT_US {
            return None;
        }
        let Waiting { origin, operation, .. } = self.waiting.pop_front()?;
        self.waiting_bytes -= bytes;
        if !admitted {
            return Some(Waited::TooLong(origin));
        }
        if let Some(left_bytes) = &mut self.allowance_bytes {
            *left_bytes -= bytes;
        }
        Some(Waited::Admitted(origin, operation))
    }

    /// Returns the microseconds until a commit may be served, or `None` if no commit waits.
    pub(crate) fn next_us(&self, now: Now) -> Option<u64> {
        let waits = !self.waiting.is_empty();
        let is_admitted = self.allowance_bytes.is_none_or(|left_bytes| left_bytes > 0);
        let until_us = if is_admitted { 0 } else { self.next_interval_us };
        waits.then(|| until_us.saturating_sub(now.monotonic_us))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Returns about how many bytes a commit adds to the log, or `None` for operations that do not
/// wait.
fn paced_bytes(operation: &Operation) -> Option<i64> {
    match operation {
        Operation::Commit { request, .. } if request.commit.writes_values() => {
            Some(i64::try_from(request.commit.bytes()).unwrap_or(i64::MAX / 2) + OVERHEAD_BYTES)
        }
        _ => None,
    }
}

/// Copies keys and values: a waiting commit must not keep its receive buffer alive.
fn detached(operation: Operation) -> Operation {
    match operation {
        Operation::Commit { range, mut request, claim } => {
            request.commit = request.commit.detached();
            Operation::Commit { range, request, claim }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use palisade_clock::{Interval, Timestamp};
    use palisade_wire::{Commit, CommitRequest, RangeId, SessionId, TxnId};

    use super::*;
    use crate::ConnectionId;

    fn at(monotonic_us: u64) -> Now {
        Now { monotonic_us, wall: Interval { earliest_us: 0, latest_us: 0 } }
    }

    fn commit(commit: Commit) -> Operation {
        let txn = TxnId { session: SessionId(1), sequence: 1 };
        let request = CommitRequest { txn, settled_below: 0, expires_ts: Timestamp::MAX, commit };
        Operation::Commit { range: RangeId(1), request, claim: None }
    }

    fn put(bytes: usize) -> Operation {
        commit(Commit::new().put("k", vec![0; bytes - 1]))
    }

    fn origin(request_id: u64) -> RequestOrigin {
        RequestOrigin { connection: ConnectionId(1), request_id, since_us: 0 }
    }

    #[test]
    fn commits_wait_for_their_allowance_in_order() {
        let mut pacing = Pacing::default();
        assert!(matches!(pacing.pass(origin(1), put(900), at(0)), Ok(Some(_))), "no limit");
        pacing.begin_interval(|| Some(100), at(0));
        assert!(matches!(pacing.pass(origin(2), put(1_000), at(1)), Ok(Some(_))));
        assert!(matches!(pacing.pass(origin(3), put(1_000), at(1)), Ok(None)));
        assert!(matches!(pacing.pass(origin(4), put(10), at(1)), Ok(None)), "it stays behind");
        assert!(matches!(
            pacing.pass(origin(5), commit(Commit::new().delete("k")), at(1)),
            Ok(Some(_))
        ));
        assert!(pacing.next(at(9_999)).is_none());
        assert_eq!(pacing.next_us(at(9_000)), Some(1_000));
        pacing.begin_interval(|| panic!("it is not due"), at(9_999));
        // The last commit took more than was left.
        pacing.begin_interval(|| Some(100), at(10_000));
        assert!(pacing.next(at(10_000)).is_none(), "a debt is left");
        pacing.begin_interval(|| Some(900), at(20_000));
        assert!(pacing.next(at(20_000)).is_none(), "a debt is left");
        pacing.begin_interval(|| Some(900), at(30_000));
        let Some(Waited::Admitted(admitted, _)) = pacing.next(at(30_000)) else {
            panic!("it waits")
        };
        assert_eq!(admitted.request_id, 3);
        assert!(pacing.next(at(30_000)).is_none(), "the allowance is used up");
        let Some(Waited::TooLong(late)) = pacing.next(at(1_000_001)) else { panic!("it waits") };
        assert_eq!(late.request_id, 4);
        assert!(pacing.is_empty());
    }

    #[test]
    fn waiting_commits_are_bounded_by_bytes() {
        let mut pacing = Pacing::default();
        pacing.begin_interval(|| Some(0), at(0));
        let full = (0..20).find(|id| pacing.pass(origin(*id), put(1 << 20), at(0)).is_err());
        assert_eq!(full, Some(15));
    }
}
