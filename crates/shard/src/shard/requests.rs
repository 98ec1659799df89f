//! Passes clients' requests to the replicas that they are for.

use palisade_clock::{Now, Timestamp};
use palisade_control::{Change, Topology};
use palisade_wire::{Operation, Outcome, RangeId, ReadKind, Rejection};

use super::{LOG_RESERVE_BYTES, Shard};
use crate::{TestFault, replica::Asker};

impl Shard {
    pub(super) fn request(&mut self, asker: Asker, operation: Operation, now: Now) {
        if let Err(outcome) = self.serve(asker, operation, now) {
            self.effects.reply(asker, outcome);
        }
    }

    /// Starts a request, or returns its outcome as `Err` if that is known immediately.
    fn serve(&mut self, asker: Asker, operation: Operation, now: Now) -> Result<(), Outcome> {
        match operation {
            Operation::Status => return Err(Outcome::Status(self.status(now).to_bytes())),
            _ if self.draining => return Err(Outcome::Rejected(Rejection::Draining)),
            Operation::RangeMap => {
                let topology = Topology {
                    cluster_id: self.config.cluster_id,
                    nodes: self.config.nodes.clone(),
                    ranges: self.config.ranges.clone(),
                    now_ts: self.now_ts(now),
                };
                return Err(Outcome::RangeMap(topology.to_bytes()));
            }
            Operation::KeepVersions { at_ts } => {
                let latest_ts = Timestamp::from_physical_us(now.wall.latest_us);
                let kept = self.protections.protect(at_ts.min(latest_ts), now);
                return Err(match kept {
                    true => Outcome::VersionsKept,
                    false => Outcome::Rejected(Rejection::Collected),
                });
            }
            _ if !self.admission.is_admitted() => {
                return Err(Outcome::Rejected(Rejection::NotServing { hint: None }));
            }
            _ => {}
        }
        let only_reads = matches!(
            operation,
            Operation::Get { .. } | Operation::Scan { .. } | Operation::Rollback { .. }
        );
        if !only_reads {
            self.check_log_room()?;
        }
        if self.is_fenced(now) {
            return Err(Outcome::Rejected(Rejection::ClockUncertain));
        }
        if self.commit_wait.is_full() {
            return Err(Outcome::Rejected(Rejection::Overloaded));
        }
        let hasty = self.config.planted.is(TestFault::HastySnapshots);
        let Some(operation) = self.early_reads.pass(asker, operation, hasty, now)? else {
            return Ok(());
        };
        let served = match operation {
            Operation::Commit { range, request, claim } => {
                self.with_replica(range, now, |replica, hlc, cx| {
                    replica.commit(asker, request, claim, hlc, now, cx)
                })
            }
            Operation::Get { range, key, kind } => {
                self.with_replica(range, now, |replica, hlc, cx| match kind {
                    ReadKind::Latest => replica.get(asker, &key),
                    ReadKind::LatestOfKey => replica.get_of_key(asker, &key),
                    ReadKind::Locking(locking) => {
                        replica.locked_get(asker, &key, locking, hlc, now, cx)
                    }
                    _ => replica.get_past(asker, &key, kind, now),
                })
            }
            Operation::Scan { scan, kind } => {
                self.with_replica(scan.range, now, |replica, hlc, cx| match kind {
                    // A scan covers more than one key, so both kinds mean the same.
                    ReadKind::Latest | ReadKind::LatestOfKey => replica.scan(asker, scan),
                    ReadKind::Locking(locking) => {
                        replica.locked_scan(asker, scan, locking, hlc, now, cx)
                    }
                    _ => replica.scan_past(asker, scan, kind, now),
                })
            }
            Operation::Rollback { range, claim } => {
                self.with_replica(range, now, |replica, hlc, cx| {
                    Err(replica.rollback(claim, hlc, now, cx))
                })
            }
            Operation::Control(change) => {
                let change = Change::from_bytes(&change)
                    .map_err(|_| Outcome::Rejected(Rejection::InvalidChange))?;
                self.with_replica(RangeId::CONTROL, now, |replica, _, cx| {
                    replica.propose(asker, || change.to_bytes(), cx)
                })
            }
            Operation::Replicas { range, change } => {
                self.with_replica(range, now, |replica, _, cx| replica.change(asker, change, cx))
            }
            Operation::RangeMap | Operation::Status | Operation::KeepVersions { .. } => {
                unreachable!("they were answered above")
            }
        };
        served.unwrap_or(Err(Outcome::Rejected(Rejection::NotHere)))
    }

    /// Returns the clock's reading for a client's start, or `None` while it is too uncertain.
    fn now_ts(&self, now: Now) -> Option<Timestamp> {
        let is_sure = !self.is_fenced(now);
        is_sure.then(|| Timestamp::from_physical_us(now.wall.reading_us()))
    }

    fn check_log_room(&self) -> Result<(), Outcome> {
        if self.log.left_bytes < LOG_RESERVE_BYTES {
            return Err(Outcome::Rejected(Rejection::LogFull));
        }
        Ok(())
    }
}
