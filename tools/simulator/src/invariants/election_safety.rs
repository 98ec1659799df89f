//! A Raft term has at most one leader (thesis, figure 3.2: Election Safety).
//!
//! No false alarm: a replica becomes leader of a term only with a majority's votes in that term. If
//! a leader steps down and is later seen to lead the same term again, it is the same replica.

use std::collections::BTreeMap;

use palisade_wire::{PeerAddress, RangeId, Role};

use super::observation::Observation;

#[derive(Debug, Default)]
pub(crate) struct ElectionSafety {
    leaders: BTreeMap<(RangeId, u64), PeerAddress>,
}

impl ElectionSafety {
    pub(crate) const NAME: &'static str = "election safety";

    pub(crate) fn check(&mut self, seen: &Observation) -> Result<(), String> {
        if seen.role != Role::Leader {
            return Ok(());
        }
        let Observation { at, range, term, .. } = seen;
        let leader = *self.leaders.entry((*range, *term)).or_insert(*at);
        if leader == *at {
            return Ok(());
        }
        Err(format!("{range} has two leaders in term {term}: {leader} and {at}"))
    }

    /// Returns the number of terms that have had a leader, over all ranges.
    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn two_leaders_in_one_term_are_detected() {
        let leader = |node, term| {
            let seen = observed(node, Log::new());
            Observation { role: Role::Leader, term, ..seen }
        };
        let mut invariant = ElectionSafety::default();
        invariant.check(&leader(0, 1)).unwrap();
        invariant.check(&leader(1, 2)).unwrap();
        invariant.check(&leader(1, 2)).unwrap();
        invariant.check(&leader(0, 2)).unwrap_err();
    }
}
