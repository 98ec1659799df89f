//! Histories of timestamped operations: valid ones, and one planted violation each.

use palisade_history::{
    TimestampViolation, TimestampedOperation, check_timestamps,
    timestamps::{CheckedTimestamps, Order, Saw},
};

const X: u32 = 0;
const Y: u32 = 1;

fn operation(at_ns: (u64, u64), order: Order) -> TimestampedOperation {
    let (start_ns, end_ns) = at_ns;
    TimestampedOperation {
        process: 1,
        start_ns,
        end_ns,
        order,
        reads: Vec::new(),
        writes: Vec::new(),
    }
}

fn put(at_ns: (u64, u64), ts: u64, key: u32, value: u64) -> TimestampedOperation {
    let writes = vec![(key, Some(value))];
    TimestampedOperation { writes, ..operation(at_ns, Order::Commit(ts)) }
}

fn read(at_ns: (u64, u64), order: Order, reads: &[(u32, Saw)]) -> TimestampedOperation {
    TimestampedOperation { reads: reads.to_vec(), ..operation(at_ns, order) }
}

fn value(ts: u64, value: u64) -> Saw {
    Saw::Value { ts, value }
}

fn refused(history: &[TimestampedOperation]) -> TimestampViolation {
    check_timestamps(history).expect_err("the history is refused")
}

/// A cycle over two keys: `put x` is slow, `put y` is acknowledged, then `get x` is stale.
fn stale_over_two_keys(order: Order) -> Vec<TimestampedOperation> {
    vec![
        put((0, 1), 5, X, 1),
        put((10, 100), 10, X, 2),
        put((20, 30), 20, Y, 3),
        read((40, 50), order, &[(X, value(5, 1))]),
        read((40, 110), Order::Fresh(25), &[(X, value(10, 2)), (Y, value(20, 3))]),
    ]
}

#[test]
fn latest_read_below_other_keys_acknowledged_write_is_refused() {
    let violation = refused(&stale_over_two_keys(Order::Latest));
    assert!(matches!(violation, TimestampViolation::NoTimestampFits { key: X, from: 20, .. }));
    // Each key alone is linearizable, which is all that a read at this level requires.
    let checked = check_timestamps(&stale_over_two_keys(Order::LatestOfKey)).unwrap();
    assert_eq!(checked, CheckedTimestamps { placed: 5, versions: 3 });
}

#[test]
fn concurrent_operations_may_take_any_order() {
    let mut history = stale_over_two_keys(Order::Latest);
    // The read now starts at the instant at which `put y` ends.
    history[3].start_ns = 30;
    check_timestamps(&history).unwrap();
}

#[test]
fn sequential_commits_have_increasing_timestamps() {
    let history = [put((0, 10), 20, X, 1), put((11, 20), 20, Y, 2)];
    let violation = refused(&history);
    assert!(matches!(violation, TimestampViolation::BelowAcknowledged { ts: 20, .. }));
    check_timestamps(&[history[0].clone(), put((11, 20), 21, Y, 2)]).unwrap();
}

#[test]
fn fresh_snapshot_below_acknowledged_write_is_refused() {
    let snapshot = |order| vec![put((0, 10), 20, X, 1), read((11, 20), order, &[(X, Saw::Absent)])];
    let violation = refused(&snapshot(Order::Fresh(15)));
    assert!(matches!(violation, TimestampViolation::BelowAcknowledged { ts: 15, .. }));
    check_timestamps(&snapshot(Order::AsOf(15))).unwrap();
    let violation = refused(&snapshot(Order::AsOf(25)));
    assert!(matches!(violation, TimestampViolation::NoTimestampFits { key: X, .. }));
}

