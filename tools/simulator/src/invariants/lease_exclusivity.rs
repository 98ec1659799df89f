//! A leader that reads under a lease is the latest: while the lease lasts, no later term has a leader
//! (thesis §6.4.1). Whatever a later leader commits, the earlier one would not see.
//!
//! No false alarm: a lease ends before the promises that it rests on, however the clocks drift within
//! their bounds, and a leader that hands over gives its lease up first.

use std::collections::BTreeMap;

use palisade_wire::{PeerAddress, RangeId, Role};

use super::observation::Observation;

#[derive(Debug, Default)]
pub(crate) struct LeaseExclusivity {
    /// The latest term that had a leader, and which.
    latest: BTreeMap<RangeId, (u64, PeerAddress)>,
}

impl LeaseExclusivity {
    pub(crate) const NAME: &'static str = "a lease excludes later leaders";

    /// Takes note of who leads.
    pub(crate) fn note(&mut self, seen: &Observation) {
        if seen.role == Role::Leader {
            let latest = self.latest.entry(seen.range).or_insert((seen.term, seen.at));
            *latest = (*latest).max((seen.term, seen.at));
        }
    }

    /// A leader of a term has a lease at present.
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
    fn a_lease_that_outlives_the_next_election_is_noticed() {
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
