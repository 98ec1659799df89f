//! The state of a range, to which committed entries are applied.

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_control::{Change, RangeDescriptor, RangeMap};
use palisade_replication::Planted;
use palisade_storage::{LiveData, PageEnd, Store, Version};
use palisade_txn::{Attempt, CommitCommand, OutcomeTable, Settled, Verdict};
use palisade_wire::{
    Basis, Commit, Condition, Expected, MAX_PAGE_BYTES, MAX_PAGE_ROWS, Outcome, Page, Rejection,
    Row, ScanRequest, Write,
};

use crate::{TestFault, work::Work};

/// Keys that one page of a scan examines at most, including keys without a value.
const MAX_PAGE_KEYS: usize = 4096;

/// Bytes that a key and its value take in a checkpoint beside their own: a tag, a timestamp and two
/// lengths.
const KEY_OVERHEAD_BYTES: u64 = 17;

/// Bytes that a range takes in a checkpoint of the range map, at most about.
const RANGE_BYTES: u64 = 256;

/// Writing a key takes about as long as reading this many.
const WRITE_KEYS: usize = 4;

/// Garbage-collection steps of one tick, at most. Each removes one version or tombstone.
const COLLECT_WRITES: usize = 1024;

/// The state of a range.
#[derive(Debug)]
pub(crate) enum StateMachine {
    /// Keys and values, and the outcomes of transactions.
    Keys { store: Box<Store>, outcomes: OutcomeTable },
    /// The range map: the state of the control plane's own range.
    Control(RangeMap),
}

impl StateMachine {
    pub(crate) fn keys() -> Self {
        Self::Keys { store: Box::default(), outcomes: OutcomeTable::new() }
    }

    /// Applies a committed payload. Returns the outcome for the proposer, and the range whose
    /// replicas changed, if any. Versions that a read at `oldest_ts` or later sees are kept.
    pub(crate) fn apply(
        &mut self,
        payload: Bytes,
        oldest_ts: Timestamp,
        planted: Planted<TestFault>,
        work: &mut Work,
    ) -> (Outcome, Option<RangeDescriptor>) {
        match self {
            Self::Keys { store, outcomes } => {
                let payload_bytes = payload.len();
                let command = CommitCommand::from_payload(payload);
                let mut command = command.expect("only whole commands are proposed");
                if planted.is(TestFault::IgnoreConditions) {
                    command.request.commit.conditions.clear();
                }
                if planted.is(TestFault::RunExpired) {
                    command.request.expires_ts =
                        command.request.expires_ts.max(command.proposed_ts);
                }
                let Commit { conditions, writes } = &command.request.commit;
                work.keys(conditions.len() + WRITE_KEYS * writes.len(), 0);
                for Write { value, .. } in &mut command.request.commit.writes {
                    *value = value.take().map(|value| kept(value, payload_bytes));
                }
                (apply_commit(store, outcomes, command, oldest_ts), None)
            }
            Self::Control(map) => {
                let change =
                    Change::from_bytes(&payload).expect("only checked changes are proposed");
                match map.apply(&change) {
                    Ok(descriptor) => (Outcome::ControlDone, Some(descriptor.clone())),
                    Err(_) => (Outcome::Rejected(Rejection::InvalidChange), None),
                }
            }
        }
    }

