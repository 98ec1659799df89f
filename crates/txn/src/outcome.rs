//! The memory of outcomes.
//!
//! The problem: a client whose connection broke does not know whether its write took effect, and
//! must send it again. The naive way, writing again, undoes whatever another client wrote in
//! between. So every write carries an id that is known before its first send, and the range
//! remembers what became of it until the client says that it waits for no answer any more.
//!
//! Forgetting is safe because every request carries the timestamp at which it expires. An outcome
//! is remembered until then, or until its session says that it waits for it no more. So a retry
//! finds the outcome, or comes after its expiry and is refused, however long it was on its way:
//!
//! ```text
//! request of expiry 50    commit at 20 -- remembered --------| 50: forgotten
//! a retry at 30: the outcome of 20          a retry at 60: expired
//! ```
//!
//! The memory is bounded by the number of entries, not of sessions. It is a function of the applied
//! commands alone: the queue that decides what is forgotten next is part of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_wire::{CommitRequest, Reader, SessionId, TxnId, WireError};

use crate::CommitCommand;

/// Sessions and outcomes that one range remembers: some 64 MiB.
const MAX_ENTRIES: usize = 1 << 20;

/// Outcomes that are remembered of one session.
const MAX_OUTCOMES: usize = 64 * 1024;

/// Sessions that one commit forgets, or looks at again, at most.
const FORGOTTEN_PER_COMMIT: usize = 32;

/// Stands in a piece for the condition that failed: none did.
const COMMITTED: u16 = u16::MAX;

/// Outcomes by session.
#[derive(Debug, Default)]
pub struct OutcomeTable {
    sessions: BTreeMap<SessionId, Session>,
    /// When each session is looked at next: at or before the last expiry of its requests.
    queue: BTreeSet<(Timestamp, SessionId)>,
    /// Sessions and outcomes.
    entries: usize,
}

#[derive(Debug)]
struct Session {
    settled_below: u64,
    /// By sequence, rising.
    outcomes: VecDeque<Remembered>,
    /// The last expiry of its requests.
    expires_ts: Timestamp,
    /// Its place in the queue.
    queued_ts: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    sequence: u64,
    fingerprint: u32,
    settled: Settled,
}

/// One try of a commit, as the memory of outcomes knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The name of the commit: the same for all of its tries.
    pub txn: TxnId,
    /// Tells another commit under the same name apart.
    pub fingerprint: u32,
    /// Below this sequence, the session waits for no outcome of this range.
    pub settled_below: u64,
    /// The commit must not run after this.
    pub expires_ts: Timestamp,
}

impl Attempt {
    /// The try that a request makes.
    pub fn new(request: &CommitRequest) -> Self {
        Self {
            txn: request.txn,
            fingerprint: CommitCommand::fingerprint(&request.commit),
            settled_below: request.settled_below,
            expires_ts: request.expires_ts,
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is committed.
    Committed(Timestamp),
    /// A condition did not hold. That is remembered, too: a late copy of the request could find
    /// that it holds, after the client was told that nothing would happen.
    Failed {
        /// Which.
        condition: u16,
        /// The last commit that was looked at.
        as_of_ts: Timestamp,
    },
}

/// What is known of a transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it may run.
    New,
    /// It has ended.
    Settled(Settled),
    /// Its lifetime is over, or its session had settled it: it must not run, or not again.
    Expired,
    /// It was used for another write.
    Reused,
    /// It may not run because too much is remembered already.
    Full,
}

impl OutcomeTable {
    /// A memory of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks a commit up at the time `now_ts`, before it runs.
    pub fn look_up(&self, attempt: &Attempt, now_ts: Timestamp) -> Verdict {
        let Attempt { txn, fingerprint, settled_below, expires_ts } = *attempt;
        let is_late = expires_ts < now_ts;
        let Some(session) = self.sessions.get(&txn.session) else {
            return match (is_late, self.has_room(2)) {
                (true, _) => Verdict::Expired,
                (false, false) => Verdict::Full,
                (false, true) => Verdict::New,
            };
        };
        match session.find(txn.sequence) {
            Ok(at) => {
                let known = session.outcomes[at];
                if known.fingerprint == fingerprint {
                    Verdict::Settled(known.settled)
                } else {
                    Verdict::Reused
                }
            }
            Err(_) if is_late || txn.sequence < session.settled_below => Verdict::Expired,
            Err(_) => {
                let makes_room = session.settled(settled_below) > 0;
                let has_room = session.outcomes.len() < MAX_OUTCOMES && self.has_room(1);
                if makes_room || has_room { Verdict::New } else { Verdict::Full }
            }
        }
    }

