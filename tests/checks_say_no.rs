//! Faults planted in real nodes: the checks of histories catch those that break a promise, and a
//! failed sync breaks none.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

#[path = "support/appends.rs"]
mod appends;
#[path = "support/operations.rs"]
mod operations;
mod support;

use std::time::{Duration, Instant};

use appends::{Recorder, lists};
use operations::record;
use palisade_client::Mode;
use palisade_cluster::{Cluster, FaultConfig};
use palisade_compare::{Servers, Trial, check_histories, results::Phase, run_trial};
use palisade_history::check_timestamps;
use palisade_load::Workload;
use support::{
    BOTH_MODES, kill_all, load, load_while, options, pause, read_all, run, start_all,
    start_with_fault,
};

#[test]
fn checker_detects_stale_reads_in_both_modes() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        cluster.stop(0).unwrap();
        cluster.set_fault(0, Some(FaultConfig::StaleReads));
        cluster.start_node(0).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        for mode in BOTH_MODES {
            let start = Instant::now();
            // Node 0 is the tail of some chains. It leads Raft ranges again once the others have
            // restarted.
            let options = load(Workload::Mixed { read_percent: 50 }, Duration::from_secs(1));
            let mut caught = false;
            for _ in 0..20 {
                let history = load_while(&client, mode, options, start, async {}).await;
                caught = palisade_history::check(&history).is_err();
                if caught {
                    break;
                }
                for other in [1, 2] {
                    cluster.kill(other).unwrap();
                    cluster.start_node(other).unwrap();
                    cluster.wait_until_serving().await.unwrap();
                }
            }
            assert!(caught, "{mode}: stale reads went unnoticed");
        }
    });
}

#[test]
fn checker_detects_lost_acknowledged_entries_in_both_modes() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let mut histories = Vec::new();
        let start = Instant::now();
        for mode in BOTH_MODES {
            let options = load(Workload::Put, Duration::from_millis(500));
            histories.push(load_while(&client, mode, options, start, async {}).await);
        }
        kill_all(&mut cluster, 3);
        for node in 0..3 {
            cluster.set_fault(node, Some(FaultConfig::ForgetOnRestart(50)));
        }
        start_all(&mut cluster, 3);
        cluster.wait_until_serving().await.unwrap();
        for (mode, mut history) in BOTH_MODES.into_iter().zip(histories) {
            assert!(palisade_history::check(&history).is_ok(), "{mode}: wrong before the fault");
            read_all(&client, mode, start, &mut history).await;
            assert!(
                palisade_history::check(&history).is_err(),
                "{mode}: forgotten entries went unnoticed"
            );
        }
    });
}

/// A load without reads is checked by the values that are read back at its end.
#[test]
fn checker_detects_stale_final_reads_of_write_only_load() {
    run(async {
        let (cluster, _) = start_with_fault(FaultConfig::StaleReads).await;
        let trial = Trial {
            name: "puts".to_owned(),
            phase: Phase::ClosedLoop,
            mode: None,
            workload: Workload::Put,
            clients: 8,
            rate: None,
            timeout: None,
            value_bytes: 64,
            keys: 100,
            duration: Duration::from_millis(300),
            kill: None,
            seed: 1,
            record: true,
        };
        let servers = Servers::Running(cluster.addresses(), cluster.client_options());
        let finished = run_trial(servers, &trial).await.unwrap();
        let mut runs = vec![finished.run.clone()];
        check_histories(&mut runs, std::slice::from_ref(&finished));
        assert!(!runs[0].check.passed(), "{:?}", runs[0].check);
        assert_eq!((runs[0].unsent, runs[0].unanswered), (0, 8));
    });
}

#[test]
fn checker_detects_reads_that_ignore_pending_writes() {
    run(async {
        let (mut cluster, _) = start_with_fault(FaultConfig::IgnorePendingWrites).await;
        let caught = async {
            for round in 0..20 {
                let length = Duration::from_secs(3);
                let history = record(&mut cluster, round, length, async |_| {}).await;
                if check_timestamps(&history).is_err() {
                    return true;
                }
            }
            false
        };
        assert!(caught.await, "stale reads over ranges went unnoticed");
    });
}

#[test]
fn checker_detects_nodes_that_ignore_locks() {
    run(async {
        let (_cluster, client) = start_with_fault(FaultConfig::IgnoreLocks).await;
        for mode in BOTH_MODES {
            let lists = lists(&client, mode).await;
            let recorder = Recorder::new();
            recorder.all(&client, &lists, 40).await;
            let in_order = recorder.check();
            assert!(in_order.is_err(), "{mode}: {in_order:?} and no lock");
        }
    });
}

/// Scenario 41: after a failed sync, the node acknowledges nothing more, reports the reason and
/// stops. It restarts from what the disk holds.
#[test]
fn sync_failure_stops_node_without_data_loss() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        cluster.stop(1).unwrap();
        cluster.set_fault(1, Some(FaultConfig::FailSyncAfter(150)));
        cluster.start_node(1).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let start = Instant::now();
        let options = load(Workload::Put, Duration::from_secs(3));
        let mut history = load_while(&client, Mode::Raft, options, start, async {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !cluster.last_words(1).contains("failed: ") {
                assert!(Instant::now() < deadline, "no sync failed");
                pause(Duration::from_millis(20)).await;
            }
            cluster.kill(1).unwrap();
            cluster.set_fault(1, None);
            cluster.start_node(1).unwrap();
        })
        .await;
        let client = cluster.wait_until_serving().await.unwrap();
        read_all(&client, Mode::Raft, start, &mut history).await;
        let checked = palisade_history::check(&history);
        assert!(checked.is_ok(), "{}", checked.unwrap_err());
    });
}
