//! A replica's term, commit index and applied index never decrease while it runs, and it applies
//! committed entries only. Over a restart, its term does
//! not fall below the last durable one (thesis §3.3, §3.8).
//!
//! No false alarm: over a restart, the term is compared only if the replica led in it before the
//! crash. A candidate asks for votes only after its own vote is durable.

use palisade_wire::Role;

use super::observation::Observation;

#[derive(Debug, Default)]
pub(crate) struct Monotone;

impl Monotone {
    pub(crate) const NAME: &'static str = "terms and commit indexes rise";

    pub(crate) fn check(
        &self,
        before: Option<&Observation>,
        seen: &Observation,
    ) -> Result<(), String> {
        let Some(before) = before else { return Ok(()) };
        let Observation { at, range, term, commit_index, applied_index, .. } = seen;
        let restarted = !before.is_running;
        if *term < before.term && (!restarted || before.role == Role::Leader) {
            return Err(format!("{range}: {at} went from term {} to {term}", before.term));
        }
        if !restarted && *commit_index < before.commit_index {
            let from = before.commit_index;
            return Err(format!("{range}: {at} went from commit index {from} to {commit_index}"));
        }
        if !restarted && *applied_index < before.applied_index || applied_index > commit_index {
            let from = before.applied_index;
            return Err(format!(
                "{range}: {at} has applied {from}, then {applied_index} of {commit_index}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn term_or_commit_index_decrease_is_detected() {
        let seen = |term, commit_index| Observation {
            term,
            commit_index,
            ..observed(0, Log::of(&[(1, 10), (1, 20)]))
        };
        let check = |before: &Observation, seen| Monotone.check(Some(before), &seen);
        check(&seen(2, 1), seen(2, 2)).unwrap();
        check(&seen(2, 1), seen(1, 1)).unwrap_err();
        check(&seen(2, 2), seen(3, 1)).unwrap_err();
        let crashed = Observation { is_running: false, ..seen(2, 2) };
        check(&crashed, seen(1, 0)).unwrap();
        let applied = |applied_index| Observation { applied_index, ..seen(2, 2) };
        check(&applied(1), applied(2)).unwrap();
        check(&applied(1), applied(0)).unwrap_err();
        check(&applied(1), applied(3)).unwrap_err();
        let led = Observation { role: Role::Leader, ..crashed };
        check(&led, seen(1, 0)).unwrap_err();
    }
}
