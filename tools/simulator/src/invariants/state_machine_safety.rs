//! No two replicas apply different entries at an index (thesis, figure 3.2: State Machine Safety),
//! and replicas that have applied equally many entries are in the same state.
//!
//! No false alarm: digests cover all entries from the first one, and snapshots carry the digest.

use std::collections::BTreeMap;

use palisade_wire::{PeerAddress, RangeId};

use super::observation::{Committed, Observation, agree};

#[derive(Debug, Default)]
pub(crate) struct StateMachineSafety {
    digests: BTreeMap<(RangeId, u64), (u32, PeerAddress)>,
}

impl StateMachineSafety {
    pub(crate) const NAME: &'static str = "state machine safety";

    /// Checks the entries that a replica has committed above `from`, and adds them to `committed`.
    pub(crate) fn check(
        &mut self,
        from: u64,
        seen: &Observation,
        committed: &mut Committed,
    ) -> Result<(), String> {
        let Observation { at, range, commit_index, applied_index, digest, log, .. } = seen;
        for index in from + 1..=*commit_index {
            // Entries that came with a snapshot are compared by the digest.
            let Some(mark) = log.mark(index) else { continue };
            let (known, _) = *committed.entry(index).or_insert((mark, seen.term));
            if !agree(known, mark) {
                return Err(format!(
                    "{range}: {at} commits {mark:?} at {index}, where {known:?} is committed"
                ));
            }
        }
        let (known, by) = *self.digests.entry((*range, *applied_index)).or_insert((*digest, *at));
        if known != *digest {
            return Err(format!(
                "{range}: {by} and {at} differ in what they applied up to {applied_index}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    fn commits(node: u16, marks: &[(u64, u32)], digest: u32) -> Observation {
        let seen = observed(node, Log::of(marks));
        let index = marks.len() as u64;
        Observation { commit_index: index, applied_index: index, digest, ..seen }
    }

    #[test]
    fn different_entries_at_one_index_are_detected() {
        let (mut invariant, mut committed) = Default::default();
        let mut check = |seen| StateMachineSafety::check(&mut invariant, 0, &seen, &mut committed);
        check(commits(0, &[(1, 10)], 7)).unwrap();
        check(commits(1, &[(1, 10), (2, 20)], 8)).unwrap();
        check(commits(2, &[(2, 10)], 7)).unwrap_err();
        check(commits(2, &[(1, 11)], 7)).unwrap_err();
    }

    #[test]
    fn state_divergence_at_equal_index_is_detected() {
        let (mut invariant, mut committed) = Default::default();
        let mut check = |seen| StateMachineSafety::check(&mut invariant, 0, &seen, &mut committed);
        check(commits(0, &[(1, 10)], 7)).unwrap();
        check(commits(1, &[(1, 10)], 8)).unwrap_err();
    }
}
