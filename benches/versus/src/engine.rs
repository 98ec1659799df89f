//! raft-engine, the log of TiKV, with prefilled files.

use std::path::Path;

use raft_engine::{Config, Engine, LogBatch, ReadableSize};

/// Opens a new engine, with settings in its favour: nothing is compressed, and files are recycled.
/// Also in its favour, each value replaces the writer's last one, so that the index does not grow.
pub(crate) fn open(dir: &Path) -> anyhow::Result<Engine> {
    let config = Config {
        dir: dir.to_str().expect("a path of ours").to_owned(),
        batch_compression_threshold: ReadableSize(0),
        enable_log_recycle: true,
        prefill_for_recycle: true,
        purge_threshold: ReadableSize::gb(1),
        ..Config::default()
    };
    Ok(Engine::open(config)?)
}

/// Writes a record and returns once it is durable.
pub(crate) fn commit(engine: &Engine, writer: u64, payload: &[u8]) -> anyhow::Result<()> {
    let mut batch = LogBatch::with_capacity(1);
    batch.put(writer + 1, b"record".to_vec(), payload.to_vec())?;
    engine.write(&mut batch, true)?;
    Ok(())
}
