//! The open snapshots of a client, whose versions the cluster must keep.

use std::{collections::BTreeMap, sync::Arc};

use palisade_clock::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The timestamps of the open snapshots of a client and its clones.
#[derive(Debug, Default)]
pub(crate) struct OpenSnapshots {
    /// Number of open snapshots at each timestamp.
    open: Mutex<BTreeMap<Timestamp, usize>>,
    /// Notified when a snapshot is opened, so that the driver reports it to the shards at once.
    pub(crate) opened: Notify,
}

/// An open snapshot, until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenSnapshot {
    pub(crate) at_ts: Timestamp,
    all: Arc<OpenSnapshots>,
}

impl OpenSnapshots {
    /// Counts a snapshot as open at `at_ts` until the returned value is dropped.
    pub(crate) fn open(self: &Arc<Self>, at_ts: Timestamp) -> OpenSnapshot {
        *self.open.lock().entry(at_ts).or_default() += 1;
        self.opened.notify_one();
        OpenSnapshot { at_ts, all: self.clone() }
    }

    /// Returns the timestamp of the oldest open snapshot.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.open.lock().first_key_value().map(|(ts, _)| *ts)
    }
}

impl Drop for OpenSnapshot {
    fn drop(&mut self) {
        let mut open = self.all.open.lock();
        let count = open.get_mut(&self.at_ts).expect("it was counted when it was opened");
        *count -= 1;
        if *count == 0 {
            open.remove(&self.at_ts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_timestamp_is_minimum_of_open_snapshots() {
        let all = Arc::new(OpenSnapshots::default());
        let ts = Timestamp::from_physical_us;
        assert_eq!(all.oldest(), None);
        let (later, earlier, same) = (all.open(ts(9)), all.open(ts(5)), all.open(ts(5)));
        assert_eq!(all.oldest(), Some(ts(5)));
        drop(earlier);
        assert_eq!(all.oldest(), Some(ts(5)));
        drop(same);
        assert_eq!(all.oldest(), Some(ts(9)));
        drop(later);
        assert_eq!(all.oldest(), None);
    }
}
