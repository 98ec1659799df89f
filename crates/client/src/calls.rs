//! The calls that a client makes of a cluster, as the router receives them.

use bytes::Bytes;
use palisade_wire::{
    Commit, LockClaim, Locking, MAX_PAGE_ROWS, PeerAddress, ReadKind, Rejection, TxnId, check_key,
};

/// Bytes of a request beside its keys and values, about.
const OVERHEAD_BYTES: usize = 64;

/// Identifies a call. The driver chooses it; it is unique among the calls that have not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A call of a client. The sizes of its keys and values must have been checked.
#[derive(Clone, Debug)]
pub enum Call {
    /// Commits writes in one range.
    Commit {
        /// The conditions and writes. Not empty, unless `locks` is set.
        commit: Commit,
        /// The locks that the commit relies on, if it ends a transaction that holds any.
        locks: Option<Locks>,
    },
    /// Reads one key.
    Get {
        /// The key.
        key: Bytes,
        /// The consistency of the read.
        mode: ReadMode,
    },
    /// Reads one page of a scan.
    Scan {
        /// The span that is still to be read.
        span: ScanSpan,
        /// The consistency of the read.
        mode: ReadMode,
    },
    /// Ends a transaction without a commit, and releases its locks.
    Rollback(Locks),
    /// Returns the topology that the router knows. Sends nothing.
    Topology,
    /// Fetches the status of one shard.
    Status(PeerAddress),
    /// Changes the range map. The control plane defines the encoding.
    Control(Bytes),
}

impl Call {
    /// Returns about how many bytes the request of the call takes.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = match self {
            Self::Commit { commit, .. } => commit.bytes(),
            Self::Get { key, .. } => key.len(),
            Self::Scan { span, .. } => span.begin.len() + span.end.as_ref().map_or(0, Bytes::len),
            Self::Control(change) => change.len(),
            Self::Rollback(_) | Self::Topology | Self::Status(_) => 0,
        };
        bytes + OVERHEAD_BYTES
    }

    /// Returns true for calls that do not wait for others: those of transactions with locks, for
    /// which other calls wait, and those of operators.
    pub(crate) fn is_urgent(&self) -> bool {
        match self {
            Self::Commit { locks, .. } => locks.is_some(),
            Self::Get { mode, .. } | Self::Scan { mode, .. } => {
                matches!(mode, ReadMode::Locked(locks) if locks.claim.token.is_some())
            }
            Self::Rollback(_) | Self::Topology | Self::Status(_) | Self::Control(_) => true,
        }
    }

    /// Returns the transaction for which the call is a read that takes locks.
    pub(crate) fn locks_for(&self) -> Option<TxnId> {
        match self {
            Self::Get { mode, .. } | Self::Scan { mode, .. } => match mode {
                ReadMode::Locked(locks) => Some(locks.claim.owner),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns true if the call may change data or the range map.
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Control(_))
    }

    /// Makes further tries of a read at a timestamp go to the replica that sequences the writes.
    pub(crate) fn read_at_sequencer(&mut self) {
        if let Self::Get { mode, .. } | Self::Scan { mode, .. } = self
            && let ReadMode::AtTimestamp { anywhere, .. } = mode
        {
            *anywhere = false;
        }
    }
}

/// The consistency of a read, and the locks that it takes.
#[derive(Clone, Debug)]
pub enum ReadMode {
    /// The latest value, strictly serializable over all keys.
    Latest,
    /// The latest value, linearizable for its key alone.
    LatestOfKey,
    /// The latest value, locked for a transaction.
    Locked(Locks),
    /// The state at a timestamp.
    AtTimestamp {
        /// The timestamp, or how the replica chooses it.
        kind: ReadKind,
        /// True if the first try goes to a random replica.
        anywhere: bool,
    },
}

