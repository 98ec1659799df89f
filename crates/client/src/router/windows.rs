//! Limits the requests in flight for each range at a shard, and holds back the others.
//!
//! The problem: a shard that gets more requests than it can serve has a queue, in its inbox and in
//! the sockets before it. Every answer then comes late, also those of calls that have ended,
//! and retries make the queue longer. Requests are cheaper to hold back here: a call that ends
//! while its request waits costs the shard nothing.
//!
//! So the requests of each range at a shard have a window, like a TCP connection. It shrinks by a
//! quarter when the shard rejects a request as overloaded, and grows by a request for 16 answers
//! while requests wait for it. Its bytes are limited as well. A range that answers nothing, such as
//! a broken chain, fills up its own window alone.
//!
//! The oldest request is sent first. Once that has waited for [`STANDING_US`], there are more calls
//! than the shard can serve. The newest is then sent first: some calls are served in time, instead
//! of all of them just too late.

use std::collections::{BTreeMap, BTreeSet};

use palisade_wire::{PeerAddress, RangeId};

/// Requests of a range in flight at a shard at first, in production.
pub const FIRST_WINDOW: u32 = 128;

/// Requests in flight at least, unless fewer are at first, and at most.
const FEWEST: u32 = 8;
const MOST: u32 = 64 * 1024;

/// Bytes in flight, about.
const MAX_BYTES: u32 = 4 * 1024 * 1024;

/// Least time between two reductions, in microseconds: an answer may be of a request that was sent
/// before the first.
const SHRINK_US: u64 = 20_000;

/// Wait of the oldest request from which on the newest is sent first, in microseconds.
const STANDING_US: u64 = 100_000;

/// A range at a shard.
pub(super) type WindowKey = (PeerAddress, RangeId);

/// The windows of all ranges at all shards.
#[derive(Debug)]
pub(super) struct Windows {
    windows: BTreeMap<WindowKey, Window>,
    first: u32,
}

impl Windows {
    /// Creates windows of `first` requests.
    pub(super) fn new(first: u32) -> Self {
        Self { windows: BTreeMap::new(), first }
    }

    /// Returns a window.
    pub(super) fn get(&mut self, key: WindowKey) -> &mut Window {
        self.windows.entry(key).or_insert_with(|| Window::new(self.first))
    }

    /// Removes and returns all requests that wait for the windows of a shard.
    pub(super) fn take_all(&mut self, at: PeerAddress) -> Vec<u64> {
        let of_shard = self.windows.range_mut((at, RangeId(0))..=(at, RangeId(u32::MAX)));
        let waiting = of_shard.flat_map(|(_, window)| std::mem::take(&mut window.waiting));
        waiting.map(|(_, request_id)| request_id).collect()
    }
}

/// The window of a range at a shard.
#[derive(Debug)]
pub(super) struct Window {
    in_flight: u32,
    /// Requests that may be in flight, in sixteenths.
    limit: u32,
    fewest: u32,
    /// The moving average of the bytes of a request, in eighths.
    bytes: u32,
    shrunk_us: u64,
    /// The requests that wait, by id, with the start of their calls in microseconds.
    waiting: BTreeSet<(u64, u64)>,
}

impl Window {
    /// Creates a window of `first` requests.
    pub(super) fn new(first: u32) -> Self {
        let (limit, fewest) = (16 * first.clamp(1, MOST), 16 * first.clamp(1, FEWEST));
        Self { in_flight: 0, limit, fewest, bytes: 0, shrunk_us: 0, waiting: BTreeSet::new() }
    }

    /// Returns true if another request may be sent.
    pub(super) fn has_room(&self) -> bool {
        let by_bytes = MAX_BYTES / (self.bytes / 8).max(1);
        self.in_flight < (self.limit / 16).min(by_bytes.max(1))
    }

    /// Records that a request is no longer in flight: it was answered, or its try has ended.
    /// Returns true if requests wait for its place.
    pub(super) fn leave(&mut self) -> bool {
        self.in_flight -= 1;
        !self.waiting.is_empty()
    }

