//! The time to open a long log whose files are in the page cache.

use std::{fs, path::Path, time::Instant};

use palisade_wal::{Backend, Log};

use crate::{PAYLOAD, group_commit::GroupLog, palisade, palisade::Palisade};

const ROUNDS: usize = 5;

pub(crate) fn measure(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let own = dir.join("recovery");
    let mut log = Palisade::create(&own, Backend::Mapped, false)?;
    let mut records = 0;
    let log = loop {
        for _ in 0..1_000 {
            log.append(&PAYLOAD)?;
        }
        records += 1_000;
        let batch = log.begin()?;
        Palisade::sync(&batch)?;
        let end = batch.plan().up_to;
        log.end(batch);
        if end >= bytes {
            break log.into_log();
        }
    };
    drop(log);
    for backend in [Backend::Mapped, Backend::Direct] {
        let mut seconds: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                let mut found = 0_u64;
                let log = Log::open(&own, palisade::options(backend), &|_| {}, |_| found += 1)?;
                let elapsed = start.elapsed().as_secs_f64();
                anyhow::ensure!(found == records, "{found} of {records} records came back");
                drop(log);
                Ok(elapsed)
            })
            .collect::<Result<_, _>>()?;
        seconds.sort_by(f64::total_cmp);
        println!(
            "recovery of {} MiB, {records} records, {backend:?}: {:.2} s (median of {ROUNDS}, \
             {:.2} to {:.2})",
            bytes >> 20,
            seconds[ROUNDS / 2],
            seconds[0],
            seconds[ROUNDS - 1]
        );
    }
    Ok(fs::remove_dir_all(&own)?)
}
