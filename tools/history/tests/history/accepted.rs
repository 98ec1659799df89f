//! Linearizable histories that must be accepted, many of which look like violations.

use palisade_history::{Checked, Operation, check};

use crate::script::{absent, fail, info, read, write};

#[track_caller]
fn accept(history: &[Operation]) -> Checked {
    match check(history) {
        Ok(checked) => checked,
        Err(violation) => panic!("refused: {violation}"),
    }
}

#[test]
fn empty_history_is_accepted() {
    assert_eq!(accept(&[]), Checked::default());
}

#[test]
fn sequential_operations_are_accepted() {
    accept(&[absent(0, 0), write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)]);
}

#[test]
fn concurrent_writes_may_take_effect_in_either_order() {
    let writes = [write(1, 1, 10), write(2, 1, 10)];
    for (first, last) in [(1, 2), (2, 1)] {
        accept(&[writes[0], writes[1], read(first, 2, 3), read(last, 4, 5), read(last, 11, 12)]);
    }
}

#[test]
fn concurrent_reads_may_return_new_and_old_value() {
    accept(&[write(1, 1, 2), write(2, 3, 9), read(2, 4, 7), read(1, 5, 8)]);
}

#[test]
fn read_may_return_unacknowledged_write() {
    accept(&[write(1, 1, 9), read(1, 2, 3), read(1, 4, 5)]);
}

#[test]
fn operations_with_touching_intervals_are_concurrent() {
    accept(&[read(1, 1, 3), write(1, 3, 4)]);
    accept(&[write(1, 1, 3), absent(3, 4)]);
    accept(&[write(1, 0, 0), absent(0, 0)]);
    accept(&[write(1, 1, 2), write(2, 2, 3), read(1, 3, 4)]);
}

#[test]
fn unread_write_fits_between_read_values() {
    accept(&[write(1, 1, 2), write(2, 3, 20), write(3, 3, 20), read(1, 4, 5), read(3, 21, 22)]);
}

#[test]
fn unknown_outcome_write_may_take_effect_late() {
    let late = info(write(1, 1, 2));
    accept(&[late, absent(3, 4), read(1, 5, 6)]);
    accept(&[late, write(2, 3, 4), read(2, 5, 6), read(1, 7, 8), read(1, 9, 10)]);
}

#[test]
fn unknown_outcome_write_may_never_take_effect() {
    accept(&[info(write(1, 1, 2)), absent(3, 4), write(2, 5, 6), read(2, 7, 8)]);
}

#[test]
fn unknown_and_failed_reads_are_ignored() {
    accept(&[write(1, 1, 2), info(absent(3, 4)), fail(read(9, 5, 6)), info(read(9, 6, 7))]);
}

#[test]
fn unknown_outcome_end_time_is_ignored() {
    accept(&[info(write(1, 5, 0)), read(1, 6, 7)]);
    accept(&[info(write(1, 5, u64::MAX)), read(1, 6, u64::MAX)]);
}

#[test]
fn value_of_failed_write_may_be_written_again() {
    accept(&[fail(write(1, 1, 2)), absent(3, 4), write(1, 5, 6), read(1, 7, 8)]);
}

#[test]
fn keys_are_checked_independently() {
    let elsewhere = |operation: Operation| Operation { key: 18, ..operation };
    let history = [write(1, 1, 2), elsewhere(absent(3, 4)), elsewhere(write(1, 5, 6))];
    assert_eq!(accept(&history).keys, 2);
}

#[test]
fn summary_counts_reads_writes_and_unknown_outcomes() {
    let history =
        [write(1, 1, 2), read(1, 3, 4), read(1, 3, 4), info(write(2, 5, 6)), fail(write(3, 7, 8))];
    let expected = Checked { keys: 1, operations: 5, reads: 2, writes: 1, unknown: 1 };
    assert_eq!(accept(&history), expected);
}

#[test]
fn operation_fits_in_48_bytes() {
    // A run of one hour records tens of millions of operations.
    assert!(size_of::<Operation>() <= 48);
}