    /// Records that a request of about so many bytes is in flight.
    pub(super) fn enter(&mut self, bytes: usize) {
        self.in_flight += 1;
        let bytes = u32::try_from(bytes).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        self.bytes = self.bytes - self.bytes / 8 + bytes;
    }

    /// Records an answer.
    pub(super) fn answered(&mut self, is_overloaded: bool, latency_us: u64, now_us: u64) {
        if is_overloaded {
            if now_us >= self.shrunk_us.saturating_add(latency_us.max(SHRINK_US)) {
                self.limit = (self.limit / 4 * 3).max(self.fewest);
                self.shrunk_us = now_us;
            }
        } else if !self.waiting.is_empty() {
            self.limit = (self.limit + 1).min(16 * MOST);
        }
    }

    /// Holds back a request of a call that started at `start_us`.
    pub(super) fn hold_back(&mut self, start_us: u64, request_id: u64) {
        self.waiting.insert((start_us, request_id));
    }

    /// Removes a request whose call has ended.
    pub(super) fn remove(&mut self, start_us: u64, request_id: u64) {
        self.waiting.remove(&(start_us, request_id));
    }

    /// Removes and returns the request that is sent next.
    pub(super) fn next(&mut self, now_us: u64) -> Option<u64> {
        let (start_us, _) = *self.waiting.first()?;
        let is_standing = now_us.saturating_sub(start_us) >= STANDING_US;
        let next = if is_standing { self.waiting.pop_last() } else { self.waiting.pop_first() };
        next.map(|(_, request_id)| request_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(window: &Window) -> u32 {
        let with = |in_flight| Window { in_flight, waiting: BTreeSet::new(), ..*window };
        (0..).find(|in_flight| !with(*in_flight).has_room()).expect("windows are limited")
    }

    #[test]
    fn window_shrinks_once_per_round_and_grows_while_requests_wait() {
        let mut window = Window::new(1024);
        assert_eq!(room(&window), 1024);
        window.answered(true, 50_000, 60_000);
        window.answered(true, 50_000, 109_999);
        assert_eq!(room(&window), 768);
        window.answered(true, 50_000, 110_000);
        assert_eq!(room(&window), 576);
        (0..32).for_each(|_| window.answered(false, 0, 0));
        assert_eq!(room(&window), 576, "no request waits");
        window.hold_back(0, 1);
        (0..32).for_each(|_| window.answered(false, 0, 0));
        assert_eq!(room(&window), 578);
        (1..99).for_each(|round| window.answered(true, 0, round << 20));
        assert_eq!(room(&window), 8);
    }

    #[test]
    fn window_is_limited_by_bytes() {
        let mut window = Window::new(1024);
        (0..99).for_each(|_| window.enter(64 << 10));
        assert!((64..80).contains(&room(&window)), "{}", room(&window));
        (0..99).for_each(|_| window.enter(usize::MAX));
        assert_eq!(room(&window), 1, "a large request is sent alone");
        (0..99).for_each(|_| window.enter(100));
        assert_eq!(room(&window), 1024);
    }

    #[test]
    fn ranges_of_a_shard_have_windows_of_their_own() {
        let (at, other) = (PeerAddress::default(), (PeerAddress::default(), RangeId(2)));
        let mut windows = Windows::new(1);
        let stuck = windows.get((at, RangeId(1)));
        stuck.enter(1);
        stuck.hold_back(0, 7);
        assert!(!stuck.has_room() && windows.get(other).has_room());
        assert!(windows.get((at, RangeId(1))).leave(), "a request waits");
        assert_eq!(windows.take_all(at), [7]);
    }

    #[test]
    fn newest_request_is_sent_first_once_the_oldest_has_waited() {
        let mut window = Window::new(1024);
        for request_id in 1..=5 {
            window.hold_back(request_id * 10, request_id);
        }
        window.remove(20, 2);
        assert_eq!(window.next(10), Some(1));
        assert_eq!(window.next(29 + STANDING_US), Some(3));
        assert_eq!(window.next(40 + STANDING_US), Some(5));
        assert_eq!(window.next(39 + STANDING_US), Some(4));
        assert_eq!(window.next(u64::MAX), None);
    }
}
