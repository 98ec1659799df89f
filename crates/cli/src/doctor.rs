//! `palisade doctor`: checks what on this machine would make a node slow or unsafe.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use palisade_clock::{BoundSource, ClockSource, Estimate, KernelClock};
use rustix::{
    fs::{OFlags, statfs},
    process::{Resource, getrlimit},
    system::uname,
};
use serde::Serialize;

use crate::{Failure, output::print_line};

/// The first version of Linux that can populate a mapping for writing.
const LEAST_LINUX: (u32, u32) = (5, 14);

/// Free space that a data directory should have, in bytes.
const ROOM_BYTES: u64 = 4 << 30;

/// Lowest limit on open files that covers connections, peers and log segments.
const LEAST_FILES: u64 = 8192;

/// A sync that takes longer makes every commit slow. In microseconds.
const SLOW_SYNC_US: u64 = 2_000;

/// Default of `clock.bound_us`: the error bound of a clock that no source describes.
const DEFAULT_BOUND_US: u64 = 250_000;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Data directory of a node; it must exist
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    /// Number of shards of the node; the number of cores by default
    #[arg(long)]
    shards: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// A node works if an assumption holds that this program cannot check.
    Assumed,
    /// A node works, but slowly.
    Slow,
    /// A node does not start, or can lose acknowledged data.
    Unsafe,
}

/// A check and its result.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// Advice for the operator; empty if all is well.
    advice: &'static str,
}

impl Finding {
    fn new(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: "" }
    }

    fn unless(mut self, holds: bool, verdict: Verdict, advice: &'static str) -> Self {
        if !holds {
            (self.verdict, self.advice) = (verdict, advice);
        }
        self
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let dir = &arguments.data_dir;
    if !dir.is_dir() {
        return Err(Failure::Usage(format!("{} is no directory", dir.display())));
    }
    let findings = [
        kernel(),
        ring(),
        clock(),
        suspension(),
        cores(arguments.shards),
        files(),
        swap(),
        file_system(dir),
        room(dir),
        direct_writes(dir),
        syncs(dir),
    ];
    if arguments.json {
        let json = serde_json::to_string_pretty(&findings).expect("findings always encode");
        print_line(format_args!("{json}"))?;
    } else {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["check", "", "found", "what to do"]);
        for Finding { check, verdict, found, advice } in &findings {
            let verdict = format!("{verdict:?}").to_lowercase();
            table.add_row([*check, &verdict, found, advice]);
        }
        print_line(format_args!("{table}"))?;
    }
    let bad: Vec<_> = findings.iter().filter(|it| it.verdict == Verdict::Unsafe).collect();
    if bad.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = bad.iter().map(|finding| finding.check).collect();
    Err(Failure::Failed(format!("a node should not run here: {}", names.join(", "))))
}

fn kernel() -> Finding {
    let release = uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let holds = version >= LEAST_LINUX;
    Finding::new("kernel", format!("Linux {release}")).unless(
        holds,
        Verdict::Unsafe,
        "the log needs Linux 5.14 or later",
    )
}

fn ring() -> Finding {
    let limit = getrlimit(Resource::Memlock).current;
    let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    let (found, holds) = match palisade_server::probe_executor() {
        Ok(()) => (format!("works; {limit} may be locked"), true),
        Err(error) => (format!("{error}; {limit} may be locked"), false),
    };
    let advice = "allow io_uring, and raise the limit of locked memory (ulimit -l)";
    Finding::new("io_uring", found).unless(holds, Verdict::Unsafe, advice)
}

fn clock() -> Finding {
    let clock = KernelClock::new(ClockSource::Kernel, DEFAULT_BOUND_US);
    let Estimate { bound_us, by } = clock.estimate();
    let by_kernel = by == BoundSource::Kernel;
    let found = match by_kernel {
        true => format!("synchronised, right to within {bound_us} µs"),
        false => "the kernel calls it unsynchronised".to_owned(),
    };
    let advice = "run a time daemon (chrony); until then clock.bound_us is trusted, and every \
                  commit waits for about twice that";
    Finding::new("clock", found).unless(by_kernel, Verdict::Slow, advice)
}

