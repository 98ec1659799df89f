//! `palisade status`.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use palisade_client::{Client, ClientOptions};
use palisade_clock::BoundSource;
use palisade_wire::{Admission, Durations, NodeId, NodeStatus, PeerStatus, ShardStatus, Stage};

use crate::{Failure, failed, key, output::print_line};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Client addresses of the cluster, comma-separated; at least one must answer
    #[arg(long, value_delimiter = ',', required = true)]
    connect: Vec<SocketAddr>,
    /// File with a key from `palisade key derive`, for a cluster that has a secret
    #[arg(long)]
    key_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let key = key::read(arguments.key_file.as_deref())?;
    let timeout = Duration::from_secs(3);
    let options = ClientOptions { timeout, key, ..ClientOptions::default() };
    let client = Client::connect(&arguments.connect, options).await.map_err(failed)?;
    let known = client.topology().await.map_err(failed)?;
    // Connections open in the background. This is enough time to reach a live node.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let nodes = client.status().await.map_err(failed)?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&nodes).expect("a status always encodes");
        print_line(format_args!("{json}"))?;
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "range",
        "from",
        "mode",
        "replica",
        "role",
        "term",
        "epoch",
        "last",
        "committed",
        "ready",
    ]);
    let shards: Vec<_> = nodes.iter().flat_map(|node| &node.shards).collect();
    for descriptor in known.ranges.ranges() {
        for shard in &shards {
            let replicas = shard.ranges.iter().filter(|r| r.range == descriptor.range);
            for replica in replicas {
                table.add_row([
                    replica.range.to_string(),
                    descriptor.start.escape_ascii().to_string(),
                    replica.mode.to_string(),
                    shard.at.to_string(),
                    format!("{:?}", replica.role).to_lowercase(),
                    replica.term.to_string(),
                    replica.epoch.to_string(),
                    replica.last_index.to_string(),
                    replica.commit_index.to_string(),
                    if replica.ready { "yes" } else { "no" }.to_owned(),
                ]);
            }
        }
    }
    print_line(format_args!("{table}"))?;
    print_line(format_args!("{}", stages(&nodes)))?;
    for shard in &shards {
        print_line(format_args!("{}", of_log(shard)))?;
        for peer in shard.peers.iter().filter(|peer| is_notable(peer)) {
            print_line(format_args!("{}", of_link(shard, peer)))?;
        }
    }
    for node in &nodes {
        if let Some(shard) = node.shards.first() {
            print_line(format_args!("{}", of_clock(node.node, shard)))?;
        }
    }
    for shard in shards {
        match shard.admission {
            Admission::Admitted => {}
            Admission::Joining => {
                print_line(format_args!("{} has not met enough of its peers yet", shard.at))?;
            }
            Admission::Refused => {
                print_line(format_args!(
                    "{} is refused by its peers: its log was lost; give the node a new number",
                    shard.at
                ))?;
            }
        }
    }
    for node in known.nodes {
        if !nodes.iter().any(|answered| answered.node == node.node) {
            print_line(format_args!("node {} does not answer", node.node.0))?;
        }
    }
    Ok(())
}

/// Returns how long each stage takes on each node.
fn stages(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["node", "stage", "times", "mean", "half below", "99% below"]);
    for node in nodes {
        let mut of_node: BTreeMap<Stage, Durations> = BTreeMap::new();
        for (stage, durations) in node.shards.iter().flat_map(|shard| &shard.stages) {
            of_node.entry(*stage).or_default().add(durations);
        }
        for (stage, durations) in of_node {
            let bound = |per_mille| durations.quantile_us(per_mille).map_or_else(none, micros);
            let mean_us = durations.sum_us.checked_div(durations.count());
            table.add_row([
                node.node.to_string(),
                stage.name().replace('_', " "),
                durations.count().to_string(),
                mean_us.map_or_else(none, micros),
                bound(500),
                bound(990),
            ]);
        }
    }
    table
}

fn none() -> String {
    "-".to_owned()
}

fn micros(us: u64) -> String {
    format!("{us} µs")
}

/// Describes the log, the backlog and the rejections of a shard.
fn of_log(shard: &ShardStatus) -> String {
    let mut line = format!(
        "{}: {} MiB of log left, {} MiB of state, {} entries not applied, oldest commit {} ms",
        shard.at,
        shard.log_left_bytes >> 20,
        shard.state_bytes >> 20,
        shard.unapplied_entries,
        shard.oldest_commit_us / 1_000
    );
    for (at, (reason, count)) in shard.rejections.iter().enumerate() {
        let start = if at == 0 { "; rejected: " } else { ", " };
        line += &format!("{start}{reason} {count}");
    }
    line
}

/// Returns true if a link is silent, or its peer lacks entries.
fn is_notable(peer: &PeerStatus) -> bool {
    peer.silent_us.is_none_or(|us| us >= 1_000_000) || peer.lag_entries > 0
}

fn of_link(shard: &ShardStatus, peer: &PeerStatus) -> String {
    let silent = match peer.silent_us {
        None => "has not answered".to_owned(),
        Some(us) => format!("answered {} ms ago", us / 1_000),
    };
    let (entries, kib) = (peer.lag_entries, peer.lag_bytes >> 10);
    format!("{}: {} {silent} and lacks {entries} entries, {kib} KiB", shard.at, peer.at)
}

/// Describes the state of a node's clock, with advice if it is not synchronised.
fn of_clock(node: NodeId, shard: &ShardStatus) -> String {
    let (node, bound_us) = (node.0, shard.clock_bound_us);
    let by = match shard.clock_bound_source {
        BoundSource::Config => "as its config says",
        BoundSource::Kernel => "as its kernel says",
        BoundSource::ClockBound => "as ClockBound says",
        BoundSource::Unknown => {
            return format!(
                "WARNING: no clock source knows the error of the clock of node {node}, which is \
                 assumed right to within {bound_us} µs: run a time daemon there (chrony). Until then every commit \
                 waits for about twice that, or, where it is more than clock.max_offset_us, the node \
                 serves nothing"
            );
        }
    };
    format!("node {node}: its clock is right to within {bound_us} µs, {by}")
}
