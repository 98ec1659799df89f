//! The fast check and the exhaustive search give the same verdict on random small histories.

use fastrand::Rng;
use palisade_history::{Action, Completion, Operation, Violation, check};

use crate::script::{KEY, operation};
use crate::search::is_linearizable;

const HISTORIES: usize = 40_000;
const LONGEST: usize = 7;

fn outcome(random: &mut Rng) -> Completion {
    match random.u32(0..10) {
        0 => Completion::Fail,
        1 | 2 => Completion::Info,
        _ => Completion::Ok,
    }
}

/// Generates unrestricted histories: few instants, so that many ends and starts coincide, and reads
/// of absence, of any written value and of values whose write failed.
fn anything(random: &mut Rng) -> Vec<Operation> {
    let reads = random.usize(0..=LONGEST);
    let writes = random.usize(usize::from(reads == 0)..=LONGEST - reads);
    let values = writes as u64;
    let mut history = Vec::new();
    for nth in 0..writes + reads {
        let start = random.u64(0..12);
        let end = start + random.u64(0..6);
        let action = if nth < writes {
            Action::Write(nth as u64 + 1)
        } else {
            // Zero stands for absence.
            Action::Read(Some(random.u64(0..=values)).filter(|&value| value > 0))
        };
        history.push(Operation { outcome: outcome(random), ..operation(action, start, end) });
    }
    random.shuffle(&mut history);
    history
}

/// Generates early writes that do not fail and later reads of their values, so that only the order
/// of the values decides. In unrestricted histories most anomalies are of the simpler kinds.
fn contended(random: &mut Rng) -> Vec<Operation> {
    let writes = random.usize(2..=3);
    let mut history = Vec::new();
    for nth in 0..writes {
        let start = random.u64(0..5);
        let end = start + random.u64(0..6);
        let write = operation(Action::Write(nth as u64 + 1), start, end);
        let outcome = if random.u32(0..6) == 0 { Completion::Info } else { Completion::Ok };
        history.push(Operation { outcome, ..write });
    }
    for _ in 0..random.usize(1..=LONGEST - writes) {
        let start = random.u64(3..10);
        let end = start + random.u64(0..6);
        let value = random.u64(1..=writes as u64);
        history.push(operation(Action::Read(Some(value)), start, end));
    }
    random.shuffle(&mut history);
    history
}

#[derive(Debug, Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    accepted_long: usize,
    stale: usize,
    two_values: usize,
}

fn compare(seed: u64, generate: fn(&mut Rng) -> Vec<Operation>) -> Tally {
    let mut random = Rng::with_seed(seed);
    let mut tally = Tally::default();
    for _ in 0..HISTORIES {
        let history = generate(&mut random);
        let verdict = check(&history);
        assert_eq!(verdict.is_ok(), is_linearizable(&history), "{verdict:?} on {history:#?}");
        match verdict {
            Ok(_) => {
                tally.accepted += 1;
                tally.accepted_long += usize::from(history.len() > 4);
            }
            Err(violation) => {
                assert_eq!(violation.key(), KEY);
                tally.refused += 1;
                tally.stale += usize::from(matches!(violation, Violation::StaleRead(_)));
                tally.two_values += usize::from(matches!(violation, Violation::TwoValuesAtOnce(_)));
            }
        }
    }
    tally
}

#[test]
fn linearizability_check_agrees_with_search_on_random_histories() {
    let tally = compare(1, anything);
    assert!(tally.accepted > 1000 && tally.refused > 1000, "{tally:?}");
    assert!(tally.accepted_long > 1000, "{tally:?}");
}

#[test]
fn linearizability_check_agrees_with_search_on_contended_histories() {
    let tally = compare(2, contended);
    assert!(tally.accepted > 1000 && tally.refused > 1000, "{tally:?}");
    assert!(tally.stale > 1000 && tally.two_values > 1000, "{tally:?}");
}
