//! While a leader has a lease, no later term has a leader (thesis §6.4.1). A read under the lease
//! would miss the commits of a later leader.
//!
//! No false alarm: a lease ends before the promises that it depends on, as long as clocks drift
//! within their bounds. A leader that transfers leadership gives up its lease first.

use std::collections::BTreeMap;

use palisade_wire::{PeerAddress, RangeId, Role};

use super::observation::Observation;

#[derive(Debug, Default)]
pub(crate) struct LeaseExclusivity {
    /// The latest term that had a leader, and that leader.
    latest: BTreeMap<RangeId, (u64, PeerAddress)>,
}

impl LeaseExclusivity {
    pub(crate) const NAME: &'static str = "a lease excludes later leaders";

    /// Records the replica if it leads.
    pub(crate) fn note(&mut self, seen: &Observation) {
        if seen.role == Role::Leader {
            let latest = self.latest.entry(seen.range).or_insert((seen.term, seen.at));
            *latest = (*latest).max((seen.term, seen.at));
        }
    }

    /// Checks a leader that has a lease in a term at present.
    pub(crate) fn check(&self, range: RangeId, at: PeerAddress, term: u64) -> Result<(), String> {
        match self.latest.get(&range) {
            Some((latest, leader)) if *latest > term => Err(format!(
                "{range}: {at} has a lease in term {term}, and {leader} leads term {latest}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn lease_held_past_next_election_is_detected() {
        let leader = |node, term| {
            let seen = observed(node, Log::new());
            Observation { role: Role::Leader, term, ..seen }
        };
        let mut invariant = LeaseExclusivity::default();
        let old = leader(0, 1);
        invariant.note(&old);
        invariant.check(old.range, old.at, old.term).unwrap();
        invariant.note(&leader(1, 2));
        invariant.check(old.range, old.at, old.term).unwrap_err();
    }
}