    fn has_room(&self, entries: usize) -> bool {
        self.entries + entries <= MAX_ENTRIES
    }

    /// Whether [`OutcomeTable::forget_expired`] may make room at `now_ts`.
    pub fn expires(&self, now_ts: Timestamp) -> bool {
        self.queue.first().is_some_and(|(queued_ts, _)| *queued_ts < now_ts)
    }

    /// Remembers the end of a commit that [`OutcomeTable::look_up`] called new, and forgets what
    /// its session has settled.
    ///
    /// # Panics
    ///
    /// If the outcome is known already.
    pub fn record(&mut self, attempt: &Attempt, settled: Settled) {
        let Attempt { txn, fingerprint, settled_below, expires_ts } = *attempt;
        let session = self.sessions.entry(txn.session).or_insert_with(|| {
            self.queue.insert((expires_ts, txn.session));
            self.entries += 1;
            let (outcomes, queued_ts) = (VecDeque::new(), expires_ts);
            Session { settled_below: 0, outcomes, expires_ts, queued_ts }
        });
        session.expires_ts = session.expires_ts.max(expires_ts);
        let forgotten = session.settled(settled_below);
        session.settled_below = session.settled_below.max(settled_below);
        session.outcomes.drain(..forgotten);
        let remembered = Remembered { sequence: txn.sequence, fingerprint, settled };
        match session.find(txn.sequence) {
            Ok(_) => unreachable!("{txn:?} has ended twice"),
            Err(at) => session.outcomes.insert(at, remembered),
        }
        self.entries = self.entries + 1 - forgotten;
    }

    /// Forgets sessions all of whose requests have expired, a few of them. Called before each
    /// commit is looked up while entries are applied, also before those that are then refused: so
    /// a full memory makes room even if it refuses everything.
    pub fn forget_expired(&mut self, now_ts: Timestamp) {
        for _ in 0..FORGOTTEN_PER_COMMIT {
            let Some((queued_ts, id)) = self.queue.first().copied() else { return };
            if queued_ts >= now_ts {
                return;
            }
            self.queue.pop_first();
            let session = self.sessions.get_mut(&id).expect("the queue holds sessions");
            assert_eq!(session.queued_ts, queued_ts, "{id:?} is queued at another time");
            if session.expires_ts >= now_ts {
                session.queued_ts = session.expires_ts;
                self.queue.insert((session.queued_ts, id));
            } else {
                self.entries -= 1 + session.outcomes.len();
                self.sessions.remove(&id);
            }
        }
    }

    /// Everything that is remembered, one piece for each session: part of a range's snapshot.
    pub fn to_pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.sessions.iter().map(|(id, session)| {
            let mut out = BytesMut::new();
            out.put_u64_le(id.0);
            out.put_u64_le(session.settled_below);
            out.put_u64_le(session.expires_ts.to_bits());
            out.put_u64_le(session.queued_ts.to_bits());
            for outcome in &session.outcomes {
                out.put_u64_le(outcome.sequence);
                out.put_u32_le(outcome.fingerprint);
                let (condition, ts) = match outcome.settled {
                    Settled::Committed(commit_ts) => (COMMITTED, commit_ts),
                    Settled::Failed { condition, as_of_ts } => (condition, as_of_ts),
                };
                out.put_u16_le(condition);
                out.put_u64_le(ts.to_bits());
            }
            out.freeze()
        })
    }

