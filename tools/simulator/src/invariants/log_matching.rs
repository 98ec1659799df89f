//! If two logs hold an entry with the same index and term, they are equal up to that entry (thesis,
//! figure 3.2: Log Matching).
//!
//! No false alarm: marks are compared only if all entries before them were seen. Chains are not
//! checked here, although a member orders only in its own epoch and an epoch has one head: an index
//! may be ordered twice in one epoch, after every member lost the first entry. Chains are compared
//! by committed entries (`state_machine_safety`) and between neighbours (`chain_prefix`) instead.

use std::collections::BTreeMap;

use palisade_wire::{Mode, PeerAddress, RangeId};

use super::observation::Observation;

#[derive(Debug, Default)]
pub(crate) struct LogMatching {
    sums: BTreeMap<(RangeId, u64, u64), (u32, PeerAddress)>,
}

impl LogMatching {
    pub(crate) const NAME: &'static str = "log matching";

    pub(crate) fn check(&mut self, seen: &Observation) -> Result<(), String> {
        if seen.mode == Mode::Chain {
            return Ok(());
        }
        for index in seen.fresh.0..=seen.fresh.1 {
            let Some((term, Some(sum))) = seen.log.mark(index) else { continue };
            let place = (seen.range, index, term);
            let (known, by) = *self.sums.entry(place).or_insert((sum, seen.at));
            if known != sum {
                let (range, at) = (seen.range, seen.at);
                return Err(format!(
                    "{range}: {by} and {at} hold an entry {index} of term {term}, but differ there \
                     or before"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn logs_diverging_before_matching_entry_are_detected() {
        let mut invariant = LogMatching::default();
        invariant.check(&observed(0, Log::of(&[(1, 10), (1, 20)]))).unwrap();
        invariant.check(&observed(1, Log::of(&[(1, 10), (2, 30)]))).unwrap();
        invariant.check(&observed(2, Log::of(&[(1, 11), (1, 21)]))).unwrap_err();
    }
}
