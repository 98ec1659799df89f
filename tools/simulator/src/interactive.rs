//! Transactions that clients execute step by step, on a few cells of each range.

use bytes::Bytes;
use palisade_client::router::{Call, Locks, ReadMode, ScanSpan};
use palisade_wire::{Basis, Commit, LockClaim, Outcome, Page, TxnId};

use crate::invariants::Seen;

/// One try of a transaction.
#[derive(Debug)]
pub(crate) struct Interactive {
    /// The place of its range.
    pub(crate) place: usize,
    /// The claim under which the leader knows its locks.
    pub(crate) claim: LockClaim,
    /// What it has read so far.
    pub(crate) seen: Vec<Seen>,
    /// What its commit writes: cells with new values, or `None` for a delete.
    pub(crate) writes: Vec<(usize, Option<u64>)>,
    /// The remaining steps, in reverse order.
    steps: Vec<Step>,
    /// All steps, in reverse order, for the next try.
    plan: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Get { cell: usize, exclusive: bool },
    Scan { from: usize, to: usize, backward: bool, exclusive: bool },
    Commit,
    Rollback,
}

/// Returns the key of a cell in the range that begins at `start`.
pub(crate) fn cell_key(start: &[u8], cell: usize) -> Bytes {
    [start, b"\0cell", &[u8::try_from(cell).expect("cells are few")]].concat().into()
}

impl Interactive {
    /// Draws a plan: some reads, then a commit of some writes or a rollback; or a blind write.
    pub(crate) fn draw(
        random: &mut fastrand::Rng,
        place: usize,
        cells: usize,
        owner: TxnId,
        next_value: &mut u64,
    ) -> Self {
        let mut plan = vec![if random.u8(0..12) == 0 { Step::Rollback } else { Step::Commit }];
        for _ in 0..random.usize(0..4) {
            let exclusive = random.u8(0..3) == 0;
            let cell = random.usize(0..cells);
            plan.push(if random.u8(0..3) == 0 {
                let to = random.usize(cell..cells) + 1;
                Step::Scan { from: cell, to, backward: random.bool(), exclusive }
            } else {
                Step::Get { cell, exclusive }
            });
        }
        let claim = LockClaim { owner, start_ts: None, token: None };
        let (seen, steps) = (Vec::new(), plan.clone());
        let mut drawn = Self { place, claim, seen, writes: Vec::new(), steps, plan };
        let blind = drawn.steps.len() == 1;
        for cell in 0..cells {
            if random.u8(0..3) == 0 || (blind && cell == 0) {
                *next_value += 1;
                let value = (random.u8(0..5) > 0).then_some(*next_value);
                drawn.writes.push((cell, value));
            }
        }
        if blind {
            drawn.plan = vec![Step::Commit];
            drawn.steps.clone_from(&drawn.plan);
        }
        drawn
    }

    /// Resets the transaction for another try after an abort: it keeps its age, and gets a new
    /// owner and new values.
    pub(crate) fn again(&mut self, owner: TxnId, next_value: &mut u64) {
        self.claim = LockClaim { owner, token: None, ..self.claim };
        self.seen.clear();
        self.steps.clone_from(&self.plan);
        for value in self.writes.iter_mut().filter_map(|(_, value)| value.as_mut()) {
            *next_value += 1;
            *value = *next_value;
        }
    }

    /// Returns true if the next step is the commit.
    pub(crate) fn is_committing(&self) -> bool {
        matches!(self.steps.last(), Some(Step::Commit))
    }

    /// Returns the locks that the commit relies on: `None` for a blind write.
    pub(crate) fn locks(&self, start: &[u8]) -> Option<Locks> {
        self.claim.token.map(|_| self.locks_at(start, false))
    }

    fn locks_at(&self, start: &[u8], exclusive: bool) -> Locks {
        Locks { claim: self.claim, exclusive, anchor: cell_key(start, 0) }
    }

    /// Returns the writes of the commit.
    pub(crate) fn commit(&self, start: &[u8], value: impl Fn(u64) -> Bytes) -> Commit {
        self.writes.iter().fold(Commit::new(), |commit, (cell, written)| {
            let key = cell_key(start, *cell);
            match written {
                Some(unique) => commit.put(key, value(*unique)),
                None => commit.delete(key),
            }
        })
    }

    /// Returns the call of the next step, or `None` if that is the commit.
    pub(crate) fn call(&self, start: &[u8]) -> Option<Call> {
        let mode = |exclusive| ReadMode::Locked(self.locks_at(start, exclusive));
        Some(match self.steps.last()? {
            Step::Get { cell, exclusive } => {
                Call::Get { key: cell_key(start, *cell), mode: mode(*exclusive) }
            }
            Step::Scan { from, to, backward, exclusive } => {
                let (begin, end) = (cell_key(start, *from), Some(cell_key(start, *to)));
                let span = ScanSpan { begin, end, backward: *backward, max_rows: 2 };
                Call::Scan { span, mode: mode(*exclusive) }
            }
            Step::Rollback => Call::Rollback(self.locks_at(start, false)),
            Step::Commit => return None,
        })
    }

    /// Takes in the answer to the next step. Returns true if the transaction is complete.
    pub(crate) fn answered(
        &mut self,
        outcome: &Outcome,
        start: &[u8],
        unique: impl Fn(&Bytes) -> u64,
    ) -> Result<bool, String> {
        let step = self.steps.pop();
        match (step, outcome) {
            (
                Some(Step::Get { cell, .. }),
                Outcome::Value { basis: Basis::Locked(grant), version_ts, value },
            ) => {
                self.claim = self.claim.granted(*grant);
                let value = value.as_ref().map(unique);
                self.seen.push(Seen { cell, ts: *version_ts, value });
            }
            (
                Some(Step::Scan { from, to, backward, exclusive }),
                Outcome::Page { basis: Basis::Locked(grant), page },
            ) => {
                self.claim = self.claim.granted(*grant);
                let Page { as_of_ts, rows, resume } = page;
                let all = (from, to);
                let (mut from, mut to) = all;
                if let Some(resume) = resume {
                    let inside = |cell: &usize| cell_key(start, *cell) < *resume;
                    let at = (from..to).filter(inside).count() + from;
                    (from, to) = if backward { (at, to) } else { (from, at) };
                    if from == to {
                        return Err(format!("a page of cells {all:?} is empty: {page:?}"));
                    }
                    let (from, to) = if backward { (all.0, at) } else { (at, all.1) };
                    if from < to {
                        self.steps.push(Step::Scan { from, to, backward, exclusive });
                    }
                }
                let mut rows = rows.iter();
                let mut cells: Vec<_> = (from..to).collect();
                if backward {
                    cells.reverse();
                }
                let mut next = rows.next();
                for cell in cells {
                    let found = next.filter(|row| row.key == cell_key(start, cell));
                    let (ts, value) = match found {
                        Some(row) => (row.version_ts, Some(unique(&row.value))),
                        None => (*as_of_ts, None),
                    };
                    self.seen.push(Seen { cell, ts, value });
                    if found.is_some() {
                        next = rows.next();
                    }
                }
                if let Some(row) = next {
                    return Err(format!("{row:?} is no cell of {all:?}, or out of order"));
                }
            }
            (Some(Step::Rollback), Outcome::RolledBack) => return Ok(true),
            (Some(Step::Commit), Outcome::Committed { .. }) => {
                // The caller keeps the commit, to send it again later without effect.
                self.steps.push(Step::Commit);
                return Ok(true);
            }
            (step, outcome) => return Err(format!("{outcome:?} answers {step:?}")),
        }
        Ok(false)
    }
}