/// Checks whether the machine can be suspended together with its clocks.
fn suspension() -> Finding {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = cpu.lines().filter(|line| line.starts_with("flags"));
    let is_virtual = flags
        .next()
        .is_some_and(|line| line.ends_with(" hypervisor") || line.contains(" hypervisor "));
    let found = if is_virtual { "a virtual machine" } else { "no hypervisor is seen" };
    let advice = "never go on from a suspended or saved state of this machine: its clocks were stopped \
                  with it, so leases look fresh and timestamps are old. Restart the node instead, or \
                  use clock.source = \"clockbound\", which notices";
    Finding::new("suspension", found).unless(!is_virtual, Verdict::Assumed, advice)
}

fn cores(shards: Option<u16>) -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = shards.map_or(cores, usize::from);
    Finding::new("cores", format!("{cores} for {shards} shards")).unless(
        shards <= cores,
        Verdict::Slow,
        "give a node no more shards than it has cores",
    )
}

fn files() -> Finding {
    let limit = getrlimit(Resource::Nofile).current;
    let found = limit.map_or("unlimited".to_owned(), |files| format!("{files} may be open"));
    let advice = "raise the limit of open files (ulimit -n): connections would be refused";
    Finding::new("open files", found).unless(
        limit.is_none_or(|limit| limit >= LEAST_FILES),
        Verdict::Slow,
        advice,
    )
}

fn swap() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    let total = line.map_or("unknown", str::trim);
    let advice = "switch swap off: a page that has to be read back stalls every range of a core";
    Finding::new("swap", total).unless(total.starts_with("0 "), Verdict::Slow, advice)
}

fn file_system(dir: &Path) -> Finding {
    // The numbers are from the kernel's magic.h.
    let (name, durable) = match statfs(dir).map(|found| found.f_type) {
        Ok(0xEF53) => ("ext4".to_owned(), true),
        Ok(0x5846_5342) => ("xfs".to_owned(), true),
        Ok(0x9123_683E) => ("btrfs".to_owned(), true),
        Ok(0x0102_1994) => ("tmpfs, which forgets all at a restart".to_owned(), false),
        Ok(0x6969) => ("nfs, which promises too little".to_owned(), false),
        Ok(0x794C_7630) => ("overlayfs, as in a container: use a volume".to_owned(), true),
        Ok(other) => (format!("of type {other:#x}, which was not tried"), true),
        Err(error) => (format!("unknown: {error}"), true),
    };
    let tried = durable && (name == "ext4" || name == "xfs");
    Finding::new("file system", name)
        .unless(tried, Verdict::Slow, "use ext4 or xfs on a local disk")
        .unless(durable, Verdict::Unsafe, "use ext4 or xfs on a local disk")
}

fn room(dir: &Path) -> Finding {
    let found = statfs(dir).map(|it| it.f_bavail * u64::try_from(it.f_bsize).unwrap_or(0));
    let bytes = found.unwrap_or(0);
    let advice = "make room: each shard's log may grow to log.limit_bytes; writes are refused \
                  when it can't";
    Finding::new("room", format!("{} MiB are free", bytes >> 20)).unless(
        bytes >= ROOM_BYTES,
        Verdict::Slow,
        advice,
    )
}

fn direct_writes(dir: &Path) -> Finding {
    let path = scratch(dir);
    let flags = OFlags::DIRECT.bits().cast_signed();
    let opened =
        OpenOptions::new().create(true).truncate(true).write(true).custom_flags(flags).open(&path);
    // Only the open matters, not the file.
    let _ = fs::remove_file(&path);
    let found = match &opened {
        Ok(_) => "possible".to_owned(),
        Err(error) => format!("not possible: {error}"),
    };
    let advice = "the log's direct backend can't be used here";
    Finding::new("direct writes", found).unless(opened.is_ok(), Verdict::Slow, advice)
}

fn syncs(dir: &Path) -> Finding {
    match palisade_cluster::median_sync_us(dir) {
        Ok(us) => {
            let advice = "every commit waits for a sync on each replica: use a faster disk";
            Finding::new("sync of 4 KiB", format!("{us} µs (median)")).unless(
                us <= SLOW_SYNC_US,
                Verdict::Slow,
                advice,
            )
        }
        Err(error) => Finding::new("sync of 4 KiB", error.to_string()).unless(
            false,
            Verdict::Unsafe,
            "the directory must be writable, and its disk able to sync",
        ),
    }
}

fn scratch(dir: &Path) -> PathBuf {
    dir.join(format!(".palisade-doctor-{}", std::process::id()))
}
