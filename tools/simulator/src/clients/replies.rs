//! How callers handle the results of their calls: they check them, record them, and choose the next
//! step.

use palisade_client::ClientError;
use palisade_clock::Timestamp;
use palisade_history::{Action, Completion, timestamps::Order};
use palisade_wire::{Outcome, Page, Rejection};

use super::{Clients, PairAction, Task, unique};
use crate::{
    Violation,
    clock::timestamp,
    invariants::{ExternalConsistency, Pairs, Transactions, named},
};

/// The longest pause before an aborted transaction is tried again.
const BACKOFF_US: u64 = 20_000;

impl Clients {
    /// Handles the end of a caller's call.
    pub(super) fn completed(
        &mut self,
        at: usize,
        now_us: u64,
        result: Result<Outcome, ClientError>,
    ) -> Result<(), Violation> {
        // After the end of the run, a caller has no operation.
        let Some(current) = &self.callers[at].current else { return Ok(()) };
        let task = current.task;
        match (result, task) {
            (Ok(outcome), _) => self.answered(at, now_us, outcome),
            (Err(ClientError::Aborted), Task::Transaction { .. }) => {
                named(Transactions::NAME, self.aborted(at, now_us))
            }
            // The read was late or at an old timestamp, and its versions were collected.
            (Err(ClientError::Rejected(Rejection::Collected)), Task::Snapshot { .. }) => {
                self.end(at, now_us);
                Ok(())
            }
            (
                Err(
                    error @ (ClientError::Deadline { .. }
                    | ClientError::Rejected(Rejection::Unknown | Rejection::Expired)),
                ),
                _,
            ) => {
                if error.is_outcome_unknown() {
                    self.give_up(at, now_us);
                    Ok(())
                } else {
                    self.failed(at, now_us)
                }
            }
            (Err(error), task) => Err(Violation {
                invariant: "a client returns only the errors of its call",
                detail: format!("{task:?} failed: {error}"),
            }),
        }
    }

    /// Checks and records the outcome of a call.
    fn answered(&mut self, at: usize, now_us: u64, outcome: Outcome) -> Result<(), Violation> {
        let caller = &mut self.callers[at];
        let current = caller.current.as_ref().expect("it has an operation");
        let checked = self.timestamps.check(&outcome, current.known_ts);
        named(ExternalConsistency::NAME, checked)?;
        let task = current.task;
        caller.seen_ts = caller.seen_ts.max(outcome.visible_ts().unwrap_or_default());
        self.record_register(at, now_us, &outcome);
        match (outcome, task) {
            (Outcome::Committed { .. }, Task::Register { value: Some(value), .. }) => {
                self.finish(at, now_us, Action::Write(value), Completion::Ok);
                Ok(())
            }
            (Outcome::Value { value, .. }, Task::Register { value: None, .. }) => {
                self.finish(at, now_us, Action::Read(value.as_ref().map(unique)), Completion::Ok);
                Ok(())
            }
            (outcome, Task::Pair { place, known_ts, action }) => {
                let checked = check_pair(&mut self.pairs[place], known_ts, action, &outcome);
                named(Pairs::NAME, checked)?;
                self.record_pair(at, now_us, &outcome);
                self.end(at, now_us);
                Ok(())
            }
            (outcome, Task::Snapshot { .. }) => {
                named(Transactions::NAME, self.snapshot_read(at, now_us, &outcome))
            }
            (outcome, Task::Transaction { .. }) => {
                named(Transactions::NAME, self.step_done(at, now_us, &outcome))
            }
            (outcome, task) => unreachable!("{outcome:?} does not answer {task:?}"),
        }
    }

    /// Records that an operation has certainly had no effect, and never will have one.
    fn failed(&mut self, at: usize, now_us: u64) -> Result<(), Violation> {
        let current = self.callers[at].current.as_ref().expect("it has an operation");
        let (task, is_committing) = (current.task, current.is_committing);
        if is_committing {
            self.record_without_effect(at, now_us, Order::Failed);
        }
        match task {
            Task::Register { value: Some(value), .. } => {
                self.finish(at, now_us, Action::Write(value), Completion::Fail);
                return Ok(());
            }
            Task::Pair { place, action: PairAction::Write { value, .. }, .. } => {
                named(Pairs::NAME, self.pairs[place].refused(value))?;
            }
            Task::Transaction { place } if is_committing => {
                let transaction = self.callers[at].transaction.as_ref();
                let writes = &transaction.expect("it is the operation").writes;
                named(Transactions::NAME, self.transactions[place].aborted(writes))?;
            }
            _ => {}
        }
        self.drop_operation(at, now_us);
        Ok(())
    }

