//! Clients that read the cells of several ranges at one timestamp.

use bytes::Bytes;
use palisade_client::router::{Call, ReadMode, ScanSpan};
use palisade_clock::Timestamp;
use palisade_wire::{Basis, Outcome, Page, ReadKind};

use crate::{interactive::cell_key, invariants::Seen};

/// The reads that a client does at one timestamp.
#[derive(Debug)]
pub(crate) struct SnapshotReads {
    age: Age,
    /// The timestamp of the reads: `None` until the first answer, unless it is given.
    at_ts: Option<Timestamp>,
    cells: usize,
    /// The remaining reads in reverse order: the place of a range, and one cell, or `None` for all.
    left: Vec<(usize, Option<usize>)>,
}

/// How old the timestamp of the reads may be.
#[derive(Clone, Copy, Debug)]
enum Age {
    /// At or above every timestamp that any client knew when the reads began, so that nothing
    /// acknowledged is missing.
    Fresh,
    /// At most `max_us` microseconds of true time before the reads began, and not below `at_least`,
    /// the latest timestamp that the client has seen.
    Stale { max_us: u64, at_least: Timestamp },
    /// A timestamp at which a client has read before.
    Past,
}

impl SnapshotReads {
    pub(crate) fn draw(
        random: &mut fastrand::Rng,
        places: usize,
        cells: usize,
        earlier: Option<Timestamp>,
        at_least: Timestamp,
    ) -> Self {
        let (age, at_ts) = match (random.u8(0..4), earlier) {
            (0, Some(at_ts)) => (Age::Past, Some(at_ts)),
            (1, _) => (Age::Stale { max_us: 1 << random.u32(5..22), at_least }, None),
            _ => (Age::Fresh, None),
        };
        let mut read = |_| {
            let cell = random.bool().then(|| random.usize(0..cells));
            (random.usize(0..places), cell)
        };
        let left = (0..4).map(&mut read).collect();
        Self { age, at_ts, cells, left }
    }

    /// Returns the place of the range that is read next, or `None` after the last read.
    pub(crate) fn place(&self) -> Option<usize> {
        self.left.last().map(|(place, _)| *place)
    }

    /// Returns true if the reads must see everything that was acknowledged before they began.
    pub(crate) fn is_fresh(&self) -> bool {
        matches!(self.age, Age::Fresh)
    }

    /// Returns true if a replica that does not sequence writes may be able to answer.
    pub(crate) fn any_replica_may_serve(&self) -> bool {
        !matches!(self.age, Age::Fresh)
    }

    /// Returns the call of the next read. With `anywhere`, a random replica serves it first.
    pub(crate) fn call(&self, start: &[u8], anywhere: bool) -> Option<Call> {
        let (_, cell) = self.left.last()?;
        let kind = match (self.at_ts, self.age) {
            (Some(at_ts), _) => ReadKind::AsOf(at_ts),
            (None, Age::Stale { max_us, at_least }) => ReadKind::Stale { max_us, at_least },
            (None, _) => ReadKind::Snapshot,
        };
        let mode = ReadMode::AtTimestamp { kind, anywhere };
        Some(match cell {
            Some(cell) => Call::Get { key: cell_key(start, *cell), mode },
            None => {
                let (begin, end) = (cell_key(start, 0), Some(cell_key(start, self.cells)));
                let span = ScanSpan { begin, end, backward: false, max_rows: 99 };
                Call::Scan { span, mode }
            }
        })
    }

    /// Checks the answer to the next read. Returns its timestamp and the state of each cell read.
    pub(crate) fn answered(
        &mut self,
        outcome: &Outcome,
        start: &[u8],
        known_ts: Timestamp,
        began_ts: Timestamp,
        unique: impl Fn(&Bytes) -> u64,
    ) -> Result<(Timestamp, Vec<Seen>), String> {
        let at = match outcome {
            Outcome::Value { basis: Basis::AsOf(ts), .. }
            | Outcome::Page { basis: Basis::AsOf(ts), .. } => *ts,
            other => return Err(format!("{other:?} answers {self:?}")),
        };
        let known = *self.at_ts.get_or_insert(at);
        let in_time = match self.age {
            Age::Fresh => at >= known_ts,
            Age::Stale { max_us, at_least } => {
                at >= began_ts.saturating_sub_us(max_us).max(at_least)
            }
            Age::Past => true,
        };
        if at != known || !in_time {
            return Err(format!("{self:?} was answered as of {at}; {known_ts} was known"));
        }
        let nothing = |cell| Seen { cell, ts: at, value: None };
        let mut seen = Vec::new();
        match (self.left.pop(), outcome) {
            (Some((_, Some(cell))), Outcome::Value { version_ts, value, .. }) => {
                let value = value.as_ref().map(unique);
                let found = value.map(|value| Seen { cell, ts: *version_ts, value: Some(value) });
                seen.push(found.unwrap_or(nothing(cell)));
            }
            (Some((_, None)), Outcome::Page { page: Page { rows, .. }, .. }) => {
                for cell in 0..self.cells {
                    let row = rows.iter().find(|row| row.key == cell_key(start, cell));
                    let found = row.map(|row| Seen {
                        cell,
                        ts: row.version_ts,
                        value: Some(unique(&row.value)),
                    });
                    seen.push(found.unwrap_or(nothing(cell)));
                }
                if !rows.is_sorted_by_key(|row| &row.key) || rows.len() > self.cells {
                    return Err(format!("{rows:?} are not the cells in order"));
                }
            }
            (read, outcome) => return Err(format!("{outcome:?} answers {read:?}")),
        }
        Ok((at, seen))
    }
}
