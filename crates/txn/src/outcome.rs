//! The memory of outcomes.
//!
//! The problem: a client whose connection broke does not know whether its write took effect, and
//! must send it again. The naive way, writing again, undoes whatever another client wrote in
//! between. So every write carries an id that is known before its first send, and the range
//! remembers what became of it until the client says that it waits for no answer any more.
//!
//! The memory is bounded: a session says below which sequence everything is settled, has so many
//! writes under way at most, and sessions that wrote nothing for a while make room for new ones.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use palisade_clock::Timestamp;
use palisade_wire::{Reader, SessionId, TxnId, WireError};

/// Sessions that one range remembers.
const MAX_SESSIONS: usize = 4096;

/// Outcomes that are remembered of one session.
const MAX_OUTCOMES: usize = 64 * 1024;

/// A session that wrote nothing for this long may be forgotten. No client retries for so long.
const IDLE_US: u64 = 600 * 1_000_000;

/// Stands in a piece for the condition that failed: none did.
const COMMITTED: u16 = u16::MAX;

/// Outcomes by session.
#[derive(Debug, Default)]
pub struct OutcomeTable {
    sessions: BTreeMap<SessionId, Session>,
}

#[derive(Debug)]
struct Session {
    settled_below: u64,
    /// By sequence, rising.
    outcomes: VecDeque<Remembered>,
    last_ts: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    sequence: u64,
    fingerprint: u32,
    settled: Settled,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is committed.
    Committed(Timestamp),
    /// A condition did not hold. That is remembered, too: a late copy of the request could find that
    /// it holds, after the client was told that nothing would happen.
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
    /// Its session had settled it: it must not run again.
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

    /// Looks an id up. `now_ts` decides which sessions are idle.
    pub fn look_up(&self, txn: TxnId, fingerprint: u32, now_ts: Timestamp) -> Verdict {
        let Some(session) = self.sessions.get(&txn.session) else {
            let full = self.sessions.len() >= MAX_SESSIONS && self.idle(now_ts).next().is_none();
            return if full { Verdict::Full } else { Verdict::New };
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
            Err(_) if txn.sequence < session.settled_below => Verdict::Expired,
            Err(_) if session.outcomes.len() >= MAX_OUTCOMES => Verdict::Full,
            Err(_) => Verdict::New,
        }
    }

    /// Remembers the end of a transaction that [`OutcomeTable::look_up`] called new, and forgets what
    /// the session has settled.
    pub fn record(
        &mut self,
        txn: TxnId,
        settled_below: u64,
        fingerprint: u32,
        settled: Settled,
        now_ts: Timestamp,
    ) {
        if self.sessions.len() >= MAX_SESSIONS && !self.sessions.contains_key(&txn.session) {
            let idle = self.idle(now_ts).collect::<Vec<_>>();
            assert!(
                !idle.is_empty(),
                "a commit of a new session was let in while there was no room"
            );
            for session in idle {
                self.sessions.remove(&session);
            }
        }
        let session = self.sessions.entry(txn.session).or_insert_with(|| Session {
            settled_below: 0,
            outcomes: VecDeque::new(),
            last_ts: now_ts,
        });
        session.last_ts = now_ts;
        session.settled_below = session.settled_below.max(settled_below);
        let known = session.outcomes.partition_point(|o| o.sequence < session.settled_below);
        session.outcomes.drain(..known);
        let remembered = Remembered { sequence: txn.sequence, fingerprint, settled };
        match session.find(txn.sequence) {
            Ok(_) => unreachable!("{txn:?} has ended twice"),
            Err(at) => session.outcomes.insert(at, remembered),
        }
    }

    /// Everything that is remembered, one piece for each session: part of a range's snapshot.
    pub fn to_pieces(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.sessions.iter().map(|(id, session)| {
            let mut out = BytesMut::new();
            out.put_u64_le(id.0);
            out.put_u64_le(session.settled_below);
            out.put_u64_le(session.last_ts.to_bits());
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
        const HEAD_BYTES: usize = 24;
        const OUTCOME_BYTES: usize = 22;
        let outcomes = piece.len().saturating_sub(HEAD_BYTES) / OUTCOME_BYTES;
        let mut reader = Reader::new(piece);
        let id = SessionId(reader.u64()?);
        let settled_below = reader.u64()?;
        let last_ts = Timestamp::from_bits(reader.u64()?);
        let outcome = |_| {
            let (sequence, fingerprint) = (reader.u64()?, reader.u32()?);
            let (condition, ts) = (reader.u16()?, Timestamp::from_bits(reader.u64()?));
            let settled = match condition {
                COMMITTED => Settled::Committed(ts),
                condition => Settled::Failed { condition, as_of_ts: ts },
            };
            Ok(Remembered { sequence, fingerprint, settled })
        };
        let outcomes = (0..outcomes).map(outcome).collect::<Result<_, WireError>>()?;
        reader.finish()?;
        self.sessions.insert(id, Session { settled_below, outcomes, last_ts });
        Ok(())
    }

    fn idle(&self, now_ts: Timestamp) -> impl Iterator<Item = SessionId> + '_ {
        let horizon = now_ts.saturating_sub_us(IDLE_US);
        let idle = self.sessions.iter().filter(move |(_, session)| session.last_ts < horizon);
        idle.map(|(id, _)| *id)
    }
}

impl Session {
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

