//! `palisade start`.

use std::{io::Read, path::PathBuf, process, thread};

use clap::Args;
use palisade_server::Config;
use tracing_subscriber::EnvFilter;

use crate::Failure;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The node's config file (TOML)
    #[arg(long)]
    config: PathBuf,
    /// Stop as soon as standard input ends, for nodes that must not outlive their parent process
    #[arg(long)]
    stop_with_parent: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let config = Config::read(&arguments.config).map_err(|e| Failure::Usage(e.to_string()))?;
    if arguments.stop_with_parent {
        thread::spawn(|| {
            let mut ignored = [0; 64];
            while std::io::stdin().read(&mut ignored).is_ok_and(|read| read > 0) {}
            // The process that started this node has ended, so no drain is needed.
            process::exit(0);
        });
    }
    #[cfg(feature = "planted-faults")]
    if let Some(fault) = config.planted_fault {
        tracing::warn!("this node breaks its promises on purpose: {fault:?}");
    }
    let (node, shards) = (config.node, config.shards);
    palisade_server::run(config, || tracing::info!("node {} serves, {shards} shards", node.0))
        .map_err(|error| Failure::Usage(error.to_string()))
}
