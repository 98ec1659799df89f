//! Planted anomalies: each is refused with the matching violation.

use palisade_history::{Operation, Violation, check};

use crate::script::{KEY, absent, fail, info, read, write};

/// Checks that the history is refused, with one verdict in any order of recording.
#[track_caller]
fn refuse(history: &[Operation]) -> Violation {
    let violation = check(history).expect_err("an anomaly was accepted");
    let reversed: Vec<Operation> = history.iter().rev().copied().collect();
    assert_eq!(check(&reversed), Err(violation.clone()));
    assert_eq!(violation.key(), KEY);
    violation
}

#[test]
fn stale_read_is_refused() {
    let history = [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)];
    let Violation::StaleRead(conflict) = refuse(&history) else { panic!("wrong variant") };
    assert_eq!(conflict.outer.finished_first, history[0]);
    assert_eq!(conflict.inner.finished_first, history[1]);
    assert_eq!(conflict.outer.started_last, history[2]);
}

#[test]
fn old_read_after_new_read_during_write_is_refused() {
    let history = [write(1, 1, 2), write(2, 3, 20), read(2, 4, 5), read(1, 6, 7)];
    assert!(matches!(refuse(&history), Violation::StaleRead(_)));
}

#[test]
fn lost_update_is_refused() {
    let history = [write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), write(3, 7, 8), read(2, 9, 10)];
    assert!(matches!(refuse(&history), Violation::StaleRead(_)));
}

#[test]
fn reappearing_overwritten_value_is_refused() {
    let history = [write(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)];
    assert!(matches!(refuse(&history), Violation::TwoValuesAtOnce(_)));
}

#[test]
fn conflicting_reads_after_concurrent_writes_are_refused() {
    let history = [write(1, 1, 4), write(2, 2, 3), read(1, 5, 6), read(2, 7, 8)];
    assert!(matches!(refuse(&history), Violation::TwoValuesAtOnce(_)));
}

#[test]
fn unknown_outcome_write_applied_twice_is_refused() {
    let history = [
        info(write(1, 1, 2)),
        read(1, 3, 4),
        write(2, 5, 6),
        read(2, 7, 8),
        read(1, 9, 10),
        read(1, 11, 12),
    ];
    assert!(matches!(refuse(&history), Violation::TwoValuesAtOnce(_)));
}

#[test]
fn transient_effect_of_unknown_outcome_write_is_refused() {
    let history =
        [info(write(1, 1, 2)), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8), read(2, 9, 10)];
    assert!(matches!(refuse(&history), Violation::StaleRead(_)));
}

#[test]
fn read_of_unwritten_value_is_refused() {
    let history = [write(1, 1, 2), read(9, 3, 4)];
    assert_eq!(refuse(&history), Violation::ReadOfUnwritten { read: history[1] });
}

#[test]
fn read_of_failed_write_is_refused() {
    let history = [fail(write(1, 1, 2)), read(1, 3, 4)];
    let expected = Violation::ReadOfFailedWrite { read: history[1], write: history[0] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn read_before_its_write_started_is_refused() {
    let history = [read(1, 1, 2), write(1, 3, 4)];
    let expected = Violation::ReadBeforeWrite { read: history[0], write: history[1] };
    assert_eq!(refuse(&history), expected);
    assert!(matches!(
        refuse(&[read(1, 1, 2), info(write(1, 3, 4))]),
        Violation::ReadBeforeWrite { .. }
    ));
}

#[test]
fn lost_acknowledged_write_is_refused() {
    let history = [write(1, 1, 2), absent(3, 4)];
    let expected = Violation::AbsentAfterWrite { seen: history[0], read: history[1] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn lost_acknowledged_write_at_time_zero_is_refused() {
    assert!(matches!(refuse(&[write(1, 0, 0), absent(1, 1)]), Violation::AbsentAfterWrite { .. }));
}

#[test]
fn unknown_outcome_write_lost_after_read_is_refused() {
    let history = [info(write(1, 1, 2)), read(1, 3, 4), absent(5, 6)];
    let expected = Violation::AbsentAfterWrite { seen: history[1], read: history[2] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn duplicate_write_of_value_is_refused() {
    let history = [write(1, 1, 2), info(write(1, 3, 4))];
    let expected = Violation::DuplicateWrite { first: history[0], second: history[1] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn operation_ending_before_start_is_refused() {
    let history = [write(1, 2, 1)];
    assert_eq!(refuse(&history), Violation::EndsBeforeStart { operation: history[0] });
}

#[test]
fn violation_message_names_key_values_processes_and_times() {
    let old = write(1, 10, 20);
    let new = Operation { process: 2, ..write(2, 30, 40) };
    let stale = Operation { process: 3, ..read(1, 50, 60) };
    assert_eq!(
        refuse(&[old, new, stale]).to_string(),
        "stale read: (process 1 wrote 1 to k17 [10, 20 ns]) ended before (process 2 wrote 2 to \
         k17 [30, 40 ns]) began, yet (process 2 wrote 2 to k17 [30, 40 ns]) ended before \
         (process 3 read 1 from k17 [50, 60 ns]) began"
    );
    assert_eq!(
        refuse(&[old, absent(50, 60)]).to_string(),
        "lost write: process 1 found k17 absent [50, 60 ns], after process 1 wrote 1 to k17 \
         [10, 20 ns]"
    );
}
