//! Nodes in network namespaces, whose packets are dropped as on a broken network: the kernel keeps
//! connections open, and waits for longer each time before it sends again.
//!
//! Needs root, `ip` and `iptables`, so it runs on request: `cargo test -p palisade-cli --test
//! network -- --ignored`.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests run on the real machine"
)]

mod support;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use palisade_client::{Client, Mode};
use palisade_cluster::{Cluster, ClusterOptions, ModeConfig};
use palisade_wire::ClusterSecret;
use support::{keys, options, pause, run, wait_until_all_serve};

const NODES: u8 = 3;

/// The longest time without a put. Measured: below a second.
const MAX_GAP: Duration = Duration::from_secs(6);

/// How long the packets of a node are dropped. The kernel then waits for about as long again.
const OUTAGE: Duration = Duration::from_secs(20);

/// The longest time until a node has caught up after that. Measured: below a second.
const MAX_CATCH_UP: Duration = Duration::from_secs(8);

/// A bridge with a namespace for each node. Removed when this is dropped.
struct Network {
    id: u32,
}

impl Network {
    fn new() -> Self {
        let network = Self { id: std::process::id() % 10_000 };
        let bridge = network.bridge();
        sudo(&format!("ip link add {bridge} type bridge"));
        sudo(&format!("ip addr add {}/24 dev {bridge}", address(200)));
        sudo(&format!("ip link set {bridge} up"));
        for node in 0..NODES {
            let (space, outside) = (network.space(node), format!("pv{}-{node}", network.id));
            sudo(&format!("ip netns add {space}"));
            sudo(&format!("ip link add {outside} type veth peer name eth0 netns {space}"));
            sudo(&format!("ip link set {outside} master {bridge} up"));
            sudo(&format!("ip -n {space} addr add {}/24 dev eth0", address(node)));
            sudo(&format!("ip -n {space} link set eth0 up"));
            sudo(&format!("ip -n {space} link set lo up"));
        }
        network
    }

    fn bridge(&self) -> String {
        format!("pb{}", self.id)
    }

    fn space(&self, node: u8) -> String {
        format!("palisade-{}-{node}", self.id)
    }

    /// Drops all packets to and from a node, or no longer.
    fn drop_packets(&self, node: u8, drops: bool) {
        let action = if drops { "-A" } else { "-D" };
        for at in 0..NODES {
            let from = if at == node { "0.0.0.0/0".to_owned() } else { address(node).to_string() };
            let rule = format!("iptables {action} INPUT -i eth0 -s {from} -j DROP");
            sudo(&format!("ip netns exec {} {rule}", self.space(at)));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..NODES {
            let _ = Command::new("ip").args(["netns", "del", &self.space(node)]).status();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge()]).status();
    }
}

fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, node + 1)
}

fn sudo(line: &str) {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Puts until `until`. Returns the longest time without a success.
async fn longest_gap(client: Client, key: Vec<u8>, until: Instant) -> Duration {
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    while Instant::now() < until {
        let written = client.put(key.clone(), "value").await;
        gap = gap.max(last.elapsed());
        if written.is_ok() {
            last = Instant::now();
        }
    }
    gap.max(last.elapsed())
}

#[test]
#[ignore = "needs root and network namespaces"]
fn node_whose_packets_are_dropped_is_left_out_and_returns() {
    let network = Network::new();
    let dir = tempfile::tempdir().unwrap();
    // Starts node N of `start --config .../node-N.toml` in its namespace.
    let program = dir.path().join("node");
    let script = format!(
        "#!/bin/sh\nnode=${{3##*node-}}\nexec ip netns exec palisade-{}-${{node%.toml}} {} \"$@\"\n",
        network.id,
        env!("CARGO_BIN_EXE_palisade")
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    run(async {
        let options = ClusterOptions {
            program: PathBuf::from(&program),
            mode: ModeConfig::Raft,
            shards: 1,
            hosts: (0..NODES).map(|node| IpAddr::V4(address(node))).collect(),
            secret: Some(ClusterSecret::from_bytes([1; ClusterSecret::BYTES])),
            ..options()
        };
        let mut cluster = Cluster::start(options).unwrap();
        let client = cluster.wait_until_serving().await;
        let client = client.unwrap_or_else(|error| panic!("{error}: {}", cluster.last_words(0)));
        let keys = keys(&client, Mode::Raft).await;
        let until = Instant::now() + OUTAGE + Duration::from_secs(2);
        let mut gaps = Vec::new();
        for range in 0..u32::try_from(keys.ranges()).unwrap() {
            let addresses = cluster.addresses();
            let client = Client::connect(&addresses, cluster.client_options()).await.unwrap();
            gaps.push(tokio::spawn(longest_gap(client, keys.key(range).to_vec(), until)));
        }
        pause(Duration::from_secs(1)).await;
        network.drop_packets(0, true);
        pause(OUTAGE).await;
        network.drop_packets(0, false);
        let healed = Instant::now();
        let client = Client::connect(&cluster.addresses(), cluster.client_options()).await.unwrap();
        wait_until_all_serve(&client).await;
        let caught_up = healed.elapsed();
        let mut longest = Duration::ZERO;
        for gap in gaps {
            longest = longest.max(gap.await.unwrap());
        }
        assert!(longest < MAX_GAP, "no put for {longest:?}");
        assert!(caught_up < MAX_CATCH_UP, "a node came back after {caught_up:?}");
    });
}
