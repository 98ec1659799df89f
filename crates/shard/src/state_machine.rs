//! What committed entries are applied to.

use bytes::Bytes;
use palisade_clock::{Hlc, Timestamp};
use palisade_control::{Change, RangeDescriptor, RangeMap};
use palisade_storage::Store;
use palisade_txn::{CommitCommand, OutcomeTable, Verdict};
use palisade_wire::{Outcome, PutCommand, Rejection};

/// How long a version outlives the one that replaced it.
const RETENTION_US: u64 = 1_000_000;

/// The state of a range.
#[derive(Debug)]
pub(crate) enum StateMachine {
    /// Keys and values, and what became of the transactions that wrote them.
    Keys { store: Store, outcomes: OutcomeTable },
    /// The range map: the control plane's own range.
    Control(RangeMap),
}

impl StateMachine {
    pub(crate) fn keys() -> Self {
        Self::Keys { store: Store::new(), outcomes: OutcomeTable::new() }
    }

    /// Applies a committed payload; tells what to answer whoever proposed it, and which range
    /// changed its replicas. Versions that a read at `protected_ts` sees are kept.
    pub(crate) fn apply(
        &mut self,
        payload: Bytes,
        hlc: &mut Hlc,
        protected_ts: Timestamp,
    ) -> (Outcome, Option<RangeDescriptor>) {
        match self {
            Self::Keys { store, outcomes } => {
                (apply_put(store, outcomes, payload, hlc, protected_ts), None)
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

    /// Ranges that the control plane has changed since the cluster's first map.
    pub(crate) fn changed_ranges(&self) -> Vec<RangeDescriptor> {
        match self {
            Self::Keys { .. } => Vec::new(),
            Self::Control(map) => map.changed().cloned().collect(),
        }
    }

    /// What is known already of a write that is about to be proposed.
    pub(crate) fn look_up(&self, put: &PutCommand, now_ts: Timestamp) -> Verdict {
        match self {
            Self::Keys { outcomes, .. } => {
                outcomes.look_up(put.txn, CommitCommand::fingerprint(put), now_ts)
            }
            Self::Control(_) => Verdict::New,
        }
    }

    /// The newest value of a key, or the one before it if `stale`.
    pub(crate) fn get(&self, key: &[u8], stale: bool) -> Outcome {
        let Self::Keys { store, .. } = self else {
            return Outcome::Rejected(Rejection::WrongRange);
        };
        let newest = store.get(key, Timestamp::MAX);
        let found = match newest {
            Some((ts, _)) if stale => {
                let before = Timestamp::from_bits(ts.to_bits() - 1);
                store.get(key, before).or(newest)
            }
            newest => newest,
        };
        Outcome::Value(found.map(|(ts, value)| (ts, value.clone())))
    }
}

/// The outcome of a verdict that forbids to run a write.
pub(crate) fn settled(verdict: Verdict) -> Option<Outcome> {
    match verdict {
        Verdict::New => None,
        Verdict::Committed(commit_ts) => Some(Outcome::Committed { commit_ts, waited_us: 0 }),
        Verdict::Expired => Some(Outcome::Rejected(Rejection::Expired)),
        Verdict::Reused => Some(Outcome::Rejected(Rejection::IdReused)),
        Verdict::Full => Some(Outcome::Rejected(Rejection::TooManySessions)),
    }
}

fn apply_put(
    store: &mut Store,
    outcomes: &mut OutcomeTable,
    payload: Bytes,
    hlc: &mut Hlc,
    protected_ts: Timestamp,
) -> Outcome {
    let command = CommitCommand::from_payload(payload).expect("only whole commands are proposed");
    let CommitCommand { proposed_ts, put } = command;
    // Whoever ordered this may not have known the range's last timestamp yet.
    let commit_ts = proposed_ts.max(store.last_ts().next());
    let fingerprint = CommitCommand::fingerprint(&put);
    if let Some(outcome) = settled(outcomes.look_up(put.txn, fingerprint, commit_ts)) {
        return outcome;
    }
    // What is committed was accepted by a majority's clocks, or by the whole chain's.
    hlc.recover(commit_ts);
    outcomes.record(put.txn, put.settled_below, fingerprint, commit_ts);
    let keep_from_ts = commit_ts.saturating_sub_us(RETENTION_US).min(protected_ts);
    store.put(put.key, commit_ts, put.value, keep_from_ts);
    Outcome::Committed { commit_ts, waited_us: 0 }
}
