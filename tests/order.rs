//! Histories of single-key operations and snapshots over all ranges of a cluster of real processes,
//! in both modes at once. Each operation must fit one timestamp, in an order that agrees with real
//! time.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

#[path = "support/operations.rs"]
mod operations;
mod support;

use std::time::Duration;

use operations::record;
use palisade_cluster::Cluster;
use palisade_history::{TimestampedOperation, check_timestamps, timestamps::Order};
use support::{options, pause, run};

/// Duration of a history of correct nodes.
const LENGTH: Duration = Duration::from_secs(60);

fn check(history: &[TimestampedOperation]) {
    let committed = history.iter().filter(|it| matches!(it.order, Order::Commit(_))).count();
    let latest = history.iter().filter(|it| it.order == Order::Latest).count();
    let fresh = history.iter().filter(|it| matches!(it.order, Order::Fresh(_))).count();
    assert!(
        committed > 1_000 && latest > 500 && fresh > 500,
        "the load did too little: {committed} puts, {latest} gets, {fresh} fresh reads"
    );
    check_timestamps(history).unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn scenario_49_timestamp_order_holds_over_all_ranges() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let history = record(&mut cluster, 0, LENGTH, async |_| {}).await;
        check(&history);
    });
}

#[test]
fn scenario_49_timestamp_order_holds_over_all_ranges_under_node_kills() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        let history = record(&mut cluster, 0, LENGTH, async |cluster| {
            for round in 0..8_u16 {
                pause(Duration::from_secs(4)).await;
                cluster.kill(round % 3).unwrap();
                pause(Duration::from_secs(2)).await;
                cluster.start_node(round % 3).unwrap();
            }
        })
        .await;
        check(&history);
    });
}