    /// Checks the answer to a step of a transaction. The next step follows at once, or after a
    /// think time.
    fn step_done(&mut self, at: usize, now_us: u64, outcome: &Outcome) -> Result<(), String> {
        let caller = &mut self.callers[at];
        let transaction = caller.transaction.as_mut().expect("its step was answered");
        let place = transaction.place;
        let invariant = &mut self.transactions[place];
        let done = transaction.answered(outcome, &self.ranges[place].start, unique)?;
        if let Outcome::Committed { commit_ts, .. } = outcome {
            invariant.committed(*commit_ts, &transaction.seen, &transaction.writes)?;
        } else {
            invariant.read(&transaction.seen)?;
        }
        if let Outcome::Committed { commit_ts, .. } = outcome {
            self.record_transaction(at, now_us, *commit_ts);
        } else if done {
            self.record_locked_reads(at, now_us);
        }
        if done {
            self.end(at, now_us);
            return Ok(());
        }
        let thinks = self.random.u8(0..4) == 0;
        let pause_us = if thinks { self.random.u64(0..=self.think_us) } else { 0 };
        self.callers[at].due_us = now_us + pause_us;
        Ok(())
    }

    /// Checks the answer to one of the reads at a timestamp, and prepares the next read.
    fn snapshot_read(&mut self, at: usize, now_us: u64, outcome: &Outcome) -> Result<(), String> {
        let caller = &mut self.callers[at];
        let current = caller.current.as_mut().expect("it has an operation");
        let Task::Snapshot { place } = &mut current.task else { return Ok(()) };
        let snapshot = caller.snapshot.as_mut().expect("it is the operation");
        let (start, began_ts) = (&self.ranges[*place].start, timestamp(current.start_us));
        let (at_ts, seen) =
            snapshot.answered(outcome, start, current.known_ts, began_ts, unique)?;
        self.transactions[*place].snapshot(at_ts, &seen)?;
        self.read_at = Some(at_ts);
        let bits = at_ts.to_bits();
        let order = if snapshot.is_fresh() { Order::Fresh(bits) } else { Order::AsOf(bits) };
        let (read_place, next) = (*place, snapshot.place());
        self.record_snapshot(at, now_us, order, read_place, &seen);
        match next {
            None => self.end(at, now_us),
            Some(next) => {
                let caller = &mut self.callers[at];
                let current = caller.current.as_mut().expect("it has an operation");
                current.task = Task::Snapshot { place: next };
                caller.due_us = now_us;
            }
        }
        Ok(())
    }

    /// Handles a transaction that has certainly failed: records that, and tries it again.
    fn aborted(&mut self, at: usize, now_us: u64) -> Result<(), String> {
        let current = self.callers[at].current.as_ref().expect("it has an operation");
        if current.is_committing {
            self.record_without_effect(at, now_us, Order::Failed);
        }
        self.record_locked_reads(at, now_us);
        let caller = &mut self.callers[at];
        let owner = caller.next_owner();
        let current = caller.current.as_mut().expect("it has an operation");
        let transaction = caller.transaction.as_mut().expect("it is the operation");
        if current.is_committing {
            self.transactions[transaction.place].aborted(&transaction.writes)?;
        }
        transaction.again(owner, &mut self.next_value);
        current.is_committing = false;
        current.try_us = now_us;
        current.known_ts = self.timestamps.known_ts();
        caller.due_us = now_us + self.random.u64(0..BACKOFF_US);
        Ok(())
    }
}

fn check_pair(
    pair: &mut Pairs,
    known_ts: Timestamp,
    action: PairAction,
    outcome: &Outcome,
) -> Result<(), String> {
    match (action, outcome) {
        (PairAction::Read { .. }, Outcome::Value { version_ts, value, .. }) => {
            pair.read(*version_ts, value.as_ref().map(unique), known_ts)
        }
        (
            PairAction::Scan { backward },
            Outcome::Page { page: Page { as_of_ts, rows, .. }, .. },
        ) => match &rows[..] {
            [] => pair.read(*as_of_ts, None, known_ts),
            [one, other]
                if one.version_ts == other.version_ts
                    && one.value == other.value
                    && (one.key > other.key) == backward =>
            {
                pair.read(one.version_ts, Some(unique(&one.value)), known_ts)
            }
            _ => Err(format!("a scan saw {rows:?}, backward: {backward}")),
        },
        (PairAction::Write { value, expected }, Outcome::Committed { commit_ts, .. }) => {
            pair.committed(*commit_ts, value, expected)
        }
        (PairAction::Write { value, expected: Some(_) }, Outcome::ConditionFailed { .. }) => {
            pair.refused(value)
        }
        _ => Err(format!("{outcome:?} answers {action:?}")),
    }
}