#[test]
fn snapshot_mixing_two_timestamps_is_refused() {
    let reads = [(X, value(5, 1)), (Y, value(20, 3))];
    let mut history = stale_over_two_keys(Order::LatestOfKey);
    history.push(read((40, 110), Order::AsOf(25), &reads));
    assert!(matches!(refused(&history), TimestampViolation::NoTimestampFits { key: X, .. }));
    // The same reads of the latest state are refused too: x changed before y did.
    history.pop();
    history.push(read((15, 110), Order::Latest, &reads));
    assert!(matches!(refused(&history), TimestampViolation::NoTimestampFits { key: X, .. }));
}

#[test]
fn commit_reads_must_hold_until_commit_timestamp() {
    let update =
        |ts| TimestampedOperation { reads: vec![(X, value(5, 1))], ..put((12, 40), ts, X, 9) };
    let history = |ts| [put((0, 1), 5, X, 1), put((10, 20), 10, X, 2), update(ts)];
    // A lost update.
    assert!(matches!(refused(&history(15)), TimestampViolation::NoTimestampFits { key: X, .. }));
    check_timestamps(&history(8)).unwrap();
}

#[test]
fn write_applied_twice_or_after_failure_is_refused() {
    let twice = [
        put((0, 10), 5, X, 1),
        read((11, 20), Order::AsOf(6), &[(X, value(5, 1))]),
        put((21, 30), 25, X, 2),
        read((31, 40), Order::Latest, &[(X, value(35, 1))]),
    ];
    let violation = refused(&twice);
    assert!(matches!(violation, TimestampViolation::AppliedTwice { first: 5, second: 35, .. }));
    let mut failed = [twice[0].clone(), twice[1].clone()];
    failed[0].order = Order::Failed;
    assert!(matches!(refused(&failed), TimestampViolation::FailedButSeen { value: 1, .. }));
    let unwritten = &twice[1..2];
    assert!(matches!(refused(unwritten), TimestampViolation::Unwritten { value: 1, .. }));
}

#[test]
fn unknown_outcome_write_takes_effect_after_start_or_never() {
    let mut history = [
        put((0, 10), 5, Y, 1),
        TimestampedOperation { order: Order::Unknown, ..put((20, 25), 0, X, 2) },
        read((100, 110), Order::Latest, &[(X, value(50, 2))]),
    ];
    check_timestamps(&history).unwrap();
    check_timestamps(&history[..2]).unwrap();
    history[2].reads = vec![(X, value(5, 2))];
    assert!(matches!(refused(&history), TimestampViolation::BelowAcknowledged { ts: 5, .. }));
}

#[test]
fn delete_of_known_or_unknown_outcome_explains_absent_key() {
    let delete = |ts, order: fn(u64) -> Order| TimestampedOperation {
        writes: vec![(X, None)],
        ..operation((20, 30), order(ts))
    };
    let absent = read((40, 50), Order::Latest, &[(X, Saw::Absent)]);
    let history = |delete| [put((0, 10), 5, X, 1), delete, absent.clone()];
    check_timestamps(&history(delete(25, Order::Commit))).unwrap();
    check_timestamps(&history(delete(25, |_| Order::Unknown))).unwrap();
    let violation = refused(&history(delete(25, |_| Order::Failed)));
    assert!(matches!(violation, TimestampViolation::NoTimestampFits { key: X, .. }));
}

#[test]
fn failed_condition_counts_as_read_of_another_version() {
    let failed = |start_ns| read((start_ns, 50), Order::Latest, &[(X, Saw::NotVersion { ts: 5 })]);
    check_timestamps(&[put((0, 10), 5, X, 1), put((20, 30), 25, X, 2), failed(22)]).unwrap();
    // A write of unknown outcome that was not read may have replaced the version.
    let unknown = TimestampedOperation { order: Order::Unknown, ..put((20, 30), 0, X, 2) };
    check_timestamps(&[put((0, 10), 5, X, 1), unknown, failed(22)]).unwrap();
    let violation = refused(&[put((0, 10), 5, X, 1), failed(22)]);
    assert!(matches!(violation, TimestampViolation::NoTimestampFits { key: X, .. }));
}
