//! Clusters and zones: the interval in which a register must, or may, have held a value.

use crate::record::{Action, Completion, Operation};
use crate::violation::{Conflict, ValueInterval, Violation};

/// The role of an operation in the cluster of its value. The variants are in sort order: within a
/// cluster the writes come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Write,
    /// Kept only to report a read of its value.
    FailedWrite,
    Read,
}

impl Role {
    /// Returns `None` for a read without a response, which has no effect and no result.
    pub(crate) const fn of(operation: &Operation) -> Option<Self> {
        match (operation.action, operation.outcome) {
            (Action::Write(_), Completion::Ok | Completion::Info) => Some(Self::Write),
            (Action::Write(_), Completion::Fail) => Some(Self::FailedWrite),
            (Action::Read(_), Completion::Ok) => Some(Self::Read),
            (Action::Read(_), Completion::Fail | Completion::Info) => None,
        }
    }
}

/// An operation with its role, as the check sorts them.
pub(crate) type Entry<'a> = (Role, &'a Operation);

/// The zone of one cluster, stored as the two operations that bound it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zone<'a> {
    pub(crate) finished_first: &'a Operation,
    pub(crate) started_last: &'a Operation,
}

impl<'a> Zone<'a> {
    /// Returns the zone of the operations on one value, which must be sorted by role. Returns
    /// `None` if no read returned the value and no write of it is certain.
    pub(crate) fn of(cluster: &[Entry<'a>]) -> Result<Option<Self>, Violation> {
        let (writes, others) =
            cluster.split_at(cluster.partition_point(|entry| entry.0 == Role::Write));
        let (failed, reads) =
            others.split_at(others.partition_point(|entry| entry.0 == Role::FailedWrite));
        let write: &'a Operation = match *writes {
            [] => return Self::without_write(failed, reads),
            [(_, write)] => write,
            [(_, first), (_, second), ..] => {
                return Err(Violation::DuplicateWrite { first: *first, second: *second });
            }
        };
        // An unread write of unknown outcome can be ordered last, so it constrains nothing.
        if reads.is_empty() && write.outcome == Completion::Info {
            return Ok(None);
        }
        let mut zone = Self { finished_first: write, started_last: write };
        for &(_, read) in reads {
            if read.end_ns < write.start_ns {
                return Err(Violation::ReadBeforeWrite { read: *read, write: *write });
            }
            zone.include(read);
        }
        Ok(Some(zone))
    }

    fn without_write(failed: &[Entry<'a>], reads: &[Entry<'a>]) -> Result<Option<Self>, Violation> {
        match (reads.first(), failed.first()) {
            (None, _) => Ok(None),
            (Some(&(_, read)), Some(&(_, write))) => {
                Err(Violation::ReadOfFailedWrite { read: *read, write: *write })
            }
            (Some(&(_, read)), None) => Err(Violation::ReadOfUnwritten { read: *read }),
        }
    }

    const fn include(&mut self, operation: &'a Operation) {
        if operation.latest_effect_ns() < self.finish() {
            self.finished_first = operation;
        }
        if operation.start_ns > self.start() {
            self.started_last = operation;
        }
    }

    /// Returns `f`, the earliest end in the cluster.
    pub(crate) const fn finish(&self) -> u64 {
        self.finished_first.latest_effect_ns()
    }

    /// Returns `s`, the latest start in the cluster.
    pub(crate) const fn start(&self) -> u64 {
        self.started_last.start_ns
    }

    /// Returns true if the register must have held the value from `f` to `s` without interruption.
    pub(crate) const fn is_forward(&self) -> bool {
        self.finish() < self.start()
    }

    pub(crate) fn conflict(&self, inner: &Self) -> Box<Conflict> {
        Box::new(Conflict { outer: self.span(), inner: inner.span() })
    }

    const fn span(&self) -> ValueInterval {
        ValueInterval { finished_first: *self.finished_first, started_last: *self.started_last }
    }
}
