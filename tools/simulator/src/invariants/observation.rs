//! What the invariants see of a replica: plain data, so that tests can construct it.

use std::collections::{BTreeMap, VecDeque};

use palisade_shard::ReplicaView;
use palisade_wire::{Mode, PeerAddress, RangeId, Role};

/// An entry as the invariants compare it: its term, and a checksum over it and all entries before
/// it, if all of those were seen.
pub(crate) type Mark = (u64, Option<u32>);

/// The committed entries of a range by index, each with the term in which its commit was first
/// seen.
pub(crate) type Committed = BTreeMap<u64, (Mark, u64)>;

/// A replica's log, entry by entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Index of the last entry before the log, with its checksum in `base_sum`.
    base: u64,
    base_sum: Option<u32>,
    marks: VecDeque<Mark>,
}

/// The state of a replica after a turn that changed it.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) at: PeerAddress,
    pub(crate) range: RangeId,
    pub(crate) mode: Mode,
    pub(crate) role: Role,
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    pub(crate) is_ready: bool,
    pub(crate) commit_index: u64,
    pub(crate) applied_index: u64,
    pub(crate) durable_index: u64,
    pub(crate) digest: u32,
    /// The sets of voters that each need a majority, or the members of the chain, as this replica
    /// knows them.
    pub(crate) electorates: Vec<Vec<PeerAddress>>,
    pub(crate) log: Log,
    /// Indexes of the first and last entry that are new in the log. Empty if the first is larger.
    pub(crate) fresh: (u64, u64),
    /// True if the replica runs.
    pub(crate) is_running: bool,
}

impl Log {
    /// Returns an empty log that begins at index 1.
    pub(crate) fn new() -> Self {
        Self { base_sum: Some(0), ..Self::default() }
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    pub(crate) fn last(&self) -> u64 {
        self.base + self.marks.len() as u64
    }

    pub(crate) fn mark(&self, index: u64) -> Option<Mark> {
        let slot = usize::try_from(index.checked_sub(self.base + 1)?).ok()?;
        self.marks.get(slot).copied()
    }

    /// Removes the entries above an index.
    pub(crate) fn truncate(&mut self, last: u64) {
        let keep = usize::try_from(last.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.marks.truncate(keep);
    }

    #[cfg(test)]
    pub(crate) fn of(marks: &[(u64, u32)]) -> Self {
        let marks = marks.iter().map(|(term, sum)| (*term, Some(*sum))).collect();
        Self { base: 0, base_sum: Some(0), marks }
    }

    /// Updates this log to what a replica's log holds now. Returns the first and last new index.
    pub(crate) fn refresh(&mut self, view: &ReplicaView<'_>, committed: &Committed) -> (u64, u64) {
        let (first, last) = (view.first_index(), view.last_index());
        if first > self.last() + 1 || first <= self.base {
            // A snapshot replaced the log, or a restart brought back older entries.
            *self = Self { base: first - 1, base_sum: None, marks: VecDeque::new() };
        }
        let forgotten = usize::try_from(first - 1 - self.base).expect("it is in memory");
        self.marks.drain(..forgotten);
        // Dropped entries are committed. A snapshot may have replaced the entries that were here.
        self.base = first - 1;
        self.base_sum = match committed.get(&self.base) {
            _ if self.base == 0 => Some(0),
            Some(((_, sum), _)) => *sum,
            None => None,
        };
        let term_of = |index| view.entry(index).map(|entry| entry.term);
        let mut same = self.last().min(last);
        while same > self.base && self.mark(same).map(|(term, _)| term) != term_of(same) {
            same -= 1;
        }
        self.truncate(same);
        let mut sum = self.mark(same).map_or(self.base_sum, |(_, sum)| sum);
        for index in same + 1..=last {
            let entry = view.entry(index).expect("a log has no gaps");
            sum = sum.map(|before| {
                let mut hasher = crc32fast::Hasher::new_with_initial(before);
                hasher.update(&entry.term.to_le_bytes());
                hasher.update(&entry.payload);
                hasher.finalize()
            });
            self.marks.push_back((entry.term, sum));
        }
        (same + 1, last)
    }
}

/// Returns true if two marks can belong to the same entry.
pub(crate) fn agree(one: Mark, other: Mark) -> bool {
    one.0 == other.0 && (one.1.is_none() || other.1.is_none() || one.1 == other.1)
}

#[cfg(test)]
pub(crate) fn observed(node: u16, log: Log) -> Observation {
    use palisade_wire::{NodeId, ShardId};
    let at = |node| PeerAddress { node: NodeId(node), shard: ShardId(0) };
    Observation {
        at: at(node),
        range: RangeId(1),
        mode: Mode::Raft,
        role: Role::Follower,
        term: 1,
        epoch: 0,
        is_ready: true,
        commit_index: 0,
        applied_index: 0,
        durable_index: log.last(),
        digest: 0,
        electorates: vec![(0..3).map(at).collect()],
        fresh: (1, log.last()),
        log,
        is_running: true,
    }
}