    /// Returns about how many bytes a checkpoint of the state takes.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        match self {
            Self::Keys { store, outcomes } => {
                let LiveData { keys, bytes } = store.live();
                bytes + keys * KEY_OVERHEAD_BYTES + outcomes.pieces_bytes()
            }
            Self::Control(map) => map.ranges().len() as u64 * RANGE_BYTES,
        }
    }

    /// Returns the ranges that have changed since the cluster's first map.
    pub(crate) fn changed_ranges(&self) -> Vec<RangeDescriptor> {
        match self {
            Self::Keys { .. } => Vec::new(),
            Self::Control(map) => map.changed().cloned().collect(),
        }
    }

    /// Returns what the outcome table knows of a commit that is about to be proposed. Looks it up
    /// at the range's last timestamp if that is above `now_ts`: outcomes up to it may be forgotten.
    pub(crate) fn look_up(&self, attempt: &Attempt, now_ts: Timestamp) -> Verdict {
        match self {
            Self::Keys { store, outcomes } => {
                match outcomes.look_up(attempt, now_ts.max(store.last_ts())) {
                    // Applying the commit makes room first: it forgets expired outcomes.
                    Verdict::Full if outcomes.expires(now_ts) => Verdict::New,
                    verdict => verdict,
                }
            }
            Self::Control(_) => Verdict::New,
        }
    }

    /// Returns the timestamp of the last applied command, even if the command changed nothing.
    pub(crate) fn last_ts(&self) -> Timestamp {
        match self {
            Self::Keys { store, .. } => store.last_ts(),
            Self::Control(_) => Timestamp::ZERO,
        }
    }

    /// Returns the value of a key at a timestamp, or `Collected` if that is below the horizon.
    pub(crate) fn get_as_of(&self, key: &[u8], at_ts: Timestamp, work: &mut Work) -> Outcome {
        let Self::Keys { store, .. } = self else {
            return Outcome::Rejected(Rejection::WrongRange);
        };
        let Ok(found) = store.get(key, at_ts) else {
            return Outcome::Rejected(Rejection::Collected);
        };
        let (version_ts, value) = match found {
            Some(Version { ts, value }) => (ts, value.cloned()),
            None => (Timestamp::ZERO, None),
        };
        work.keys(1, value.as_ref().map_or(0, Bytes::len));
        Outcome::Value { basis: Basis::AsOf(at_ts), version_ts, value }
    }

    /// Returns the newest value of a key, or the one before it if `stale` (an injected fault).
    pub(crate) fn get(&self, key: &[u8], stale: bool, work: &mut Work) -> Outcome {
        let Self::Keys { store, .. } = self else {
            return Outcome::Rejected(Rejection::WrongRange);
        };
        let mut found = store.newest(key);
        if stale {
            let before = Timestamp::from_bits(found.ts.to_bits().saturating_sub(1));
            found = store.get(key, before).ok().flatten().unwrap_or(found);
        }
        let (version_ts, value) = (found.ts, found.value.cloned());
        work.keys(1, value.as_ref().map_or(0, Bytes::len));
        Outcome::Value { basis: Basis::Latest, version_ts, value }
    }

    /// Returns a page of a span within the range, from the latest state or as of `as_of`.
    pub(crate) fn scan(
        &self,
        scan: &ScanRequest,
        as_of: Option<Timestamp>,
        descriptor: &RangeDescriptor,
        work: &mut Work,
    ) -> Outcome {
        let Self::Keys { store, .. } = self else {
            return Outcome::Rejected(Rejection::WrongRange);
        };
        let begin = (&scan.begin[..]).max(&descriptor.start[..]);
        let ends = [scan.end.as_deref(), descriptor.end.as_deref()];
        let end = ends.into_iter().flatten().min();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let max_rows = scan.max_rows.clamp(1, MAX_PAGE_ROWS) as usize;
        let at_ts = as_of.unwrap_or(Timestamp::MAX);
        let take = |key: &Bytes, version_ts, value: &Bytes| {
            let has_room = rows.len() < max_rows && bytes < MAX_PAGE_BYTES;
            if has_room {
                bytes += key.len() + value.len();
                rows.push(Row { key: key.clone(), version_ts, value: value.clone() });
            }
            has_room
        };
        let page = store.page((begin, end), at_ts, scan.backward, MAX_PAGE_KEYS, take);
        let Ok(PageEnd { next, keys }) = page else {
            return Outcome::Rejected(Rejection::Collected);
        };
        work.keys(keys, bytes);
        let resume = match next {
            // The resume key is the next span's exclusive end, so it must be just above `key`.
            Some(key) if scan.backward => Some([key, &b"\0"[..]].concat().into()),
            Some(key) => Some(key.clone()),
            None if scan.backward => {
                let more = *descriptor.start > *scan.begin;
                more.then(|| Bytes::copy_from_slice(&descriptor.start))
            }
            None => {
                let of_range = descriptor.end.as_deref();
                let of_range = of_range.filter(|of| scan.end.as_ref().is_none_or(|end| *of < end));
                of_range.map(Bytes::copy_from_slice)
            }
        };
        let as_of_ts = as_of.unwrap_or(store.last_ts());
        let basis = as_of.map_or(Basis::Latest, Basis::AsOf);
        Outcome::Page { basis, page: Page { as_of_ts, rows, resume } }
    }

    /// Drops versions that no read at `oldest_ts` or later sees, in up to [`COLLECT_WRITES`] steps
    /// while work is left.
    pub(crate) fn collect(&mut self, oldest_ts: Timestamp, work: &mut Work) {
        if let Self::Keys { store, .. } = self
            && work.is_left()
        {
            let before = store.garbage();
            store.collect(oldest_ts, COLLECT_WRITES);
            work.keys(before - store.garbage(), 0);
        }
    }

    /// Drops up to `max_keys` keys of a state that is no longer needed. Returns false once all are
    /// dropped.
    pub(crate) fn drop_keys(&mut self, max_keys: usize) -> bool {
        match self {
            Self::Keys { store, .. } => store.drop_keys(max_keys),
            Self::Control(_) => false,
        }
    }

    /// Returns true if there is garbage, now or once its timestamp is old enough.
    pub(crate) fn has_garbage(&self) -> bool {
        match self {
            Self::Keys { store, .. } => store.garbage() > 0,
            Self::Control(_) => false,
        }
    }
}

