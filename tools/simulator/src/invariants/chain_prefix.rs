//! A chain member's log is a prefix of its predecessor's (van Renesse and Schneider §4.1: the
//! Update Propagation Invariant).
//!
//! No false alarm: two members are compared only if both run and have their links up in the same
//! epoch. A member that has restarted may have lost entries that it had forwarded. It is not ready
//! before it has fetched them back from its successor.

use palisade_wire::{Mode, PeerAddress};

use super::observation::{Observation, agree};

#[derive(Debug, Default)]
pub(crate) struct ChainPrefix;

impl ChainPrefix {
    pub(crate) const NAME: &'static str = "chain prefix";

    /// Compares a member with its neighbours. `others` returns the last observation of a member.
    pub(crate) fn check<'a>(
        &self,
        seen: &'a Observation,
        others: impl Fn(PeerAddress) -> Option<&'a Observation>,
    ) -> Result<(), String> {
        if seen.mode == Mode::Raft {
            return Ok(());
        }
        let members = &seen.electorates[0];
        let Some(place) = members.iter().position(|member| *member == seen.at) else {
            return Ok(());
        };
        let neighbour = |place: usize| members.get(place).and_then(|member| others(*member));
        if let Some(predecessor) = place.checked_sub(1).and_then(neighbour) {
            compare(predecessor, seen)?;
        }
        if let Some(successor) = neighbour(place + 1) {
            compare(seen, successor)?;
        }
        Ok(())
    }
}

fn compare(predecessor: &Observation, successor: &Observation) -> Result<(), String> {
    let both = [predecessor, successor];
    if both.iter().any(|member| !member.is_ready || !member.is_running)
        || predecessor.epoch != successor.epoch
    {
        return Ok(());
    }
    let last = successor.log.last();
    let same = match (predecessor.log.mark(last), successor.log.mark(last)) {
        (Some(one), Some(other)) => agree(one, other),
        // Entries dropped from memory are committed: `state_machine_safety` compares those.
        _ => last <= predecessor.log.last(),
    };
    if same {
        return Ok(());
    }
    let (range, ahead, at) = (successor.range, successor.at, predecessor.at);
    Err(format!("{range}: the log of {ahead} is no prefix of that of its predecessor {at}"))
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn successor_log_ahead_or_diverged_is_detected() {
        let member = |node, marks| Observation {
            mode: Mode::Chain,
            epoch: 1,
            ..observed(node, Log::of(marks))
        };
        let head = member(0, &[(1, 10), (1, 20)]);
        let check = |successor: &Observation| {
            ChainPrefix.check(successor, |peer| (peer == head.at).then_some(&head))
        };
        check(&member(1, &[(1, 10)])).unwrap();
        check(&member(1, &[(1, 10), (1, 21)])).unwrap_err();
        check(&member(1, &[(1, 10), (1, 20), (1, 30)])).unwrap_err();
        let starting = Observation { is_ready: false, ..member(1, &[(1, 11)]) };
        check(&starting).unwrap();
    }
}