    /// Takes in a piece that [`OutcomeTable::to_pieces`] made.
    pub fn restore(&mut self, piece: Bytes) -> Result<(), WireError> {
        const HEAD_BYTES: usize = 32;
        const OUTCOME_BYTES: usize = 22;
        let outcomes = piece.len().saturating_sub(HEAD_BYTES) / OUTCOME_BYTES;
        let mut reader = Reader::new(piece);
        let id = SessionId(reader.u64()?);
        let settled_below = reader.u64()?;
        let expires_ts = Timestamp::from_bits(reader.u64()?);
        let queued_ts = Timestamp::from_bits(reader.u64()?);
        let outcome = |_| {
            let (sequence, fingerprint) = (reader.u64()?, reader.u32()?);
            let (condition, ts) = (reader.u16()?, Timestamp::from_bits(reader.u64()?));
            let settled = match condition {
                COMMITTED => Settled::Committed(ts),
                condition => Settled::Failed { condition, as_of_ts: ts },
            };
            Ok(Remembered { sequence, fingerprint, settled })
        };
        let outcomes = (0..outcomes).map(outcome).collect::<Result<VecDeque<_>, WireError>>()?;
        reader.finish()?;
        self.entries += 1 + outcomes.len();
        self.queue.insert((queued_ts, id));
        let session = Session { settled_below, outcomes, expires_ts, queued_ts };
        let before = self.sessions.insert(id, session);
        assert!(before.is_none(), "{id:?} is in the snapshot twice");
        Ok(())
    }
}

impl Session {
    /// How many outcomes the session settles by naming a sequence below which it waits for none.
    fn settled(&self, settled_below: u64) -> usize {
        self.outcomes.partition_point(|outcome| outcome.sequence < settled_below)
    }

