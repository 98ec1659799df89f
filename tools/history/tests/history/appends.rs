//! The check of transactions over lists: known anomalies, and comparison with an exhaustive search.

use std::collections::BTreeMap;

use fastrand::Rng;
use palisade_history::{AppendViolation, Completion, Step, Transaction, check_appends};

fn append(key: u32, element: u64) -> Step {
    Step::Append { key, element }
}

fn read(key: u32, list: &[u64]) -> Step {
    Step::Read { key, list: list.to_vec() }
}

fn at(start_ns: u64, end_ns: u64, steps: impl Into<Vec<Step>>) -> Transaction {
    Transaction { process: 0, start_ns, end_ns, steps: steps.into(), outcome: Completion::Ok }
}

fn cycle_of(history: &[Transaction]) -> usize {
    match check_appends(history) {
        Err(AppendViolation::Cycle(cycle)) => cycle.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn serializable_history_is_accepted() {
    let history = [
        at(0, 10, [append(1, 1), append(2, 1)]),
        at(5, 15, [read(1, &[1]), append(1, 2), read(1, &[1, 2])]),
        // Both have an unknown outcome; only the first was partly read.
        Transaction { outcome: Completion::Info, ..at(6, 7, [append(2, 5), append(3, 5)]) },
        Transaction { outcome: Completion::Info, ..at(6, 7, [append(2, 6), read(1, &[9])]) },
        Transaction { outcome: Completion::Fail, ..at(0, 9, [append(1, 9)]) },
        at(20, 30, [read(2, &[1, 5]), read(1, &[1, 2])]),
        at(25, 40, [append(1, 3)]),
    ];
    assert_eq!(check_appends(&history), Ok(5));
    assert_eq!(check_appends(&[]), Ok(0));
}

#[test]
fn lost_update_is_refused() {
    let history = [
        at(0, 1, [append(1, 1)]),
        at(2, 9, [read(1, &[1]), append(1, 2)]),
        at(2, 9, [read(1, &[1]), append(1, 3)]),
        at(10, 11, [read(1, &[1, 2, 3])]),
    ];
    assert_eq!(cycle_of(&history), 2);
    // The update that appended 2 is missing from the final list.
    let mut gone = history;
    gone[3] = at(10, 11, [read(1, &[1, 3])]);
    assert!(matches!(check_appends(&gone), Err(AppendViolation::Cycle(_))));
}

#[test]
fn write_skew_is_refused() {
    let history = [
        at(0, 9, [read(1, &[]), append(2, 1)]),
        at(0, 9, [read(2, &[]), append(1, 1)]),
        at(10, 11, [read(1, &[1]), read(2, &[1])]),
    ];
    assert_eq!(cycle_of(&history), 2);
}

/// The search for a short cycle starts from a limited number of transactions. None of them may be
/// on a cycle.
#[test]
fn cycle_is_found_among_many_acyclic_transactions() {
    const BETWEEN: u64 = 100;
    let mut history: Vec<_> = (1..=BETWEEN).map(|n| at(0, 9, [append(10, n)])).collect();
    history.push(at(0, 9, [read(1, &[]), append(2, 1), append(10, 0)]));
    history.push(at(0, 9, [read(2, &[]), append(1, 1)]));
    history.push(at(0, 9, [read(3, &[]), append(4, 1), append(10, BETWEEN + 1)]));
    history.push(at(0, 9, [read(4, &[]), append(3, 1)]));
    let list: Vec<_> = (0..=BETWEEN + 1).collect();
    let skewed = [read(1, &[1]), read(2, &[1]), read(3, &[1]), read(4, &[1])];
    history.push(at(10, 11, skewed.into_iter().chain([read(10, &list)]).collect::<Vec<_>>()));
    assert_eq!(cycle_of(&history), 2);
}

#[test]
fn stale_read_is_refused_by_real_time_order() {
    let mut history = [at(0, 5, [append(1, 1)]), at(5, 9, [read(1, &[])])];
    assert_eq!(check_appends(&history), Ok(2));
    history[1].start_ns = 6;
    assert_eq!(cycle_of(&history), 2);
    let message = check_appends(&history).unwrap_err().to_string();
    assert!(message.contains("k1 is empty") && message.contains("append 1 to k1"), "{message}");
}

#[test]
fn long_fork_between_two_readers_is_refused() {
    let history = [
        at(0, 90, [append(1, 1)]),
        at(0, 90, [append(2, 1)]),
        at(0, 90, [read(1, &[1]), read(2, &[])]),
        at(0, 90, [read(1, &[]), read(2, &[1])]),
    ];
    assert_eq!(cycle_of(&history), 4);
}

#[test]
fn violations_without_cycle_are_classified() {
    let fails = |history: &[Transaction]| check_appends(history).unwrap_err();
    let reads = |list: &[u64]| at(5, 6, [read(1, list)]);
    assert!(matches!(fails(&[reads(&[7])]), AppendViolation::Unexplained { element: 7, .. }));
    let one = at(0, 1, [append(1, 1)]);
    assert!(matches!(
        fails(&[one.clone(), reads(&[1, 1])]),
        AppendViolation::Unexplained { element: 1, .. }
    ));
    let failed = Transaction { outcome: Completion::Fail, ..one.clone() };
    assert!(matches!(fails(&[failed, reads(&[1])]), AppendViolation::FailedSeen { .. }));
    let other = at(0, 1, [append(1, 2)]);
    assert!(matches!(
        fails(&[one.clone(), other, reads(&[1]), reads(&[2])]),
        AppendViolation::Diverged { .. }
    ));
    let both = at(0, 1, [append(1, 1), append(1, 2)]);
    assert!(matches!(fails(&[both, reads(&[1])]), AppendViolation::HalfSeen { .. }));
    let unseen = at(3, 4, [append(1, 2), read(1, &[1])]);
    assert!(matches!(fails(&[one.clone(), unseen]), AppendViolation::OwnUnseen(..)));
    assert!(matches!(fails(&[one.clone(), one]), AppendViolation::AppendedTwice { .. }));
}

type Lists = BTreeMap<u32, Vec<u64>>;

/// Performs a transaction on the lists. Returns true if its reads return the recorded lists.
fn perform(transaction: &Transaction, lists: &mut Lists) -> bool {
    transaction.steps.iter().all(|step| match step {
        Step::Append { key, element } => {
            lists.entry(*key).or_default().push(*element);
            true
        }
        Step::Read { key, list } => {
            transaction.outcome != Completion::Ok || lists.entry(*key).or_default() == list
        }
    })
}

/// Returns true if some order of the transactions explains every read. Tries all orders.
fn is_serializable(left: &[&Transaction], lists: &Lists) -> bool {
    let certain = |transaction: &&&Transaction| transaction.outcome == Completion::Ok;
    if !left.iter().any(|transaction| certain(&transaction)) {
        return true;
    }
    (0..left.len()).any(|next| {
        let first = left[next];
        let must_wait = left.iter().filter(certain).any(|other| other.end_ns < first.start_ns);
        let mut lists = lists.clone();
        let mut rest = left.to_vec();
        rest.remove(next);
        !must_wait && perform(first, &mut lists) && is_serializable(&rest, &lists)
    })
}

/// Generates transactions that ran one after another. A transaction may have read an earlier state,
/// and its recorded times are shifted at random.
fn almost_serial(random: &mut Rng) -> Vec<Transaction> {
    let mut states = vec![Lists::new()];
    let mut history = Vec::new();
    let mut element = 0;
    for nth in 0..random.u64(2..7) {
        let mut lists: Lists = states.last().expect("there is the first").clone();
        let stale = random.usize(states.len().saturating_sub(3)..states.len());
        let old = random.bool();
        let mut seen = if old { states[stale].clone() } else { lists.clone() };
        let mut steps = Vec::new();
        for _ in 0..random.usize(1..4) {
            let key = random.u32(0..2);
            if random.bool() {
                element += 1;
                steps.push(append(key, element));
                lists.entry(key).or_default().push(element);
                seen.entry(key).or_default().push(element);
            } else {
                steps.push(read(key, seen.entry(key).or_default()));
            }
        }
        let outcome = match random.u8(0..10) {
            0 => Completion::Fail,
            1 | 2 => Completion::Info,
            _ => Completion::Ok,
        };
        let happens = match outcome {
            Completion::Ok => true,
            Completion::Info => random.bool(),
            Completion::Fail => random.u8(0..8) == 0,
        };
        if happens {
            states.push(lists);
        }
        let start_ns = (2 * nth).saturating_sub(random.u64(0..5));
        let end_ns = 2 * nth + random.u64(0..5);
        history.push(Transaction { outcome, ..at(start_ns, end_ns.max(start_ns), steps) });
    }
    random.shuffle(&mut history);
    history
}

#[test]
fn append_check_agrees_with_exhaustive_search() {
    let mut random = Rng::with_seed(9);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..20_000 {
        let history = almost_serial(&mut random);
        let may_happen: Vec<_> =
            history.iter().filter(|transaction| transaction.outcome != Completion::Fail).collect();
        let expected = is_serializable(&may_happen, &Lists::new());
        let found = check_appends(&history);
        assert_eq!(found.is_ok(), expected, "round {round}: {found:?} of {history:#?}");
        *if expected { &mut accepted } else { &mut refused } += 1;
    }
    assert!(refused > 1_000 && accepted > 1_000, "{refused} refused, {accepted} accepted");
}

/// A long history is accepted if each transaction ran at an instant between its start and its end,
/// and refused once one read is truncated.
#[test]
fn long_history_is_refused_after_truncating_one_read() {
    let mut random = Rng::with_seed(4);
    let mut lists = Lists::new();
    let mut history = Vec::new();
    for nth in 0..20_000_u64 {
        let steps = (0..2).flat_map(|_| {
            // New lists for every hundred transactions, to bound the length of the reads.
            let key = random.u32(0..5) + 5 * u32::try_from(nth / 100).unwrap();
            let list = lists.entry(key).or_default();
            if random.bool() {
                return vec![read(key, list)];
            }
            let element = 2 * nth + u64::from(list.last() == Some(&(2 * nth)));
            list.push(element);
            vec![append(key, element)]
        });
        let steps: Vec<_> = steps.collect();
        let (before, after) = (random.u64(0..300), random.u64(0..300));
        history.push(at(10 * nth + 300 - before, 10 * nth + 300 + after, steps));
    }
    assert_eq!(check_appends(&history), Ok(20_000));
    let firsts = history[10_000..].iter_mut().map(|transaction| &mut transaction.steps[0]);
    let mut lists = firsts.filter_map(|step| match step {
        Step::Read { list, .. } => Some(list),
        Step::Append { .. } => None,
    });
    lists.find(|list| list.len() > 12).expect("some list is long").truncate(3);
    assert!(cycle_of(&history) <= 4);
}
