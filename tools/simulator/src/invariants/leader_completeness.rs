//! A leader holds every entry that was committed in an earlier term (thesis, figure 3.2: Leader
//! Completeness). Checked when a replica is first seen as the leader of its term.
//!
//! No false alarm: late votes may elect the leader of a term after a later term has committed
//! entries. So a leader must hold only entries whose commit was first seen in an earlier term.
//! Entries in its snapshot are below its log's base: `state_machine_safety` compares their digest.

use palisade_wire::Role;

use super::observation::{Committed, Observation, agree};

#[derive(Debug, Default)]
pub(crate) struct LeaderCompleteness;

impl LeaderCompleteness {
    pub(crate) const NAME: &'static str = "leader completeness";

    pub(crate) fn check(
        &self,
        before: Option<&Observation>,
        seen: &Observation,
        committed: &Committed,
    ) -> Result<(), String> {
        let was = |before: &Observation| (before.role, before.term) == (Role::Leader, seen.term);
        if seen.role != Role::Leader || before.is_some_and(was) {
            return Ok(());
        }
        let Observation { at, range, term, log, .. } = seen;
        let earlier = committed.range(log.base() + 1..).filter(|(_, (_, in_term))| in_term < term);
        for (index, (mark, _)) in earlier {
            match log.mark(*index) {
                Some(held) if agree(held, *mark) => {}
                held => {
                    return Err(format!(
                        "{range}: {at} leads term {term} and has {held:?} at {index}, where \
                         {mark:?} is committed"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn leader_without_committed_entry_is_detected() {
        let committed = Committed::from([(1, ((1, Some(10)), 1)), (2, ((1, Some(20)), 1))]);
        let leader = |marks: &[(u64, u32)]| Observation {
            role: Role::Leader,
            term: 2,
            ..observed(0, Log::of(marks))
        };
        let check =
            |marks: &[(u64, u32)]| LeaderCompleteness.check(None, &leader(marks), &committed);
        check(&[(1, 10), (1, 20), (2, 30)]).unwrap();
        check(&[(1, 10)]).unwrap_err();
        check(&[(1, 10), (2, 20)]).unwrap_err();
        check(&[(1, 10), (1, 21)]).unwrap_err();
        let late = Observation { term: 1, ..leader(&[]) };
        LeaderCompleteness.check(None, &late, &committed).unwrap();
    }
}
