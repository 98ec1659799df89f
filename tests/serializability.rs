//! Histories of transactions over lists, recorded by clients of real processes, are strictly
//! serializable.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

#[path = "support/appends.rs"]
mod appends;
mod support;

use std::{cell::Cell, time::Duration};

use appends::{Recorder, lists};
use futures_lite::future::zip;
use palisade_cluster::Cluster;
use support::{BOTH_MODES, options, pause, run};

#[test]
fn transactions_are_strictly_serializable_while_nodes_are_killed() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let client = client.with_timeout(Duration::from_secs(60));
        for mode in BOTH_MODES {
            let lists = lists(&client, mode).await;
            let recorder = Recorder::new();
            let done = Cell::new(false);
            let work = async {
                recorder.all(&client, &lists, 150).await;
                done.set(true);
            };
            let kills = async {
                for node in (0..3).cycle() {
                    pause(Duration::from_millis(300)).await;
                    if done.get() {
                        break;
                    }
                    cluster.kill(node).unwrap();
                    cluster.start_node(node).unwrap();
                }
            };
            zip(work, kills).await;
            let in_order = recorder.check().unwrap_or_else(|violation| panic!("{violation}"));
            assert!(in_order > 1_000, "{mode}: {in_order} transactions took effect");
        }
    });
}
