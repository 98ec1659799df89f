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
fn stale_read() {
    let history = [write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)];
    let Violation::StaleRead(conflict) = refuse(&history) else { panic!("wrong variant") };
    assert_eq!(conflict.outer.finished_first, history[0]);
    assert_eq!(conflict.inner.finished_first, history[1]);
    assert_eq!(conflict.outer.started_last, history[2]);
}

#[test]
fn new_value_then_old_while_the_write_is_still_running() {
    let history = [write(1, 1, 2), write(2, 3, 20), read(2, 4, 5), read(1, 6, 7)];
    assert!(matches!(refuse(&history), Violation::StaleRead(_)));
}

#[test]
fn lost_update() {
    let history = [write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), write(3, 7, 8), read(2, 9, 10)];
    assert!(matches!(refuse(&history), Violation::StaleRead(_)));
}

#[test]
fn overwritten_value_comes_back() {
    let history = [write(1, 1, 2), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8)];
    assert!(matches!(refuse(&history), Violation::TwoValuesAtOnce(_)));
}

#[test]
fn two_values_seen_after_concurrent_writes() {
    let history = [write(1, 1, 4), write(2, 2, 3), read(1, 5, 6), read(2, 7, 8)];
    assert!(matches!(refuse(&history), Violation::TwoValuesAtOnce(_)));
}

#[test]
fn unknown_write_takes_effect_twice() {
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
fn unknown_write_is_seen_for_a_moment_within_another_value() {
    let history =
        [info(write(1, 1, 2)), write(2, 3, 4), read(2, 5, 6), read(1, 7, 8), read(2, 9, 10)];
    assert!(matches!(refuse(&history), Violation::StaleRead(_)));
}

#[test]
fn read_of_a_value_never_written() {
    let history = [write(1, 1, 2), read(9, 3, 4)];
    assert_eq!(refuse(&history), Violation::ReadOfUnwritten { read: history[1] });
}

#[test]
fn read_of_a_failed_write() {
    let history = [fail(write(1, 1, 2)), read(1, 3, 4)];
    let expected = Violation::ReadOfFailedWrite { read: history[1], write: history[0] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn read_from_the_future() {
    let history = [read(1, 1, 2), write(1, 3, 4)];
    let expected = Violation::ReadBeforeWrite { read: history[0], write: history[1] };
    assert_eq!(refuse(&history), expected);
    assert!(matches!(
        refuse(&[read(1, 1, 2), info(write(1, 3, 4))]),
        Violation::ReadBeforeWrite { .. }
    ));
}

#[test]
fn acknowledged_write_lost() {
    let history = [write(1, 1, 2), absent(3, 4)];
    let expected = Violation::AbsentAfterWrite { seen: history[0], read: history[1] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn acknowledged_write_lost_at_the_beginning_of_time() {
    assert!(matches!(refuse(&[write(1, 0, 0), absent(1, 1)]), Violation::AbsentAfterWrite { .. }));
}

#[test]
fn unknown_write_seen_then_lost() {
    let history = [info(write(1, 1, 2)), read(1, 3, 4), absent(5, 6)];
    let expected = Violation::AbsentAfterWrite { seen: history[1], read: history[2] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn one_value_written_twice() {
    let history = [write(1, 1, 2), info(write(1, 3, 4))];
    let expected = Violation::DuplicateWrite { first: history[0], second: history[1] };
    assert_eq!(refuse(&history), expected);
}

#[test]
fn reversed_times() {
    let history = [write(1, 2, 1)];
    assert_eq!(refuse(&history), Violation::EndsBeforeStart { operation: history[0] });
}

#[test]
fn message_names_key_values_processes_and_times() {
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
