//! Long histories of an atomic register are accepted, and refused once one read is falsified.

use fastrand::Rng;
use palisade_history::{Action, Completion, Operation, Violation, check};

const KEYS: u32 = 5;
const OPERATIONS: u64 = 2000;

/// Performs the operations one after another, and records each with a random interval around its
/// instant.
fn simulate(seed: u64) -> Vec<Operation> {
    let mut random = Rng::with_seed(seed);
    let mut registers = [None::<u64>; KEYS as usize];
    let mut history = Vec::new();
    for nth in 0..OPERATIONS {
        let instant = 100 + nth * 7;
        let key = random.u32(0..KEYS);
        let register = &mut registers[key as usize];
        let value = nth + 1;
        let (action, outcome) = match random.u32(0..10) {
            0..5 => (Action::Read(*register), Completion::Ok),
            5..8 => {
                *register = Some(value);
                (Action::Write(value), Completion::Ok)
            }
            8 => {
                if random.bool() {
                    *register = Some(value);
                }
                (Action::Write(value), Completion::Info)
            }
            _ => (Action::Write(value), Completion::Fail),
        };
        let start_ns = instant - random.u64(0..100);
        // The client stops waiting at once, so the effect comes after the recorded end.
        let end_ns =
            if outcome == Completion::Info { start_ns } else { instant + random.u64(0..100) };
        let process = random.u32(0..32);
        history.push(Operation { process, start_ns, end_ns, key, action, outcome });
    }
    random.shuffle(&mut history);
    history
}

fn acknowledged_write(operation: &Operation) -> Option<u64> {
    match (operation.action, operation.outcome) {
        (Action::Write(value), Completion::Ok) => Some(value),
        _ => None,
    }
}

/// Returns the write that started last of those acknowledged before the operation started.
fn latest_before<'a>(history: &'a [Operation], than: &Operation) -> Option<&'a Operation> {
    history
        .iter()
        .filter(|write| write.key == than.key && write.end_ns < than.start_ns)
        .filter(|write| acknowledged_write(write).is_some())
        .max_by_key(|write| write.start_ns)
}

/// Returns a value that was certainly replaced before the read started: its write ended before the
/// start of another write, which ended before the start of the read.
fn replaced_before(history: &[Operation], read: &Operation) -> Option<u64> {
    let replacing = latest_before(history, read)?;
    let replaced = latest_before(history, replacing)?;
    acknowledged_write(replaced)
}

#[test]
fn atomic_register_histories_are_accepted() {
    for seed in 0..20 {
        let history = simulate(seed);
        match check(&history) {
            Ok(checked) => {
                assert_eq!((checked.keys, checked.operations), (5, history.len()));
                assert!(checked.reads > 500 && checked.writes > 300 && checked.unknown > 100);
            }
            Err(violation) => panic!("seed {seed}: {violation}"),
        }
    }
}

#[test]
fn single_stale_read_in_long_history_is_refused() {
    let mut history = simulate(99);
    let mut falsified = 0;
    for at in 0..history.len() {
        let original = history[at];
        if !matches!((original.action, original.outcome), (Action::Read(_), Completion::Ok)) {
            continue;
        }
        let Some(stale) = replaced_before(&history, &original) else { continue };
        history[at].action = Action::Read(Some(stale));
        let verdict = check(&history);
        assert!(
            matches!(verdict, Err(Violation::StaleRead(_) | Violation::TwoValuesAtOnce(_))),
            "{verdict:?} with {} for {original}",
            history[at]
        );
        history[at] = original;
        falsified += 1;
        if falsified == 200 {
            break;
        }
    }
    assert_eq!(falsified, 200);
    assert!(check(&history).is_ok());
}
