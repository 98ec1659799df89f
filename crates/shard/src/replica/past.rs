//! Reads at a timestamp, without locks.
//!
//! The problem: what is read at a timestamp must never change afterwards, whoever is asked. The naive
//! way, to look at the newest versions up to it, misses commits with earlier timestamps that are
//! still on their way.
//!
//! Commits get rising timestamps in the order of the log. So a replica, any replica, knows all there
//! is up to the timestamp of the last commit that it has applied: its safe time (Spanner, OSDI'12
//! §4.1.3, without prepared transactions so far). What is later, only the replica that orders the
//! writes can tell: once the timestamp has certainly passed, nobody will ever order anything before
//! it, because every commit's timestamp is not below true time (see `commit_wait`); so it makes sure
//! that it still leads, and waits until everything that it had ordered until then is applied.
//!
//! A read protects what it saw from collection for a while: its reader may come back for more.
//!
//! Left out: safe time of a range in which nothing happens does not rise by itself; reads of it that
//! are recent go to the leader.

use std::collections::BTreeMap;

use palisade_clock::{Now, Timestamp};
use palisade_wire::{Outcome, ReadKind, Rejection, ScanRequest, check_key};

use super::{Asker, MAX_WAITING, Read, Replica, refused};
use crate::TestFault;

/// A reader that came for something may come back within this time.
const READER_US: u64 = 5_000_000;

/// Nothing that is older is protected, whoever reads it.
const MAX_READER_AGE_US: u64 = 60_000_000;

/// Timestamps that are protected at a time; further readers have the ordinary retention.
const MAX_READERS: usize = 4096;

/// Reads at timestamps that a replica has on hand.
#[derive(Debug, Default)]
pub(super) struct PastReads {
    /// Those that wait for leadership to be confirmed, by token; and after which entry they may run.
    asked: BTreeMap<u64, (u64, PastRead)>,
    /// Those that wait for an entry to be applied, by its index and their token.
    waiting: BTreeMap<(u64, u64), PastRead>,
    /// Timestamps that are read at, and until when they are protected.
    readers: BTreeMap<Timestamp, u64>,
}

#[derive(Debug)]
struct PastRead {
    asker: Asker,
    read: Read,
    at_ts: Timestamp,
}

impl PastReads {
    /// Below this nothing may be collected.
    pub(super) fn protected_ts(&self) -> Timestamp {
        self.readers.first_key_value().map_or(Timestamp::MAX, |(ts, _)| *ts)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_empty()
    }

    /// Time has passed: readers that did not come back are forgotten.
    pub(super) fn tick(&mut self, now: Now) {
        let oldest_us = now.wall.earliest_us.saturating_sub(MAX_READER_AGE_US);
        let oldest_ts = Timestamp::from_physical_us(oldest_us);
        self.readers.retain(|ts, until_us| *until_us > now.monotonic_us && *ts >= oldest_ts);
    }

    fn protect(&mut self, at_ts: Timestamp, now: Now) {
        if self.readers.len() < MAX_READERS || self.readers.contains_key(&at_ts) {
            self.readers.insert(at_ts, now.monotonic_us + READER_US);
        }
    }
}

impl Replica {
    /// Begins a read of a key at a timestamp that has passed, or says at once what is there.
    pub(crate) fn get_past(
        &mut self,
        asker: Asker,
        key: &[u8],
        kind: ReadKind,
        now: Now,
    ) -> Result<(), Outcome> {
        check_key(key).map_err(Outcome::Rejected)?;
        if !self.descriptor.holds(key) {
            return Err(Outcome::Rejected(Rejection::WrongRange));
        }
        self.read_past(asker, Read::Key(bytes::Bytes::copy_from_slice(key)), kind, now)
    }

    /// Begins a scan at a timestamp that has passed, or says at once what is there.
    pub(crate) fn scan_past(
        &mut self,
        asker: Asker,
        scan: ScanRequest,
        kind: ReadKind,
        now: Now,
    ) -> Result<(), Outcome> {
        let scan = self.check_scan(scan)?;
        self.read_past(asker, Read::Span(Box::new(scan)), kind, now)
    }

    fn read_past(
        &mut self,
        asker: Asker,
        read: Read,
        kind: ReadKind,
        now: Now,
    ) -> Result<(), Outcome> {
        let safe_ts = self.state.last_ts();
        let at_ts = match kind {
            ReadKind::AsOf(at_ts) => at_ts,
            ReadKind::Stale { max_us } => {
                let latest_ts = Timestamp::from_physical_us(now.wall.latest_us);
                safe_ts.max(latest_ts.saturating_sub_us(max_us))
            }
            ReadKind::Latest | ReadKind::Snapshot | ReadKind::Locking(_) => {
                unreachable!("{kind:?} is of no timestamp yet")
            }
        };
        if at_ts <= safe_ts {
            return Err(self.read_as_of(&read, at_ts, now));
        }
        if self.past.asked.len() + self.past.waiting.len() >= MAX_WAITING {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        self.next_token += 1;
        self.group.read_where_ordered(self.next_token).map_err(refused)?;
        let hasty = self.fault == Some(TestFault::HastySnapshots);
        let after = if hasty { 0 } else { self.group.last_index() };
        self.past.asked.insert(self.next_token, (after, PastRead { asker, read, at_ts }));
        Ok(())
    }

    /// Leadership was confirmed since a read was asked for. Returns whether it was one of these.
    pub(super) fn past_read_confirmed(&mut self, token: u64) -> bool {
        let Some((after, read)) = self.past.asked.remove(&token) else { return false };
        self.past.waiting.insert((after, token), read);
        true
    }

    /// Leadership was not confirmed. Returns who asked, if it was one of these.
    pub(super) fn past_read_refused(&mut self, token: u64) -> Option<Asker> {
        self.past.asked.remove(&token).map(|(_, read)| read.asker)
    }

    /// Answers those for which enough is applied; or all of them, if it may never be.
    pub(super) fn answer_past_reads(&mut self, now: Now) {
        let orders = self.group.holds_proposals();
        while let Some(first) = self.past.waiting.first_entry()
            && (first.key().0 <= self.applied_index || !orders)
        {
            let ((after, _), PastRead { asker, read, at_ts }) = first.remove_entry();
            let outcome = if after <= self.applied_index {
                self.read_as_of(&read, at_ts, now)
            } else {
                Outcome::Rejected(Rejection::NotServing { hint: None })
            };
            self.answers.push((asker, outcome));
        }
    }

    fn read_as_of(&mut self, read: &Read, at_ts: Timestamp, now: Now) -> Outcome {
        let outcome = match read {
            Read::Key(key) => self.state.get_as_of(key, at_ts),
            Read::Span(scan) => self.state.scan(scan, Some(at_ts), &self.descriptor),
        };
        if !matches!(outcome, Outcome::Rejected(_)) {
            self.past.protect(at_ts, now);
        }
        outcome
    }
}