impl ReadMode {
    pub(crate) fn kind(&self) -> ReadKind {
        match self {
            Self::Latest => ReadKind::Latest,
            Self::LatestOfKey => ReadKind::LatestOfKey,
            Self::Locked(Locks { claim, exclusive, .. }) => {
                ReadKind::Locking(Locking { claim: *claim, exclusive: *exclusive })
            }
            Self::AtTimestamp { kind, .. } => *kind,
        }
    }
}

/// The locks that a call of a transaction requests or relies on.
#[derive(Clone, Debug)]
pub struct Locks {
    /// The transaction.
    pub claim: LockClaim,
    /// True if a read takes exclusive locks.
    pub exclusive: bool,
    /// The first key of the transaction: its locks are in that key's range.
    pub anchor: Bytes,
}

/// The part of a scan that is still to be read.
#[derive(Clone, Debug)]
pub struct ScanSpan {
    /// The inclusive lower bound.
    pub begin: Bytes,
    /// The exclusive upper bound, or `None` for no bound.
    pub end: Option<Bytes>,
    /// True to read in descending order, from the end of the span.
    pub backward: bool,
    /// Maximum number of rows of a page.
    pub max_rows: u32,
}

impl ScanSpan {
    /// Returns a forward span from `begin` to `end`, with pages of the largest size.
    pub fn new(begin: Bytes, end: Option<Bytes>) -> Self {
        Self { begin, end, backward: false, max_rows: MAX_PAGE_ROWS }
    }

    /// Returns a forward span of the keys that begin with `prefix`.
    pub(crate) fn of_prefix(prefix: Bytes) -> Self {
        let end = after_prefix(&prefix);
        Self::new(prefix, end)
    }

    /// Checks the bounds of a caller, because a request with longer ones could exceed the limit of
    /// a frame. An empty bound is allowed. The resume key of a page may have one byte more than a
    /// key, so spans that continue at one are not checked.
    pub(crate) fn check(&self) -> Result<(), Rejection> {
        let bounds = [Some(&self.begin), self.end.as_ref()];
        let mut bounds = bounds.into_iter().flatten().filter(|bound| !bound.is_empty());
        bounds.try_for_each(|bound| check_key(bound))
    }

    /// Returns true if the span can hold no key.
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| self.begin >= *end)
    }

    /// Splits the span at the key where a page ended: the part that the page covers, and the rest.
    pub(crate) fn split(self, resume: Bytes) -> (Self, Self) {
        let before = Self { end: Some(resume.clone()), ..self.clone() };
        let after = Self { begin: resume, ..self };
        if after.backward { (after, before) } else { (before, after) }
    }
}

/// Returns the first key above all keys that begin with `prefix`, or `None` if there is none.
fn after_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after.into())
}

#[cfg(test)]
mod tests {
    use palisade_wire::MAX_KEY_BYTES;

    use super::*;

    #[test]
    fn prefix_successor_is_first_key_past_prefix() {
        let after = |prefix: &[u8]| after_prefix(prefix).map(|after| after.to_vec());
        assert_eq!(after(b"a"), Some(b"b".to_vec()));
        assert_eq!(after(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after(b"a\xfe"), Some(b"a\xff".to_vec()));
        assert_eq!(after(b"\xff"), None);
        assert_eq!(after(b""), None);
    }

    #[test]
    fn scan_bound_over_max_key_size_is_rejected() {
        let key = |bytes| Bytes::from(vec![b'k'; bytes]);
        let check = |begin, end| ScanSpan::new(begin, end).check();
        let refused = Err(Rejection::KeySize { bytes: MAX_KEY_BYTES as u32 + 1 });
        assert_eq!(check(key(0), None), Ok(()));
        assert_eq!(check(key(0), Some(key(0))), Ok(()));
        assert_eq!(check(key(MAX_KEY_BYTES), Some(key(MAX_KEY_BYTES))), Ok(()));
        assert_eq!(check(key(MAX_KEY_BYTES + 1), None), refused);
        assert_eq!(check(key(0), Some(key(MAX_KEY_BYTES + 1))), refused);
    }
}
