//! The inputs of a shard that wait for its next turn.
//!
//! Ticks, finished syncs and heartbeats come before other messages of peers, and those before
//! requests of clients: a shard with too many requests still replicates, and its leaderships last.
//! Inquiries are cheap requests that show that the shard works, and come before the others.
//!
//! A request that has waited for [`MAX_WAIT_US`], or for as long as its client waits for an answer,
//! is rejected instead of served. Under overload the queue would otherwise grow until every answer
//! comes too late, and the shard would work for callers that have given up. Requests that continue
//! a transaction with locks are served however late: others wait for its locks.

use std::collections::VecDeque;

use palisade_wire::{Locking, Operation, PeerAddress, ReadKind, Request};

use crate::{
    messages::{PeerBody, PeerMessage},
    turn::{ConnectionId, Input},
};

/// How long a request may wait for its turn, in microseconds.
const MAX_WAIT_US: u64 = 100_000;

/// Number of requests, and of messages, beyond which the driver should read no more of them.
const MAX_INPUTS: usize = 8 * 1024;

/// Bytes of requests, and of messages, beyond which the driver should read no more of them.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The inputs that wait for a shard's next turn.
#[derive(Debug, Default)]
pub struct Inbox {
    ticked: bool,
    /// Finished syncs, installs and the drain.
    urgent: VecDeque<Input>,
    heartbeats: VecDeque<(PeerAddress, PeerMessage)>,
    messages: Queue<(PeerAddress, PeerMessage)>,
    inquiries: VecDeque<(ConnectionId, Request)>,
    requests: Queue<(ConnectionId, Request)>,
    /// The first turns that found requests waiting: each with its time in microseconds, and the
    /// number of the last request that it found.
    seen: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Queue<T> {
    /// Each with about how many bytes it adds to the log.
    waiting: VecDeque<(T, u64)>,
    bytes: u64,
    /// Number of items taken so far.
    taken: u64,
}

/// A request that is taken from an [`Inbox`].
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) connection: ConnectionId,
    pub(crate) request: Request,
    /// When a turn first found the request, on the monotonic clock.
    pub(crate) since_us: u64,
    /// The request has waited for too long.
    pub(crate) is_late: bool,
}

impl Inbox {
    /// Adds an input.
    pub fn push(&mut self, input: Input) {
        match input {
            // One tick is as good as many.
            Input::Tick => self.ticked = true,
            Input::Request { connection, request } if is_inquiry(&request.operation) => {
                self.inquiries.push_back((connection, request));
            }
            Input::Request { connection, request } => {
                let bytes = request.operation.bytes() as u64;
                self.requests.push((connection, request), bytes);
            }
            Input::Peer { from, message } if matches!(message.body, PeerBody::Hello(_)) => {
                self.heartbeats.push_back((from, message));
            }
            Input::Peer { from, message } => {
                let bytes = message.body.log_bytes();
                self.messages.push((from, message), bytes);
            }
            Input::Durable { .. } | Input::Install(_) | Input::Drain => {
                self.urgent.push_back(input);
            }
        }
    }

    /// Returns true if no input waits.
    pub fn is_empty(&self) -> bool {
        !self.ticked
            && self.urgent.is_empty()
            && self.heartbeats.is_empty()
            && self.messages.waiting.is_empty()
            && self.inquiries.is_empty()
            && self.requests.waiting.is_empty()
    }

    /// Returns true if more requests of clients may be read.
    pub fn has_room_for_requests(&self) -> bool {
        self.requests.has_room() && self.inquiries.len() < MAX_INPUTS
    }

    /// Returns true if more messages of peers may be read.
    pub fn has_room_for_messages(&self) -> bool {
        self.messages.has_room() && self.heartbeats.len() < MAX_INPUTS
    }

    /// Begins a turn. The age of a request counts from the first turn that finds it here.
    pub(crate) fn begin_turn(&mut self, now_us: u64) {
        let last = self.requests.taken + self.requests.waiting.len() as u64;
        if self.seen.back().is_none_or(|(_, seen)| *seen < last) {
            self.seen.push_back((now_us, last));
        }
        while self.seen.pop_front_if(|(_, last)| *last <= self.requests.taken).is_some() {}
    }

    /// Takes an input that is neither a message nor a request.
    pub(crate) fn next_urgent(&mut self) -> Option<Input> {
        if std::mem::take(&mut self.ticked) {
            return Some(Input::Tick);
        }
        self.urgent.pop_front()
    }

    /// Takes a heartbeat.
    pub(crate) fn next_heartbeat(&mut self) -> Option<Input> {
        let (from, message) = self.heartbeats.pop_front()?;
        Some(Input::Peer { from, message })
    }

    /// Takes a message, with about how many bytes it adds to the log.
    pub(crate) fn next_message(&mut self) -> Option<(Input, u64)> {
        let ((from, message), bytes) = self.messages.pop()?;
        Some((Input::Peer { from, message }, bytes))
    }

    /// Takes a request that is an inquiry.
    pub(crate) fn next_inquiry(&mut self) -> Option<(ConnectionId, Request)> {
        self.inquiries.pop_front()
    }

    /// Takes a request, with about how many bytes it adds to the log.
    pub(crate) fn next_request(&mut self, now_us: u64) -> Option<(Taken, u64)> {
        let ((connection, request), bytes) = self.requests.pop()?;
        while self.seen.pop_front_if(|(_, last)| *last < self.requests.taken).is_some() {}
        let since_us = self.seen.front().map_or(now_us, |(seen_us, _)| *seen_us);
        let is_late = now_us.saturating_sub(since_us) >= MAX_WAIT_US.min(request.limit_us.into());
        let is_late = is_late && !continues_transaction(&request.operation);
        Some((Taken { connection, request, since_us, is_late }, bytes))
    }
}

