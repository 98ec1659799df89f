//! A leader commits by counting copies of entries of its own term only, so it advances its commit
//! index to an entry of that term (thesis §3.6.2, figure 3.7). An entry of an earlier term may be
//! on a majority and still be replaced.
//!
//! No false alarm: only a replica that already led the same term before the turn is checked. Such a
//! replica does not take a commit index from another one.

use palisade_wire::Role;

use super::observation::Observation;

#[derive(Debug, Default)]
pub(crate) struct OwnTermCommits;

impl OwnTermCommits {
    pub(crate) const NAME: &'static str = "leaders commit entries of their own term";

    pub(crate) fn check(
        &self,
        before: Option<&Observation>,
        seen: &Observation,
    ) -> Result<(), String> {
        let Some(before) = before.filter(|before| before.is_running) else { return Ok(()) };
        let leads_on = [before, seen].iter().all(|replica| replica.role == Role::Leader)
            && before.term == seen.term;
        if !leads_on || seen.commit_index == before.commit_index {
            return Ok(());
        }
        let Observation { at, range, term, commit_index, log, .. } = seen;
        match log.mark(*commit_index) {
            Some((of_term, _)) if of_term != *term => Err(format!(
                "{range}: {at}, which leads term {term}, commits {commit_index} of term {of_term}"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::observation::*, *};

    #[test]
    fn commit_by_counting_earlier_term_entry_is_detected() {
        let leader = |commit_index| {
            let seen = observed(0, Log::of(&[(1, 10), (1, 20), (2, 30)]));
            Observation { role: Role::Leader, term: 2, commit_index, ..seen }
        };
        let check = |from, to| OwnTermCommits.check(Some(&leader(from)), &leader(to));
        check(1, 3).unwrap();
        check(1, 1).unwrap();
        check(1, 2).unwrap_err();
    }
}
