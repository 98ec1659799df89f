//! The table of outcomes, which makes retries of commits safe.
//!
//! The problem: a client whose connection broke does not know whether its commit took effect, and
//! must send it again. The naive way, to run it again, undoes what another client wrote in between.
//! So every commit carries an id that is fixed before its first send, and the range remembers the
//! outcome under that id.
//!
//! Forgetting is safe because every request carries the timestamp at which it expires. The outcome
//! is remembered until then, or until the session settles it because it no longer waits for the
//! answer. A retry, however late it arrives, finds the outcome or is refused:
//!
//! ```text
//! request of expiry 50    commit at 20 -- remembered --------| 50: forgotten
//! a retry at 30: the outcome of 20          a retry at 60: expired
//! ```
//!
//! The bound is on sessions and outcomes together. The table is a function of the applied commands
//! alone, and so is the queue that decides which session is forgotten next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_wire::{CommitRequest, Reader, SessionId, TxnId, WireError};

use crate::CommitCommand;

/// Limit on the sessions and outcomes that one range remembers: about 64 MiB.
const MAX_ENTRIES: usize = 1 << 20;

/// Limit on the outcomes remembered for one session.
const MAX_OUTCOMES: usize = 64 * 1024;

/// Limit on the sessions that one commit forgets or puts back into the queue.
const FORGOTTEN_PER_COMMIT: usize = 32;

/// In a piece, replaces the index of the failed condition if the commit took effect.
const COMMITTED: u16 = u16::MAX;

/// Bytes of a session in a piece, and of each of its outcomes.
const HEAD_BYTES: usize = 32;
const OUTCOME_BYTES: usize = 22;

/// The outcomes of a range's commits, by session.
#[derive(Debug, Default)]
pub struct OutcomeTable {
    sessions: BTreeMap<SessionId, SessionOutcomes>,
    /// When each session is checked for expiry next: never after its `expires_ts`.
    queue: BTreeSet<(Timestamp, SessionId)>,
    /// The number of sessions and outcomes together.
    entries: usize,
}

#[derive(Debug)]
struct SessionOutcomes {
    settled_below: u64,
    /// Sorted by sequence.
    outcomes: VecDeque<Remembered>,
    /// The latest expiry of its requests.
    expires_ts: Timestamp,
    /// The timestamp under which the queue has this session.
    queued_ts: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    sequence: u64,
    fingerprint: u32,
    settled: Settled,
}

/// One try of a commit, as the table of outcomes sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The id of the commit, the same for all of its tries.
    pub txn: TxnId,
    /// Distinguishes another commit under the same id: see [`CommitCommand::fingerprint`].
    pub fingerprint: u32,
    /// The session no longer waits for outcomes of this range below this sequence.
    pub settled_below: u64,
    /// The commit must not run after this timestamp.
    pub expires_ts: Timestamp,
}

impl Attempt {
    /// Returns the try that a request makes.
    pub fn new(request: &CommitRequest) -> Self {
        Self {
            txn: request.txn,
            fingerprint: CommitCommand::fingerprint(&request.commit),
            settled_below: request.settled_below,
            expires_ts: request.expires_ts,
        }
    }
}

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The commit took effect at this timestamp.
    Committed(Timestamp),
    /// A condition did not hold. This is remembered, too: the condition could hold when a late copy
    /// of the request arrives, after the client has received the failure.
    Failed {
        /// Index of the condition in the commit, from 0.
        condition: u16,
        /// The range's last timestamp when the conditions were checked.
        as_of_ts: Timestamp,
    },
}

/// What the table knows of a commit's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The id is unknown: the commit may run.
    New,
    /// The commit has ended with this outcome.
    Settled(Settled),
    /// The commit has expired, or its session has settled it. It must not run, and the table does
    /// not know whether it ran before.
    Expired,
    /// The id was used for another commit.
    Reused,
    /// The commit must not run, because too many sessions or outcomes are remembered. Retryable.
    Full,
}

impl OutcomeTable {
    /// Creates an empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks up a commit at `now_ts`, before it runs. Changes nothing.
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

    /// Returns true if [`OutcomeTable::forget_expired`] may make room at `now_ts`.
    pub fn expires(&self, now_ts: Timestamp) -> bool {
        self.queue.first().is_some_and(|(queued_ts, _)| *queued_ts < now_ts)
    }

    /// Records the outcome of a commit for which [`OutcomeTable::look_up`] returned
    /// [`Verdict::New`]. Forgets the outcomes that its session has settled.
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
            SessionOutcomes { settled_below: 0, outcomes, expires_ts, queued_ts }
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

    /// Checks a limited number of sessions, and forgets those whose requests have all expired
    /// before `now_ts`. Call it for every commit that is applied, before the lookup, even if the
    /// commit is then refused: a full table thus makes room while it refuses everything.
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

