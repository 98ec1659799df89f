//! Processor time of processes, as the kernel accounts it.

use std::{cell::RefCell, fs};

/// User and system time of a set of processes.
#[derive(Debug)]
pub struct CpuMeter {
    /// Process id and last reading in microseconds, which stays after the process has ended.
    processes: RefCell<Vec<(u32, u64)>>,
}

impl CpuMeter {
    pub(crate) fn new(pids: Vec<u32>) -> Self {
        let read = |pid| (pid, process_cpu_us(pid).unwrap_or(0));
        Self { processes: RefCell::new(pids.into_iter().map(read).collect()) }
    }

    /// Returns the sum so far, in microseconds. For a process that has ended, the last reading
    /// counts.
    pub fn cpu_us(&self) -> u64 {
        let mut processes = self.processes.borrow_mut();
        for (pid, last_us) in processes.iter_mut() {
            *last_us = process_cpu_us(*pid).unwrap_or(0).max(*last_us);
        }
        processes.iter().map(|(_, us)| us).sum()
    }
}

/// Returns the user and system time of this process so far, in microseconds, or 0 if unknown.
pub fn own_cpu_us() -> u64 {
    process_cpu_us(std::process::id()).unwrap_or(0)
}

/// Returns the user and system time of a process and its threads so far, in microseconds.
fn process_cpu_us(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The process name, in parentheses, may hold spaces. User and system time are the 12th and 13th
    // fields after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    Some((user + system) * 1_000_000 / rustix::param::clock_ticks_per_second())
}
