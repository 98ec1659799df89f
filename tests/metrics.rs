//! The HTTP endpoint of a node: metrics, health and readiness.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests run on the real machine"
)]

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use palisade_client::{Client, Mode};
use palisade_cluster::{Cluster, ClusterOptions, ModeConfig};
use support::{keys, options, run};

/// Returns the status code and the body of a GET.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").expect("a response has a body");
    let status = head.split(' ').nth(1).expect("a status line has a code");
    (status.parse().unwrap(), body.to_owned())
}

/// Returns the sum of a metric over its labels that contain `label`.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let lines = metrics.lines().filter(|line| !line.starts_with('#') && line.contains(label));
    let values = lines.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    });
    values.sum()
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn endpoint_reports_stages_health_and_readiness() {
    run(async {
        let (mut cluster, client, address) = start(ModeConfig::Raft).await;
        let keys = keys(&client, Mode::Raft).await;
        for key in 0..keys.count() {
            client.put(keys.key(key), "value").await.unwrap();
            client.get(keys.key(key)).await.unwrap();
        }
        assert_eq!(get(address, "/healthz"), (200, "healthy\n".to_owned()));
        assert_eq!(get(address, "/other").0, 404);
        let (status, metrics) = get(address, "/metrics");
        assert_eq!(status, 200);
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        // Node 0 applies all entries, whether or not it leads.
        let applied = sum(&metrics, "palisade_applied_entries_total", "shard");
        assert!(applied >= f64::from(keys.count()), "{metrics}");
        assert!(sum(&metrics, "palisade_stage_seconds_count", "log_sync") > 0.0, "{metrics}");
        assert!(metrics.contains("le=\"+Inf\""), "{metrics}");
        assert!(sum(&metrics, "palisade_log_left_bytes", "shard") > 0.0);
        assert!(sum(&metrics, "palisade_resident_memory_bytes", "") > 1e6);
        let led = sum(&metrics, "palisade_ranges_led", "shard");
        let replicated = sum(&metrics, "palisade_stage_seconds_count", "replicate");
        let read = sum(&metrics, "palisade_stage_seconds_count", "\"read\"");
        assert!(led == 0.0 || replicated > 0.0 && read > 0.0, "{metrics}");

        // Alone, the node is healthy, and not ready once it notices.
        cluster.kill(1).unwrap();
        cluster.kill(2).unwrap();
        wait_for(address, "/readyz", 503).await;
        assert_eq!(get(address, "/healthz").0, 200);
    });
}

#[test]
fn node_with_a_broken_chain_is_not_ready() {
    run(async {
        let (mut cluster, _client, address) = start(ModeConfig::Chain).await;
        cluster.kill(2).unwrap();
        wait_for(address, "/readyz", 503).await;
        cluster.start_node(2).unwrap();
        wait_for(address, "/readyz", 200).await;
    });
}

/// Requests that are too long or never end stop neither the node nor the endpoint.
#[test]
fn endpoint_survives_hostile_requests() {
    run(async {
        let (_cluster, client, address) = start(ModeConfig::Raft).await;
        let length =
            |bytes: u64| format!("GET /metrics HTTP/1.1\r\nContent-Length: {bytes}\r\n\r\n");
        let endless = "x".repeat(1 << 20);
        let requests = [
            length(u64::MAX),
            length(1 << 40),
            length(2_000),
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            "GET /metrics HTTP/1.1\r\n".repeat(9),
            "GET /metrics HTTP/1.1\r\n\r\n".repeat(200),
            format!("GET / HTTP/1.1\r\nHost: {endless}"),
            endless,
        ];
        let mut open = Vec::new();
        for request in requests.iter().cycle().take(5 * requests.len()) {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            // The node may close the connection before everything is written.
            let _ = stream.write_all(request.as_bytes());
            open.push(stream);
        }
        client.put("key", "value").await.unwrap();
        wait_for(address, "/healthz", 200).await;
        wait_for(address, "/readyz", 200).await;
    });
}

/// Starts a cluster whose node 0 has the endpoint. Returns it with a client and the address.
async fn start(mode: ModeConfig) -> (Cluster, Client, SocketAddr) {
    let mut cluster = Cluster::start(ClusterOptions { mode, ..options() }).unwrap();
    cluster.wait_until_serving().await.unwrap();
    let address = free_address();
    cluster.stop(0).unwrap();
    cluster.change_config(0, |config| config.metrics_address = Some(address));
    cluster.start_node(0).unwrap();
    let client = cluster.wait_until_serving().await.unwrap();
    wait_for(address, "/readyz", 200).await;
    (cluster, client, address)
}

/// Waits until a path is answered with a status code.
async fn wait_for(address: SocketAddr, path: &str, code: u16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = get(address, path);
        if answer.0 == code {
            return;
        }
        assert!(Instant::now() < deadline, "{path} is not {code}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
