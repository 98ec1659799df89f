//! From log records to groups, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{Append, Entry, RecoveredGroup};
use palisade_wal::{Record, RecordKind};
use palisade_wire::RangeId;
use thiserror::Error;

use crate::TestFault;

/// What a shard's log held.
#[derive(Debug, Default)]
pub struct Replayed {
    groups: BTreeMap<RangeId, RecoveredGroup>,
    error: Option<ReplayError>,
}

/// Why a log whose records verify still makes no sense. Not retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// An entry does not follow the ones before it.
    #[error(
        "the log of {range} has entry {index} where at most {expected} can follow: the log was \
         written by a faulty build; replace this replica"
    )]
    Gap {
        /// The group.
        range: RangeId,
        /// The entry's index.
        index: u64,
        /// The index after the last entry.
        expected: u64,
    },
}

/// The record that a write becomes.
pub fn record_of(range: RangeId, append: &Append) -> Record<'_> {
    match append {
        Append::Entry(entry) => Record {
            kind: RecordKind::Entry,
            group: range.0,
            term: entry.term,
            index: entry.index,
            payload: &entry.payload,
        },
        Append::State { term, payload } => {
            Record { kind: RecordKind::State, group: range.0, term: *term, index: 0, payload }
        }
    }
}

impl Replayed {
    /// Takes in the next record.
    pub fn visit(&mut self, record: Record<'_>) {
        let range = RangeId(record.group);
        let group = self.groups.entry(range).or_default();
        let payload = Bytes::copy_from_slice(record.payload);
        match record.kind {
            RecordKind::State => group.state = Some((record.term, payload)),
            RecordKind::Entry => {
                let (index, expected) = (record.index, group.entries.len() as u64 + 1);
                if index == 0 || index > expected {
                    self.error.get_or_insert(ReplayError::Gap { range, index, expected });
                    return;
                }
                let keep = usize::try_from(index - 1).expect("it is at most a length");
                group.entries.truncate(keep);
                group.entries.push(Entry { index, term: record.term, payload });
            }
            RecordKind::Seal => {}
        }
    }

    /// The groups, once every record was taken in.
    pub fn finish(
        mut self,
        fault: Option<TestFault>,
    ) -> Result<BTreeMap<RangeId, RecoveredGroup>, ReplayError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if let Some(TestFault::ForgetOnRestart { entries }) = fault {
            for (_, group) in
                self.groups.iter_mut().filter(|(range, _)| **range != RangeId::CONTROL)
            {
                group.entries.truncate(group.entries.len().saturating_sub(entries));
            }
        }
        Ok(self.groups)
    }
}
