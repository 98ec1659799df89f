//! How clients handle answers: they check them, record them, and choose the next step.

use palisade_clock::Timestamp;
use palisade_history::{Action, Completion, timestamps::Order};
use palisade_shard::ConnectionId;
use palisade_wire::{Outcome, Page, PeerAddress, Rejection, Response};

use super::{BACKOFF_US, COMMITTED, ClientSend, Clients, PairAction, Task, unique};
use crate::{
    Violation,
    clock::timestamp,
    invariants::{ExternalConsistency, Pairs, Transactions, named},
};

impl Clients {
    pub(crate) fn reply(
        &mut self,
        now_us: u64,
        from: PeerAddress,
        connection: ConnectionId,
        response: Response,
        out: &mut Vec<ClientSend>,
    ) -> Result<(), Violation> {
        let at = usize::try_from(connection.0).expect("clients are few");
        let Response { request_id, outcome } = response;
        if request_id == COMMITTED && outcome == Outcome::Rejected(Rejection::Aborted) {
            let detail = format!("{from} calls a committed transaction aborted");
            return named(Transactions::NAME, Err(detail));
        }
        let client = &mut self.clients[at];
        let Some(current) = &client.current else { return Ok(()) };
        if request_id < current.first_request || request_id >= client.next_request {
            // It answers an earlier operation.
            return Ok(());
        }
        let checked = self.timestamps.check(&outcome, current.known_ts);
        named(ExternalConsistency::NAME, checked)?;
        let task = current.task;
        client.seen_ts = client.seen_ts.max(outcome.visible_ts().unwrap_or_default());
        let place = self.place(task);
        self.record_register(at, now_us, &outcome);
        let client = &mut self.clients[at];
        match (outcome, task) {
            (Outcome::Committed { .. }, Task::Register { value: Some(value), .. }) => {
                self.ranges[place].leader = Some(from);
                self.finish(at, now_us, Action::Write(value), Completion::Ok);
            }
            (Outcome::Value { value, .. }, Task::Register { value: None, .. }) => {
                self.ranges[place].leader = Some(from);
                self.finish(at, now_us, Action::Read(value.as_ref().map(unique)), Completion::Ok);
            }
            (
                outcome @ (Outcome::Committed { .. }
                | Outcome::ConditionFailed { .. }
                | Outcome::Page { .. }
                | Outcome::Value { .. }),
                Task::Pair { known_ts, action, .. },
            ) => {
                self.ranges[place].leader = Some(from);
                let checked = check_pair(&mut self.pairs[place], known_ts, action, &outcome);
                named(Pairs::NAME, checked)?;
                self.record_pair(at, now_us, &outcome);
                self.end(at, now_us);
            }
            // The read was late or at an old timestamp, and its versions were collected.
            (Outcome::Rejected(Rejection::Collected), Task::Snapshot { .. }) => {
                self.end(at, now_us);
            }
            (outcome @ (Outcome::Value { .. } | Outcome::Page { .. }), Task::Snapshot { .. }) => {
                let checked = self.snapshot_read(at, now_us, &outcome);
                named(Transactions::NAME, checked)?;
            }
            (Outcome::Rejected(Rejection::Aborted), Task::Transaction { .. }) => {
                let checked = self.aborted(at, now_us);
                named(Transactions::NAME, checked)?;
            }
            (
                outcome @ (Outcome::Value { .. }
                | Outcome::Page { .. }
                | Outcome::Committed { .. }
                | Outcome::RolledBack),
                Task::Transaction { .. },
            ) => {
                self.ranges[place].leader = Some(from);
                let checked = self.step_done(at, now_us, &outcome);
                named(Transactions::NAME, checked)?;
            }
            // It is unknown if an earlier attempt took effect.
            (Outcome::Rejected(Rejection::Expired), _) => self.give_up(at, now_us),
            (Outcome::Rejected(Rejection::NotServing { hint: Some(hint) }), _) => {
                self.ranges[place].leader = Some(hint);
                if self.random.bool() {
                    self.attempt(at, now_us, out);
                } else {
                    client.due_us = now_us + BACKOFF_US;
                }
            }
            (Outcome::Rejected(_), _) => {
                client.due_us = now_us + self.random.u64(BACKOFF_US..2 * BACKOFF_US);
            }
            (outcome, _) => unreachable!("{outcome:?} does not answer {task:?}"),
        }
        Ok(())
    }

    /// Checks the answer to a step of a transaction. The next step follows at once, or after a
    /// think time.
    fn step_done(&mut self, at: usize, now_us: u64, outcome: &Outcome) -> Result<(), String> {
        let client = &mut self.clients[at];
        let transaction = client.transaction.as_mut().expect("its step was answered");
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
        let client = &mut self.clients[at];
        let current = client.current.as_mut().expect("it has an operation");
        current.first_request = client.next_request;
        let thinks = self.random.u8(0..4) == 0;
        client.due_us = now_us + if thinks { self.random.u64(0..=self.think_us) } else { 0 };
        Ok(())
    }

    /// Checks the answer to one of the reads at a timestamp, and prepares the next read.
    fn snapshot_read(&mut self, at: usize, now_us: u64, outcome: &Outcome) -> Result<(), String> {
        let client = &mut self.clients[at];
        let current = client.current.as_mut().expect("it has an operation");
        let Task::Snapshot { place } = &mut current.task else { return Ok(()) };
        let snapshot = client.snapshot.as_mut().expect("it is the operation");
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
                let client = &mut self.clients[at];
                let current = client.current.as_mut().expect("it has an operation");
                current.task = Task::Snapshot { place: next };
                current.first_request = client.next_request;
                client.due_us = now_us;
            }
        }
        Ok(())
    }

    /// Handles a transaction that has certainly failed: records that, and tries it again.
    fn aborted(&mut self, at: usize, now_us: u64) -> Result<(), String> {
        let may_have_run = self.clients[at].current.as_ref().is_some_and(|c| c.may_have_run);
        if may_have_run {
            self.record_without_effect(at, now_us, Order::Failed);
        }
        self.record_locked_reads(at, now_us);
        let expires_ts = self.expires_ts(now_us);
        let client = &mut self.clients[at];
        let owner = client.next_owner();
        let current = client.current.as_mut().expect("it has an operation");
        let transaction = client.transaction.as_mut().expect("it is the operation");
        if current.may_have_run {
            self.transactions[transaction.place].aborted(&transaction.writes)?;
        }
        transaction.again(owner, &mut self.next_value);
        client.sequence += 1;
        current.may_have_run = false;
        current.try_us = now_us;
        current.expires_ts = expires_ts;
        current.known_ts = self.timestamps.known_ts();
        current.first_request = client.next_request;
        client.due_us = now_us + self.random.u64(0..BACKOFF_US);
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