impl<T> Queue<T> {
    fn push(&mut self, item: T, bytes: u64) {
        self.waiting.push_back((item, bytes));
        self.bytes += bytes;
    }

    fn pop(&mut self) -> Option<(T, u64)> {
        let (item, bytes) = self.waiting.pop_front()?;
        self.bytes -= bytes;
        self.taken += 1;
        Some((item, bytes))
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < MAX_INPUTS && self.bytes < MAX_BYTES
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, taken: 0 }
    }
}

/// Returns true for requests that every shard answers in its next turn.
fn is_inquiry(operation: &Operation) -> bool {
    matches!(operation, Operation::RangeMap | Operation::Status | Operation::KeepVersions { .. })
}

/// Returns true if a request is of a transaction that may hold locks.
fn continues_transaction(operation: &Operation) -> bool {
    match operation {
        Operation::Commit { claim, .. } => claim.is_some(),
        Operation::Rollback { .. } => true,
        Operation::Get { kind, .. } | Operation::Scan { kind, .. } => {
            matches!(kind, ReadKind::Locking(Locking { claim, .. }) if claim.token.is_some())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{LockClaim, RangeId, SessionId, TxnId};

    use super::*;

    fn request(request_id: u64, operation: Operation) -> Input {
        let request = Request::new(request_id, operation);
        Input::Request { connection: ConnectionId(1), request }
    }

    fn get(kind: ReadKind) -> Operation {
        Operation::Get { range: RangeId(1), key: "k".into(), kind }
    }

    /// Takes all requests, and returns the ids of those in time and of the late ones.
    fn take(inbox: &mut Inbox, now_us: u64) -> (Vec<u64>, Vec<u64>) {
        inbox.begin_turn(now_us);
        let all = std::iter::from_fn(|| inbox.next_request(now_us)).map(|(taken, _)| taken);
        let (late, fresh): (Vec<_>, Vec<_>) = all.partition(|taken| taken.is_late);
        let ids = |taken: Vec<Taken>| taken.iter().map(|t| t.request.request_id).collect();
        (ids(fresh), ids(late))
    }

    #[test]
    fn request_age_counts_from_first_turn_that_finds_it() {
        let mut inbox = Inbox::default();
        inbox.push(request(1, get(ReadKind::Latest)));
        assert_eq!(take(&mut inbox, 10 * MAX_WAIT_US), (vec![1], vec![]), "no turn saw it before");
        inbox.push(request(2, get(ReadKind::Latest)));
        inbox.begin_turn(20 * MAX_WAIT_US);
        inbox.push(request(3, get(ReadKind::Latest)));
        inbox.begin_turn(20 * MAX_WAIT_US + 1);
        let in_time = take(&mut inbox, 21 * MAX_WAIT_US);
        assert_eq!(in_time, (vec![3], vec![2]));
        inbox.begin_turn(22 * MAX_WAIT_US);
        inbox.push(request(4, get(ReadKind::Latest)));
        assert_eq!(take(&mut inbox, 23 * MAX_WAIT_US), (vec![4], vec![]));
        assert!(inbox.is_empty());
    }

    #[test]
    fn request_is_late_once_its_client_has_given_up() {
        let mut inbox = Inbox::default();
        for (request_id, limit_us) in [(1, 2_000), (2, 3_000)] {
            let request = Request { limit_us, ..Request::new(request_id, get(ReadKind::Latest)) };
            inbox.push(Input::Request { connection: ConnectionId(1), request });
        }
        inbox.begin_turn(0);
        assert_eq!(take(&mut inbox, 2_000), (vec![2], vec![1]));
    }

    #[test]
    fn transactions_with_locks_are_never_late() {
        let mut inbox = Inbox::default();
        let owner = TxnId { session: SessionId(1), sequence: 1 };
        let token = Some(palisade_wire::LockToken { term: 1, number: 1 });
        for (id, token) in [(1, None), (2, token)] {
            let claim = LockClaim { owner, start_ts: None, token };
            inbox.push(request(id, get(ReadKind::Locking(Locking { claim, exclusive: true }))));
        }
        inbox.begin_turn(0);
        assert_eq!(take(&mut inbox, MAX_WAIT_US), (vec![2], vec![1]));
    }

    #[test]
    fn ticks_are_merged_and_urgent() {
        let mut inbox = Inbox::default();
        inbox.push(Input::Durable { appends: 1 });
        for _ in 0..9 {
            inbox.push(Input::Tick);
        }
        assert!(matches!(inbox.next_urgent(), Some(Input::Tick)));
        assert!(matches!(inbox.next_urgent(), Some(Input::Durable { appends: 1 })));
        assert!(inbox.next_urgent().is_none() && inbox.is_empty());
    }

    #[test]
    fn inquiries_do_not_wait_behind_requests() {
        let mut inbox = Inbox::default();
        inbox.push(request(1, get(ReadKind::Latest)));
        inbox.push(request(2, Operation::Status));
        let (_, inquiry) = inbox.next_inquiry().expect("it waits");
        assert_eq!(inquiry.request_id, 2);
        assert!(inbox.next_inquiry().is_none() && !inbox.is_empty());
    }

    #[test]
    fn room_ends_at_a_number_of_inputs() {
        let mut inbox = Inbox::default();
        for id in 0..MAX_INPUTS as u64 {
            assert!(inbox.has_room_for_requests());
            inbox.push(request(id, get(ReadKind::Latest)));
        }
        assert!(!inbox.has_room_for_requests() && inbox.has_room_for_messages());
        inbox.begin_turn(0);
        assert!(inbox.next_request(0).is_some() && inbox.has_room_for_requests());
    }
}
