//! Nodes that are stopped with SIGTERM hand over their leaderships first.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests run on the real machine, with threads"
)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use palisade_client::{Client, Mode};
use palisade_cluster::{Cluster, ClusterOptions, ModeConfig};
use support::{keys, last_words, options, pause, run};

/// Writers of each range. Each has connections of its own.
const WRITERS: usize = 4;

/// The longest gap between two puts to a range. The measured gaps are below 100 ms; the limit is
/// far above, because other processes may take the processors.
const MAX_GAP: Duration = Duration::from_secs(5);

/// The writes to one range: the time of the last success, and the longest time without one.
struct Writes(Mutex<(Instant, Duration)>);

impl Writes {
    fn succeeded(&self) {
        let (last, gap) = &mut *self.0.lock().unwrap();
        *gap = (*gap).max(last.elapsed());
        *last = Instant::now();
    }

    fn longest_gap(&self) -> Duration {
        let (last, gap) = *self.0.lock().unwrap();
        gap.max(last.elapsed())
    }
}

#[test]
fn scenario_54_rolling_restart_hands_over_all_leaderships() {
    run(async {
        let options = ClusterOptions { mode: ModeConfig::Raft, ..options() };
        let mut cluster = Cluster::start(options).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let keys = keys(&client, Mode::Raft).await;
        let stop = Arc::new(AtomicBool::new(false));
        let writes: Vec<_> = (0..keys.ranges())
            .map(|_| Arc::new(Writes(Mutex::new((Instant::now(), Duration::ZERO)))))
            .collect();
        let mut writers = Vec::new();
        for (key, writes) in (0..).zip(&writes) {
            for _ in 0..WRITERS {
                let (key, writes, stop) = (keys.key(key), writes.clone(), stop.clone());
                let (addresses, options) = (cluster.addresses(), cluster.client_options());
                writers.push(thread::spawn(move || {
                    run(async {
                        let client = Client::connect(&addresses, options).await.unwrap();
                        while !stop.load(Ordering::Relaxed) {
                            if client.put(key.clone(), "value").await.is_ok() {
                                writes.succeeded();
                            }
                        }
                    });
                }));
            }
        }
        for node in 0..3 {
            pause(Duration::from_millis(500)).await;
            assert!(cluster.stop(node).unwrap(), "{}", cluster.last_words(node));
            let words = cluster.last_words(node);
            assert_eq!(words.matches("drained, leads 0 ranges").count(), 2, "{words}");
            pause(Duration::from_millis(500)).await;
            cluster.start_node(node).unwrap();
            cluster.wait_until_serving().await.unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let gaps: Vec<_> = writes.iter().map(|writes| writes.longest_gap()).collect();
        assert!(gaps.iter().all(|gap| *gap < MAX_GAP), "ranges took no writes for {gaps:?}");
    });
}

#[test]
fn whole_cluster_stops_at_once() {
    run(async {
        let mut cluster = Cluster::start(options()).unwrap();
        cluster.wait_until_serving().await.unwrap();
        assert!(cluster.stop_all().unwrap(), "{}", last_words(&cluster));
    });
}
