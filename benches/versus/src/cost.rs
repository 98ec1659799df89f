//! Bytes written by a sync, as the disk counts them, and allocations of an append.

use std::{fs, path::Path, thread, time::Duration};

use comfy_table::Table;
use palisade_wal::Backend;
use stats_alloc::Region;

use crate::{ALLOCATOR, PAYLOAD, group_commit::GroupLog, palisade::Palisade};

/// Records of one measurement, few enough for one segment.
const SYNCS: u64 = 20_000;

pub(crate) fn measure(dir: &Path) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.set_header([
        "",
        "records per sync",
        "bytes per sync",
        "of the unavoidable",
        "allocations per append",
    ]);
    for (backend, name) in [(Backend::Mapped, "mapped"), (Backend::Direct, "direct")] {
        for records in [1, 16] {
            let own = dir.join("cost");
            let mut log = Palisade::create(&own, backend, false)?;
            // Waits until the spare segment and other dirty pages are written.
            thread::sleep(Duration::from_secs(2));
            rustix::fs::sync();
            thread::sleep(Duration::from_secs(1));
            let device = Device::of(&own)?;
            let (before, region) = (device.written_bytes()?, Region::new(ALLOCATOR));
            let (mut unavoidable, syncs) = (0, SYNCS / records);
            for _ in 0..syncs {
                for _ in 0..records {
                    log.append(&PAYLOAD)?;
                }
                let batch = log.begin()?;
                let pages = batch.plan().pages.clone();
                unavoidable += pages.end - pages.start;
                Palisade::sync(&batch)?;
                log.end(batch);
            }
            let allocations = region.change().allocations;
            let written = device.written_bytes()? - before;
            table.add_row([
                name.to_owned(),
                records.to_string(),
                format!("{:.0}", written as f64 / syncs as f64),
                format!("{:.2}", written as f64 / unavoidable as f64),
                format!("{:.4}", allocations as f64 / (syncs * records) as f64),
            ]);
            drop(log);
            fs::remove_dir_all(&own)?;
        }
    }
    println!("{table}\nbytes as /proc/diskstats counts them, for the whole device");
    Ok(())
}

/// The block device of a directory.
struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    fn of(dir: &Path) -> anyhow::Result<Self> {
        let device = rustix::fs::stat(dir)?.st_dev;
        Ok(Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) })
    }

    fn written_bytes(&self) -> anyhow::Result<u64> {
        let stats = fs::read_to_string("/proc/diskstats")?;
        let own = [self.major.to_string(), self.minor.to_string()];
        let line = stats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let fields = line
            .into_iter()
            .find(|fields| fields.len() > 9 && fields[..2] == own)
            .ok_or_else(|| anyhow::anyhow!("the directory's device does not count its writes"))?;
        Ok(fields[9].parse::<u64>()? * 512)
    }
}
