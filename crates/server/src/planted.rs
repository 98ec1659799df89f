//! Faults that a test's configuration plants in a node. Without the feature `planted-faults` a
//! node knows none, and refuses a configuration that names one.

use palisade_replication::Planted;
use palisade_shard::TestFault;

use crate::Config;

/// A fault to plant.
#[cfg(feature = "planted-faults")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultConfig {
    /// Reads return the version before the newest.
    StaleReads,
    /// A restart forgets this many of the last entries of every group.
    ForgetOnRestart(usize),
    /// Every lock request is granted, even if other transactions hold the lock.
    IgnoreLocks,
    /// Current reads do not wait for pending writes.
    IgnorePendingWrites,
    /// Every sync of a shard's log after this many fails.
    FailSyncAfter(u64),
}

#[cfg(feature = "planted-faults")]
impl Config {
    /// Returns the rule that the node's shards break.
    pub(crate) fn planted(&self) -> Planted<TestFault> {
        match self.planted_fault {
            Some(FaultConfig::StaleReads) => Planted::new(TestFault::StaleReads),
            Some(FaultConfig::ForgetOnRestart(entries)) => {
                Planted::new(TestFault::ForgetOnRestart { entries })
            }
            Some(FaultConfig::IgnoreLocks) => Planted::new(TestFault::IgnoreLocks),
            Some(FaultConfig::IgnorePendingWrites) => Planted::new(TestFault::IgnorePendingWrites),
            Some(FaultConfig::FailSyncAfter(_)) | None => Planted::default(),
        }
    }

    /// Returns the number of syncs after which every sync fails.
    pub(crate) fn fail_sync_after(&self) -> Option<u64> {
        match self.planted_fault {
            Some(FaultConfig::FailSyncAfter(syncs)) => Some(syncs),
            _ => None,
        }
    }
}

#[cfg(not(feature = "planted-faults"))]
impl Config {
    /// Returns no fault: this build plants none.
    #[allow(clippy::unused_self, reason = "the other build reads it")]
    pub(crate) fn planted(&self) -> Planted<TestFault> {
        Planted::default()
    }

    /// Returns `None`: in this build, syncs fail only where the disk does.
    #[allow(clippy::unused_self, reason = "the other build reads it")]
    pub(crate) fn fail_sync_after(&self) -> Option<u64> {
        None
    }
}