    #[test]
    fn a_failure_is_remembered_too() {
        let mut table = OutcomeTable::new();
        let failed = Settled::Failed { condition: 3, as_of_ts: ts(5) };
        table.record(txn(1, 5), 5, 77, failed, ts(6));
        let mut restored = OutcomeTable::new();
        table.to_pieces().for_each(|piece| restored.restore(piece).unwrap());
        assert_eq!(restored.look_up(txn(1, 5), 77, ts(9)), Verdict::Settled(failed));
    }

    #[test]
    fn a_retry_gets_the_first_outcome_and_another_body_is_told_apart() {
        let mut table = OutcomeTable::new();
        assert_eq!(table.look_up(txn(1, 5), 77, ts(1)), Verdict::New);
        table.record(txn(1, 5), 5, 77, Settled::Committed(ts(1)), ts(1));
        assert_eq!(table.look_up(txn(1, 5), 77, ts(9)), committed(1));
        assert_eq!(table.look_up(txn(1, 5), 78, ts(9)), Verdict::Reused);
        assert_eq!(table.look_up(txn(2, 5), 78, ts(9)), Verdict::New);
    }

    #[test]
    fn sequences_may_arrive_out_of_order_and_expire_once_settled() {
        let mut table = OutcomeTable::new();
        for sequence in [3, 1, 2] {
            table.record(txn(1, sequence), 1, 0, Settled::Committed(ts(sequence)), ts(sequence));
        }
        assert_eq!(table.look_up(txn(1, 1), 0, ts(9)), committed(1));
        table.record(txn(1, 4), 3, 0, Settled::Committed(ts(4)), ts(4));
        assert_eq!(table.look_up(txn(1, 1), 0, ts(9)), Verdict::Expired);
        assert_eq!(table.look_up(txn(1, 3), 0, ts(9)), committed(3));
        // A late duplicate of something that never reached this range is refused all the same.
        assert_eq!(table.look_up(txn(1, 0), 0, ts(9)), Verdict::Expired);
    }

    #[test]
    fn pieces_hold_everything() {
        let mut table = OutcomeTable::new();
        for sequence in 1..4 {
            table.record(txn(1, sequence), 2, 7, Settled::Committed(ts(sequence)), ts(sequence));
            table.record(txn(2, sequence), 0, 7, Settled::Committed(ts(sequence)), ts(sequence));
        }
        let mut restored = OutcomeTable::new();
        for piece in table.to_pieces() {
            assert!(restored.restore(piece.slice(..piece.len() - 1)).is_err());
            restored.restore(piece).unwrap();
        }
        for (session, sequence) in [(1, 0), (1, 1), (1, 3), (2, 1), (2, 3), (2, 4)] {
            let look_up = |table: &OutcomeTable| table.look_up(txn(session, sequence), 7, ts(9));
            assert_eq!(look_up(&restored), look_up(&table), "{session} {sequence}");
        }
    }

    #[test]
    fn sessions_are_bounded_and_only_idle_ones_make_room() {
        let mut table = OutcomeTable::new();
        for session in 0..MAX_SESSIONS as u64 {
            table.record(
                txn(session, 1),
                0,
                0,
                Settled::Committed(ts(1 + session % 2 * IDLE_US)),
                ts(1 + session % 2 * IDLE_US),
            );
        }
        assert_eq!(table.look_up(txn(u64::MAX, 1), 0, ts(IDLE_US)), Verdict::Full);
        let later = ts(IDLE_US + 2);
        assert_eq!(table.look_up(txn(u64::MAX, 1), 0, later), Verdict::New);
        table.record(txn(u64::MAX, 1), 0, 0, Settled::Committed(later), later);
        assert_eq!(table.look_up(txn(1, 1), 0, later), committed(1 + IDLE_US));
        assert_eq!(table.sessions.len(), MAX_SESSIONS / 2 + 1);
    }
}