/// Returns the outcome of a commit that must not run, or `None` if it may.
pub(crate) fn settled(verdict: Verdict) -> Option<Outcome> {
    match verdict {
        Verdict::New => None,
        Verdict::Settled(Settled::Committed(commit_ts)) => {
            Some(Outcome::Committed { commit_ts, waited_us: 0 })
        }
        Verdict::Settled(Settled::Failed { condition, as_of_ts }) => {
            Some(Outcome::ConditionFailed { condition, as_of_ts })
        }
        Verdict::Expired => Some(Outcome::Rejected(Rejection::Expired)),
        Verdict::Reused => Some(Outcome::Rejected(Rejection::IdReused)),
        Verdict::Full => Some(Outcome::Rejected(Rejection::TooManyOutcomes)),
    }
}

fn apply_commit(
    store: &mut Store,
    outcomes: &mut OutcomeTable,
    command: CommitCommand,
    oldest_ts: Timestamp,
) -> Outcome {
    let CommitCommand { proposed_ts, request } = command;
    // The proposer may not have applied the range's last commit when it chose its timestamp.
    let as_of_ts = store.last_ts();
    let commit_ts = proposed_ts.max(as_of_ts.next());
    // Advance even if the commit is refused: outcomes forgotten up to here must stay expired.
    store.begin(commit_ts);
    outcomes.forget_expired(commit_ts);
    let attempt = Attempt::new(&request);
    let Commit { conditions, writes } = request.commit;
    if let Some(outcome) = settled(outcomes.look_up(&attempt, commit_ts)) {
        return outcome;
    }
    if let Some(at) = conditions.iter().position(|condition| !holds(store, condition)) {
        let condition = u16::try_from(at).expect("conditions are counted by a u16");
        let failed = Settled::Failed { condition, as_of_ts };
        outcomes.record(&attempt, failed);
        return Outcome::ConditionFailed { condition, as_of_ts };
    }
    outcomes.record(&attempt, Settled::Committed(commit_ts));
    // A write leaves up to two pieces of garbage: a replaced version and a tombstone. Collect two
    // more than that, so that a backlog shrinks.
    let collect = 2 * writes.len() + 2;
    for Write { key, value } in writes {
        store.write(&key, value);
    }
    store.collect(oldest_ts, collect);
    Outcome::Committed { commit_ts, waited_us: 0 }
}

/// Returns a value for the store, which may keep it for long. A value shares the memory of the
/// payload in which it arrived, as the log does until a checkpoint. If it is the smaller part of
/// that, it is copied, so that it does not keep the whole payload in memory.
fn kept(value: Bytes, payload_bytes: usize) -> Bytes {
    let shares = 2 * value.len() >= payload_bytes;
    if shares { value } else { Bytes::copy_from_slice(&value) }
}

fn holds(store: &Store, condition: &Condition) -> bool {
    let found = store.newest(&condition.key);
    match &condition.expected {
        Expected::Absent => found.value.is_none(),
        Expected::Value(value) => found.value == Some(value),
        Expected::Version(ts) => found.value.is_some() && found.ts == *ts,
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{CommitRequest, SessionId, TxnId};

    use super::*;
    use crate::work::TURN_WORK;

    #[test]
    fn scenario_65_small_value_does_not_keep_its_commit() {
        let mut state = StateMachine::keys();
        let commit = Commit::new().put("small", "1").put("large", vec![2; 1 << 20]);
        let request = CommitRequest {
            txn: TxnId { session: SessionId(1), sequence: 1 },
            settled_below: 0,
            expires_ts: Timestamp::MAX,
            commit,
        };
        let proposed_ts = Timestamp::from_physical_us(1);
        let payload = CommitCommand { proposed_ts, request }.to_payload();
        let mut work = Work::new(TURN_WORK);
        state.apply(payload.clone(), Timestamp::ZERO, Planted::default(), &mut work);
        let mut shares = |key: &str| {
            let Outcome::Value { value: Some(value), .. } =
                state.get(key.as_bytes(), false, &mut work)
            else {
                panic!("{key} has a value")
            };
            payload.as_ptr_range().contains(&value.as_ptr())
        };
        assert!(!shares("small") && shares("large"));
    }
}
