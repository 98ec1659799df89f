//! Clocks of real nodes: the report in `palisade status`, and the start with a clock that was set
//! back.
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod support;

use std::{process::Command, time::Duration};

use palisade_client::{Commit, Mode};
use palisade_clock::{BoundSource, ClockSource, KernelClock, Timestamp};
use palisade_cluster::{ClockConfig, ClockSourceConfig, Cluster, ClusterOptions};
use palisade_txn::CommitCommand;
use palisade_wal::{Backend, Log, LogOptions, Record, RecordKind};
use palisade_wire::{CommitRequest, SessionId, TxnId};
use support::{LOG, keys, options, run};

/// Returns the output of `palisade status`, as text and as JSON, for a cluster with this clock
/// source.
async fn status(source: ClockSourceConfig, bound_us: u64) -> (String, serde_json::Value) {
    let clock = ClockConfig { source, bound_us, ..ClockConfig::default() };
    let mut cluster = Cluster::start(ClusterOptions { clock, ..options() }).unwrap();
    let client = cluster.wait_until_serving().await.unwrap();
    // Each shard reads its clock in its first turn.
    let addresses = cluster.addresses();
    let ask = |flag: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_palisade"));
        let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        command.args(["status", "--connect", &all.join(",")]).args(flag);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    drop(client);
    let json = serde_json::from_slice(&ask(Some("--json"))).unwrap();
    (String::from_utf8(ask(None)).unwrap(), json)
}

#[test]
fn clock_status_shows_bound_source_and_warns_if_unknown() {
    run(async {
        let (text, json) = status(ClockSourceConfig::Fixed, 300).await;
        assert_eq!(json[0]["shards"][0]["clock_bound_source"], "config");
        assert_eq!(json[0]["shards"][0]["clock_bound_us"], 300);
        assert!(text.contains("node 2: its clock is right to within 300 µs"), "{text}");
        assert!(!text.contains("WARNING"), "{text}");

        let (text, json) = status(ClockSourceConfig::Kernel, 300).await;
        let source = &json[1]["shards"][1]["clock_bound_source"];
        // Depends on whether this machine's kernel calls its clock synchronised.
        if KernelClock::new(ClockSource::Kernel, 300).estimate().by == BoundSource::Unknown {
            assert_eq!(source, "unknown");
            assert!(
                text.contains("WARNING: no clock source knows the error of the clock of node 1"),
                "{text}"
            );
        } else {
            assert_eq!(source, "kernel");
            assert!(text.contains("as its kernel says"), "{text}");
        }
    });
}

/// Appends an entry to the log of node 0, which is stopped, as a leader with a clock that far ahead
/// would have written it.
fn write_ahead(cluster: &Cluster, ahead: Duration, key: &[u8]) {
    let options = LogOptions {
        cluster_id: cluster.client_options().cluster_id.expect("it insists"),
        node: 0,
        shard: 0,
        segment_bytes: LOG.segment_bytes,
        limit_bytes: LOG.limit_bytes,
        ahead_bytes: 0,
        backend: Backend::Mapped,
    };
    let mut last = None;
    let log = cluster.dir().join("node-0/shard-000/log");
    let mut log = Log::open(&log, options, &|_| {}, |record| {
        if record.kind == RecordKind::Entry && !record.payload.is_empty() && record.group > 0 {
            last = Some((record.group, record.term, record.index));
        }
    })
    .unwrap();
    let (group, term, index) = last.expect("something was written");
    let now = KernelClock::new(ClockSource::Fixed, 0).now().wall;
    let ahead_us = u64::try_from(ahead.as_micros()).unwrap();
    let command = CommitCommand {
        proposed_ts: Timestamp::from_physical_us(now.latest_us + ahead_us),
        request: CommitRequest {
            txn: TxnId { session: SessionId(1), sequence: 1 },
            settled_below: 0,
            expires_ts: Timestamp::MAX,
            commit: Commit::new().put(key.to_vec(), b"from the future".to_vec()),
        },
    };
    let (kind, payload) = (RecordKind::Entry, command.to_payload());
    log.append(&Record { kind, group, term, index: index + 1, part: 0, payload: &payload })
        .unwrap();
}

#[test]
fn clock_far_behind_log_is_refused_at_startup() {
    run(async {
        let alone = ClusterOptions { nodes: 1, shards: 1, ..options() };
        let mut cluster = Cluster::start(alone).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let key = keys(&client, Mode::Raft).await.key(0).to_vec();
        client.put(key.clone(), b"now".to_vec()).await.unwrap();
        drop(client);
        // Within the offset that clocks may have.
        cluster.stop(0).unwrap();
        write_ahead(&cluster, Duration::from_millis(300), &key);
        cluster.start_node(0).unwrap();
        let client = cluster.wait_until_serving().await.unwrap();
        let found = client.get(key.clone()).await.unwrap().expect("it is there");
        assert_eq!(&found.value[..], b"from the future");
        drop(client);

        cluster.stop(0).unwrap();
        write_ahead(&cluster, Duration::from_secs(3600), &key);
        cluster.start_node(0).unwrap();
        let error = cluster.wait_until_serving().await.expect_err("its clock is an hour behind");
        assert!(error.to_string().contains("Set the clock"), "{error}");
    });
}
