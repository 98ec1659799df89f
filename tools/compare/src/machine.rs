//! The machine on which servers and clients run.

use std::{fs, path::Path, thread};

use rustix::{fs::statfs, system::uname};

use crate::results::Machine;

/// File systems by the magic number that `statfs` reports.
const FILE_SYSTEMS: [(u64, &str); 6] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x794C_7630, "overlayfs"),
    (0x2FC1_2FC1, "zfs"),
];

/// One-minute load average above which other programs probably run on the machine.
const BUSY_LOAD: f64 = 0.5;

/// Returns the properties of this machine, with warnings about those that distort measurements.
pub fn machine(data_dir: &Path) -> Machine {
    let file_system = match statfs(data_dir) {
        Ok(stat) => {
            let magic = stat.f_type as u64;
            let known = FILE_SYSTEMS.iter().find(|(number, _)| *number == magic);
            known.map_or(format!("{magic:#x}"), |(_, name)| (*name).to_owned())
        }
        Err(_) => "unknown".to_owned(),
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let other_load: f64 = load.split(' ').next().and_then(|one| one.parse().ok()).unwrap_or(0.0);
    let mut warnings = Vec::new();
    if other_load > BUSY_LOAD {
        warnings.push(format!(
            "the load average was {other_load} before the first run: anything else that runs here \
             slows syncs down"
        ));
    }
    if file_system == "tmpfs" {
        warnings.push("the data is on tmpfs: nothing is durable, and syncs cost nothing".into());
    }
    let name = uname();
    Machine {
        cores: thread::available_parallelism().map_or(1, usize::from),
        kernel: format!(
            "{} {}",
            name.sysname().to_string_lossy(),
            name.release().to_string_lossy()
        ),
        file_system,
        other_load,
        warnings,
    }
}
