//! Committed entries are durable: at a majority of the voters in Raft mode (thesis §3.6), at every
//! member of a chain (van Renesse and Schneider §3). Only committed writes are acknowledged, so
//! acknowledged writes are durable as well. An entry that a replica calls durable survives a crash
//! of the replica.
//!
//! No false alarm:
//!
//! - A replica confirms an entry only after its own sync has returned, and only such entries are
//!   counted. For a replica that is down, those that were synced before the crash are counted.
//! - A replica whose log was lost may have held any entry, so it counts as a holder of each.
//! - While the voters of a group change, a majority of each half is needed.
//! - A turn may commit first and then change the voters. So a majority of the voters before the
//!   turn or of those after it is enough.

use std::collections::BTreeSet;

use palisade_wire::{Mode, NodeId, PeerAddress};

use super::observation::{Committed, Log, Observation, agree};

#[derive(Debug, Default)]
pub(crate) struct Durability;

impl Durability {
    pub(crate) const NAME: &'static str = "durability of what is committed";

    /// Checks the entry at a replica's commit index. `others` returns the last observation of
    /// another replica of the range.
    pub(crate) fn check<'a>(
        &self,
        before: Option<&Observation>,
        seen: &Observation,
        committed: &Committed,
        lost: &BTreeSet<NodeId>,
        others: impl Fn(PeerAddress) -> Option<&'a Observation>,
    ) -> Result<(), String> {
        let Observation { at, range, commit_index, log, .. } = seen;
        let Some(mark) = log.mark(*commit_index) else { return Ok(()) };
        if committed.contains_key(commit_index) {
            // It was checked when it was first committed.
            return Ok(());
        }
        let holds = |replica: &Observation| {
            let held = replica.log.mark(*commit_index);
            replica.durable_index >= *commit_index && held.is_some_and(|held| agree(held, mark))
        };
        let has_copy = |voter: &&PeerAddress| {
            let other = || lost.contains(&voter.node) || others(**voter).is_some_and(holds);
            if *voter == at { holds(seen) } else { other() }
        };
        let lacking = |electorates: &[Vec<PeerAddress>]| {
            electorates.iter().find_map(|voters| {
                let copies = voters.iter().filter(has_copy).count();
                let needed = match seen.mode {
                    Mode::Raft => voters.len() / 2 + 1,
                    Mode::Chain => voters.len(),
                };
                (copies < needed).then_some((copies, needed))
            })
        };
        let Some((copies, needed)) = lacking(&seen.electorates) else { return Ok(()) };
        if before.is_some_and(|before| lacking(&before.electorates).is_none()) {
            return Ok(());
        }
        Err(format!(
            "{range}: {at} commits {commit_index}, which is durable at {copies} of {needed}"
        ))
    }

    /// Checks that a replica which was restarted still has the entries that it called durable.
    /// `replayed` is its log after the restart.
    pub(crate) fn check_restart(&self, before: &Observation, replayed: &Log) -> Result<(), String> {
        let Observation { at, range, durable_index, log, .. } = before;
        let is_other = |held| replayed.mark(*durable_index).is_some_and(|mark| !agree(held, mark));
        let has_changed = log.mark(*durable_index).is_some_and(is_other);
        if replayed.last() < *durable_index || has_changed {
            return Err(format!("{range}: {at} lost entry {durable_index}, which was durable"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn commit_without_durable_majority_is_detected() {
        let log = || Log::of(&[(1, 10), (1, 20)]);
        let seen = Observation { commit_index: 2, ..observed(0, log()) };
        let (known, unsynced) =
            (Committed::new(), Observation { durable_index: 1, ..observed(1, log()) });
        let synced = observed(1, log());
        let other = observed(1, Log::of(&[(1, 10), (2, 20)]));
        let check = |seen: &Observation, other: &Observation| {
            Durability.check(None, seen, &known, &BTreeSet::new(), |peer| {
                (peer == other.at).then_some(other)
            })
        };
        check(&seen, &synced).unwrap();
        check(&seen, &unsynced).unwrap_err();
        check(&seen, &other).unwrap_err();
        let chain = Observation { mode: Mode::Chain, ..seen };
        check(&chain, &synced).unwrap_err();
    }

    #[test]
    fn durable_entry_lost_over_restart_is_detected() {
        let log = || Log::of(&[(1, 10), (1, 20), (1, 30)]);
        let before = Observation { durable_index: 2, ..observed(0, log()) };
        Durability.check_restart(&before, &log()).unwrap();
        Durability.check_restart(&before, &Log::of(&[(1, 10), (1, 20)])).unwrap();
        Durability.check_restart(&before, &Log::of(&[(1, 10)])).unwrap_err();
        Durability.check_restart(&before, &Log::of(&[(1, 10), (2, 20)])).unwrap_err();
    }
}
