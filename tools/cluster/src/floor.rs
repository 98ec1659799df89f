//! The latency floor of this machine's disk and loopback: a commit takes at least one sync and two
//! round trips, one between client and server and one between replicas.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::Instant,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Bytes of a page, the minimum that a sync writes.
const PAGE_BYTES: usize = 4096;

/// Bytes sent in each direction of a round trip: about a small put.
const MESSAGE_BYTES: usize = 320;

/// Number of measurements of which the median is taken.
const SYNCS: usize = 101;
const ROUND_TRIPS: usize = 1001;

/// Median times of a sync and of a loopback round trip, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    /// The time to overwrite and sync one existing page of a file.
    pub sync_us: u64,
    /// The round-trip time of a small message over the loopback to another core, if there is one.
    /// Both ends are pinned: on one core a round trip takes a third of that, and the scheduler does
    /// not reliably place two of several processes on one core.
    pub round_trip_us: u64,
}

impl Floor {
    /// Measures the floor, with a temporary file in `dir`. Nothing else should run on the machine.
    ///
    /// # Errors
    ///
    /// Returns the error of the file system, the sockets or the pinning.
    pub fn measure(dir: &Path) -> io::Result<Self> {
        let sync_us = median_sync_us(dir)?;
        Ok(Self { sync_us, round_trip_us: median_round_trip_us()? })
    }

    /// Returns the minimum time of a commit, in microseconds: one sync and two round trips.
    pub fn commit_us(&self) -> u64 {
        self.sync_us + 2 * self.round_trip_us
    }
}

/// Measures [`Floor::sync_us`] with a temporary file in `dir`.
///
/// # Errors
///
/// Returns the error of the file system.
pub fn median_sync_us(dir: &Path) -> io::Result<u64> {
    let path = dir.join(format!(".palisade-floor-{}", std::process::id()));
    let measured = sync_pages(&path);
    // If this fails, a file of 64 KiB is left behind.
    let _ = fs::remove_file(&path);
    measured
}

fn sync_pages(path: &Path) -> io::Result<u64> {
    let mut file = File::create(path)?;
    // Write one page at a time: the page cache syncs as much at once as was written at once.
    for _ in 0..16 {
        file.write_all(&[0; PAGE_BYTES])?;
    }
    file.sync_all()?;
    median(SYNCS, |number| {
        let page = [number as u8 | 1; PAGE_BYTES];
        file.write_all_at(&page, (number % 16 * PAGE_BYTES) as u64)?;
        file.sync_data()
    })
}

fn median_round_trip_us() -> io::Result<u64> {
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let (here, there) = (cores.next(), cores.next());
    pin(here)?;
    let measured = round_trips_with(there);
    sched_setaffinity(None, &allowed)?;
    measured
}

/// Pins the calling thread to a core, if there is one.
fn pin(core: Option<usize>) -> io::Result<()> {
    let Some(core) = core else { return Ok(()) };
    let mut only = CpuSet::new();
    only.set(core);
    Ok(sched_setaffinity(None, &only)?)
}

fn round_trips_with(echo_core: Option<usize>) -> io::Result<u64> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || -> io::Result<()> {
        pin(echo_core)?;
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE_BYTES];
        for _ in 0..ROUND_TRIPS {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut message = [1; MESSAGE_BYTES];
    let measured = median(ROUND_TRIPS, |_| {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    })?;
    echo.join().map_err(|_| io::Error::other("the echo has died"))??;
    Ok(measured)
}

fn median(times: usize, mut run: impl FnMut(usize) -> io::Result<()>) -> io::Result<u64> {
    let mut all = Vec::with_capacity(times);
    for number in 0..times {
        let start = Instant::now();
        run(number)?;
        all.push(start.elapsed().as_micros());
    }
    all.sort_unstable();
    Ok(u64::try_from(all[times / 2]).unwrap_or(u64::MAX))
}
