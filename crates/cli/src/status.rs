//! `palisade status`.

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use palisade_client::{Client, ClientOptions};
use palisade_clock::BoundSource;
use palisade_wire::{Admission, NodeId, ShardStatus};

use crate::{Failure, failed, output::print_line};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Client addresses of the cluster, comma-separated; at least one must answer
    #[arg(long, value_delimiter = ',', required = true)]
    connect: Vec<SocketAddr>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let options = ClientOptions { timeout: Duration::from_secs(3), ..ClientOptions::default() };
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