    /// Returns at most how many bytes the pieces of [`OutcomeTable::to_pieces`] take together.
    pub fn pieces_bytes(&self) -> u64 {
        (self.sessions.len() * HEAD_BYTES + self.entries * OUTCOME_BYTES) as u64
    }

    /// Encodes the table for a range's snapshot, one piece for each session.
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

    /// Adds the session in a piece from [`OutcomeTable::to_pieces`].
    ///
    /// # Errors
    ///
    /// [`WireError`] if the piece is cut short or too long. Not retryable.
    ///
    /// # Panics
    ///
    /// If the table has the session already.
    pub fn restore(&mut self, piece: Bytes) -> Result<(), WireError> {
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
        if self.sessions.contains_key(&id) {
            return Err(WireError::Invalid("a snapshot has a session twice"));
        }
        self.entries += 1 + outcomes.len();
        self.queue.insert((queued_ts, id));
        let session = SessionOutcomes { settled_below, outcomes, expires_ts, queued_ts };
        self.sessions.insert(id, session);
        Ok(())
    }
}

impl SessionOutcomes {
    /// Returns the number of outcomes with a sequence below `settled_below`.
    fn settled(&self, settled_below: u64) -> usize {
        self.outcomes.partition_point(|outcome| outcome.sequence < settled_below)
    }

    /// Returns the index of a sequence, or where to insert it. Checks the end first, because
    /// sequences arrive nearly in order.
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

    /// Default expiry of the commits in these tests.
    const EXPIRES_US: u64 = 1_000;

    fn attempt(txn: TxnId, settled_below: u64, expires_us: u64) -> Attempt {
        Attempt { txn, fingerprint: 77, settled_below, expires_ts: ts(expires_us) }
    }

    /// Looks up and records a commit, as the application of an entry does.
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
    fn failed_outcome_is_recorded_and_restored() {
        let mut table = OutcomeTable::new();
        let failed = Settled::Failed { condition: 3, as_of_ts: ts(5) };
        table.record(&attempt(txn(1, 5), 5, EXPIRES_US), failed);
        let mut restored = OutcomeTable::new();
        table.to_pieces().for_each(|piece| restored.restore(piece).unwrap());
        assert_eq!(look_up(&restored, txn(1, 5), 9), Verdict::Settled(failed));
    }

    #[test]
    fn retry_returns_first_outcome_and_detects_reused_id() {
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
        // A late duplicate of a settled commit is refused, even if it never reached this range.
        assert_eq!(look_up(&table, txn(1, 0), 9), Verdict::Expired);
    }

    #[test]
    fn pieces_restore_complete_table() {
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
    fn forgotten_commit_is_refused_as_expired() {
        let mut table = OutcomeTable::new();
        record(&mut table, txn(1, 1), 0, 10);
        // Still remembered after its expiry, because `forget_expired` has not run since.
        assert_eq!(look_up(&table, txn(1, 1), EXPIRES_US + 500), committed(10));
        apply(&mut table, attempt(txn(2, 1), 0, 3 * EXPIRES_US), EXPIRES_US + 1);
        assert_eq!((table.sessions.len(), table.entries), (1, 2));
        assert_eq!(look_up(&table, txn(1, 1), EXPIRES_US + 1), Verdict::Expired);
        // A commit that first arrives after its expiry is refused, too.
        assert_eq!(look_up(&table, txn(3, 1), EXPIRES_US + 1), Verdict::Expired);
        assert_eq!(look_up(&table, txn(3, 1), EXPIRES_US), Verdict::New);
    }

    #[test]
    fn session_is_kept_until_its_last_request_expires() {
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

    /// Returns a full table of sessions with one outcome each.
    fn full() -> OutcomeTable {
        let mut table = OutcomeTable::new();
        for session in 0..MAX_ENTRIES as u64 / 2 {
            record(&mut table, txn(session, 1), 0, 1);
        }
        assert_eq!(table.entries, MAX_ENTRIES);
        table
    }

    #[test]
    fn full_table_refuses_new_commits_unless_session_settles() {
        let mut table = full();
        let fresh = attempt(txn(u64::MAX, 1), 0, 1_000_000);
        assert_eq!(apply(&mut table, fresh, 2), Verdict::Full);
        assert_eq!(apply(&mut table, attempt(txn(0, 2), 0, EXPIRES_US), 2), Verdict::Full);
        assert_eq!(apply(&mut table, attempt(txn(0, 2), 2, EXPIRES_US), 2), Verdict::New);
        assert_eq!(table.entries, MAX_ENTRIES);
    }

    #[test]
    fn full_table_frees_space_as_sessions_expire() {
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
