//! The ClockBound daemon as a clock source.
//!
//! The daemon publishes in shared memory the estimate of the machine's time daemon, whether that
//! estimate is still valid, and whether the machine was paused or migrated since.
//!
//! When the kernel has no estimate, the configured bound is used. There is no such fallback here: a
//! clock without a valid ClockBound estimate may have been set back by a migration of the machine.
//! Without an estimate the clock is not trusted, and the node serves nothing.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use clock_bound_client::{
    CLOCKBOUND_SHM_DEFAULT_PATH, ClockBoundClient, ClockStatus, VMCLOCK_SHM_DEFAULT_PATH,
};

use crate::{BoundSource, Interval, source::read_wall_us};

/// Time between two attempts to connect to the daemon.
const RETRY_US: u64 = 1_000_000;

/// Error bound of a clock without an estimate: more than any offset that is allowed.
const UNKNOWN_BOUND_US: u64 = 24 * 3_600 * 1_000_000;

/// A connection to the daemon's shared memory, opened on demand.
pub(crate) struct Daemon {
    daemon_path: String,
    vm_path: String,
    client: RefCell<Option<ClockBoundClient>>,
    retry_at_us: Cell<u64>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self::at(CLOCKBOUND_SHM_DEFAULT_PATH, VMCLOCK_SHM_DEFAULT_PATH)
    }
}

impl Daemon {
    fn at(daemon_path: &str, vm_path: &str) -> Self {
        Self {
            daemon_path: daemon_path.to_owned(),
            vm_path: vm_path.to_owned(),
            client: RefCell::new(None),
            retry_at_us: Cell::new(0),
        }
    }

    /// Returns the interval in which true time lies, and the source of its bound.
    pub(crate) fn read(&self, monotonic_us: u64) -> (Interval, BoundSource) {
        self.ask(monotonic_us).map_or_else(
            || (Interval::around(read_wall_us(), UNKNOWN_BOUND_US), BoundSource::Unknown),
            |wall| (wall, BoundSource::ClockBound),
        )
    }

    fn ask(&self, monotonic_us: u64) -> Option<Interval> {
        let mut client = self.client.borrow_mut();
        if client.is_none() && monotonic_us >= self.retry_at_us.get() {
            self.retry_at_us.set(monotonic_us + RETRY_US);
            *client = ClockBoundClient::new_with_paths(&self.daemon_path, &self.vm_path).ok();
        }
        let Ok(now) = client.as_mut()?.now() else {
            // A restarted daemon may publish in another memory segment, so connect again later.
            *client = None;
            return None;
        };
        // The bound of a free-running clock grows with its possible drift, so it stays valid.
        let holds =
            matches!(now.clock_status, ClockStatus::Synchronized | ClockStatus::FreeRunning);
        let [earliest_ns, latest_ns] = [now.earliest, now.latest].map(|time| {
            let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
            seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
        });
        let interval =
            Interval { earliest_us: earliest_ns / 1_000, latest_us: latest_ns.div_ceil(1_000) };
        holds.then_some(interval)
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("daemon_path", &self.daemon_path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use clock_bound_shm::{ClockErrorBound, ShmWrite, ShmWriter};
    use nix::sys::time::TimeSpec;
    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// Returns an estimate that was made just now and is valid for a minute.
    fn published(status: ClockStatus, bound_us: i64) -> ClockErrorBound {
        let now = clock_gettime(ClockId::Monotonic);
        let as_of = TimeSpec::new(now.tv_sec, 0);
        let void_after = TimeSpec::new(now.tv_sec + 60, 0);
        ClockErrorBound::new(as_of, void_after, bound_us * 1_000, 0, 0, status, false)
    }

    /// An estimate is used only while the daemon calls it valid.
    #[test]
    fn daemon_bound_is_used_only_while_status_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shm0");
        let daemon = Daemon::at(path.to_str().unwrap(), "no such file");
        let unknown = |monotonic_us| {
            let (wall, by) = daemon.read(monotonic_us);
            (wall.bound_us(), by) == (UNKNOWN_BOUND_US, BoundSource::Unknown)
        };
        assert!(unknown(0), "there is no daemon");
        let mut writer = ShmWriter::new(&path).unwrap();
        writer.write(&published(ClockStatus::Synchronized, 40));
        assert!(unknown(RETRY_US - 1), "it is not looked for all the time");
        let before_us = read_wall_us();
        let (wall, by) = daemon.read(RETRY_US);
        assert_eq!(by, BoundSource::ClockBound);
        assert!((40..=41).contains(&wall.bound_us()), "{wall:?}");
        assert!(wall.latest_us >= before_us && wall.earliest_us <= read_wall_us());
        for status in [ClockStatus::Disrupted, ClockStatus::Unknown] {
            writer.write(&published(status, 40));
            assert!(unknown(RETRY_US), "{status:?}");
        }
        writer.write(&published(ClockStatus::FreeRunning, 90));
        assert_eq!(daemon.read(RETRY_US).1, BoundSource::ClockBound);
    }
}