    /// Where a sequence is, or where it belongs. Sequences arrive nearly in order.
    fn find(&self, sequence: u64) -> Result<usize, usize> {
        match self.outcomes.back() {
            Some(last) if last.sequence >= sequence => {
                self.outcomes.binary_search_by_key(&sequence, |outcome| outcome.sequence)
            }
            _ => Err(self.outcomes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(session: u64, sequence: u64) -> TxnId {
        TxnId { session: SessionId(session), sequence }
    }

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    fn committed(us: u64) -> Verdict {
        Verdict::Settled(Settled::Committed(ts(us)))
    }

    /// Commits of these tests expire here, unless they say otherwise.
    const EXPIRES_US: u64 = 1_000;

    fn attempt(txn: TxnId, settled_below: u64, expires_us: u64) -> Attempt {
        Attempt { txn, fingerprint: 77, settled_below, expires_ts: ts(expires_us) }
    }

    /// As when an entry is applied.
    fn apply(table: &mut OutcomeTable, attempt: Attempt, us: u64) -> Verdict {
        table.forget_expired(ts(us));
        let verdict = table.look_up(&attempt, ts(us));
        if verdict == Verdict::New {
            table.record(&attempt, Settled::Committed(ts(us)));
        }
        verdict
    }

    fn record(table: &mut OutcomeTable, of: TxnId, settled_below: u64, us: u64) {
        assert_eq!(apply(table, attempt(of, settled_below, EXPIRES_US), us), Verdict::New);
    }

    fn look_up(table: &OutcomeTable, of: TxnId, us: u64) -> Verdict {
        table.look_up(&attempt(of, 0, EXPIRES_US), ts(us))
    }

    #[test]
    fn a_failure_is_remembered_too() {
        let mut table = OutcomeTable::new();
        let failed = Settled::Failed { condition: 3, as_of_ts: ts(5) };
        table.record(&attempt(txn(1, 5), 5, EXPIRES_US), failed);
        let mut restored = OutcomeTable::new();
        table.to_pieces().for_each(|piece| restored.restore(piece).unwrap());
        assert_eq!(look_up(&restored, txn(1, 5), 9), Verdict::Settled(failed));
    }

    #[test]
    fn a_retry_gets_the_first_outcome_and_another_body_is_told_apart() {
        let mut table = OutcomeTable::new();
        assert_eq!(look_up(&table, txn(1, 5), 1), Verdict::New);
        record(&mut table, txn(1, 5), 5, 1);
        assert_eq!(look_up(&table, txn(1, 5), 9), committed(1));
        let other = Attempt { fingerprint: 78, ..attempt(txn(1, 5), 5, EXPIRES_US) };
        assert_eq!(table.look_up(&other, ts(9)), Verdict::Reused);
        assert_eq!(look_up(&table, txn(2, 5), 9), Verdict::New);
    }

    #[test]
    fn sequences_may_arrive_out_of_order_and_expire_once_settled() {
        let mut table = OutcomeTable::new();
        for sequence in [3, 1, 2] {
            record(&mut table, txn(1, sequence), 1, sequence);
        }
        assert_eq!(look_up(&table, txn(1, 1), 9), committed(1));
        record(&mut table, txn(1, 4), 3, 4);
        assert_eq!(look_up(&table, txn(1, 1), 9), Verdict::Expired);
        assert_eq!(look_up(&table, txn(1, 3), 9), committed(3));
        // A late duplicate of something that never reached this range is refused all the same.
        assert_eq!(look_up(&table, txn(1, 0), 9), Verdict::Expired);
    }

    #[test]
    fn pieces_hold_everything() {
        let mut table = OutcomeTable::new();
        for sequence in 1..4 {
            record(&mut table, txn(1, sequence), 2, sequence);
            record(&mut table, txn(2, sequence), 0, sequence);
        }
        let mut restored = OutcomeTable::new();
        for piece in table.to_pieces() {
            assert!(restored.restore(piece.slice(..piece.len() - 1)).is_err());
            restored.restore(piece).unwrap();
        }
        for (session, sequence) in [(1, 0), (1, 1), (1, 3), (2, 1), (2, 3), (2, 4)] {
            let found = |table: &OutcomeTable| look_up(table, txn(session, sequence), 9);
            assert_eq!(found(&restored), found(&table), "{session} {sequence}");
        }
        assert_eq!((&restored.queue, restored.entries), (&table.queue, table.entries));
    }

    #[test]
    fn what_is_forgotten_is_refused() {
        let mut table = OutcomeTable::new();
        record(&mut table, txn(1, 1), 0, 10);
        // Remembered until it expires, also if nothing asks for a long time.
        assert_eq!(look_up(&table, txn(1, 1), EXPIRES_US + 500), committed(10));
        apply(&mut table, attempt(txn(2, 1), 0, 3 * EXPIRES_US), EXPIRES_US + 1);
        assert_eq!((table.sessions.len(), table.entries), (1, 2));
        assert_eq!(look_up(&table, txn(1, 1), EXPIRES_US + 1), Verdict::Expired);
        // So is what never came here before it expired.
        assert_eq!(look_up(&table, txn(3, 1), EXPIRES_US + 1), Verdict::Expired);
        assert_eq!(look_up(&table, txn(3, 1), EXPIRES_US), Verdict::New);
    }

    #[test]
    fn a_session_is_remembered_until_the_last_of_its_requests_expires() {
        let mut table = OutcomeTable::new();
        for (sequence, expires_us) in [(1, 100), (2, 300), (3, 200)] {
            apply(&mut table, attempt(txn(1, sequence), 0, expires_us), sequence);
        }
        let third = attempt(txn(1, 3), 0, 200);
        for us in [101, 201, 300] {
            apply(&mut table, attempt(txn(us, 1), 0, 1_000_000), us);
            assert_eq!(table.look_up(&third, ts(us)), committed(3));
        }
        apply(&mut table, attempt(txn(9, 1), 0, 1_000_000), 301);
        assert_eq!(table.look_up(&third, ts(301)), Verdict::Expired);
    }

    /// A table that is full of sessions with one outcome each.
    fn full() -> OutcomeTable {
        let mut table = OutcomeTable::new();
        for session in 0..MAX_ENTRIES as u64 / 2 {
            record(&mut table, txn(session, 1), 0, 1);
        }
        assert_eq!(table.entries, MAX_ENTRIES);
        table
    }

    #[test]
    fn a_full_memory_refuses_what_is_new_and_lets_a_session_go_on_that_settles() {
        let mut table = full();
        let fresh = attempt(txn(u64::MAX, 1), 0, 1_000_000);
        assert_eq!(apply(&mut table, fresh, 2), Verdict::Full);
        assert_eq!(apply(&mut table, attempt(txn(0, 2), 0, EXPIRES_US), 2), Verdict::Full);
        assert_eq!(apply(&mut table, attempt(txn(0, 2), 2, EXPIRES_US), 2), Verdict::New);
        assert_eq!(table.entries, MAX_ENTRIES);
    }

    #[test]
    fn a_full_memory_makes_room_as_sessions_expire_although_none_of_them_comes_back() {
        let mut table = full();
        let fresh = |sequence| attempt(txn(u64::MAX, sequence), 0, 1_000_000);
        let us = EXPIRES_US + 1;
        assert!(table.expires(ts(us)) && !table.expires(ts(EXPIRES_US)));
        for sequence in 1..100 {
            assert_eq!(apply(&mut table, fresh(sequence), us), Verdict::New);
        }
        assert!(table.entries < MAX_ENTRIES);
    }
}
