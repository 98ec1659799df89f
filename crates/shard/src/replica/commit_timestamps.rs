//! Chooses the timestamps of a range's commits.
//!
//! Invariants:
//! - A commit's timestamp is not below the latest that true time may be when the commit is ordered.
//! - The timestamps that one leader chooses rise in the order of the log. A new leader may choose
//!   one below an entry that it has not applied yet; applying the commit raises it above.

use palisade_clock::Timestamp;
use palisade_wire::Rejection;

use crate::turn::Turn;

/// The timestamps that this replica has given to commits.
#[derive(Debug, Default)]
pub(super) struct CommitTimestamps {
    last_ts: Timestamp,
}

impl CommitTimestamps {
    /// Returns the timestamp for a commit that is ordered now. `applied_ts` is the timestamp of the
    /// last applied commit, which another replica may have chosen.
    pub(super) fn next(
        &self,
        applied_ts: Timestamp,
        turn: &mut Turn<'_>,
    ) -> Result<Timestamp, Rejection> {
        let last_ts = self.last_ts.max(applied_ts);
        turn.hlc.commit_ts(turn.now.wall, last_ts).map_err(|_| Rejection::ClockUncertain)
    }

    /// Records that a commit was ordered at this timestamp.
    pub(super) fn ordered(&mut self, commit_ts: Timestamp) {
        self.last_ts = commit_ts;
    }
}
