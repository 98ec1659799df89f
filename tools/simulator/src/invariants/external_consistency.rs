//! A commit that starts after another commit became known gets a later timestamp: in true time,
//! over all keys and ranges (Spanner, OSDI'12 §1, "external consistency"). A commit becomes known
//! when it is acknowledged or when a read returns it.
//!
//! The linearizability check of histories covers one key at a time, and would not detect this.
//!
//! No false alarm: a commit counts as known when the answer has arrived. An operation counts as
//! started before its first request is sent.

use palisade_clock::Timestamp;
use palisade_wire::Outcome;

#[derive(Debug, Default)]
pub(crate) struct ExternalConsistency {
    known_ts: Timestamp,
}

impl ExternalConsistency {
    pub(crate) const NAME: &'static str = "commits are ordered as the world saw them";

    /// Returns the largest timestamp that any client knows.
    pub(crate) fn known_ts(&self) -> Timestamp {
        self.known_ts
    }

    /// Checks the answer to an operation that began when `known_ts` was known.
    pub(crate) fn check(&mut self, outcome: &Outcome, known_ts: Timestamp) -> Result<(), String> {
        if let Outcome::Committed { commit_ts, .. } = outcome
            && *commit_ts <= known_ts
        {
            return Err(format!(
                "a write is committed at {commit_ts}, and when it began {known_ts} was known"
            ));
        }
        self.known_ts = self.known_ts.max(outcome.visible_ts().unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use palisade_wire::Basis;

    use super::*;

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    fn committed(us: u64) -> Outcome {
        Outcome::Committed { commit_ts: ts(us), waited_us: 0 }
    }

    #[test]
    fn causal_reverse_after_commit_or_read_is_detected() {
        let mut invariant = ExternalConsistency::default();
        let before = invariant.known_ts();
        invariant.check(&committed(10), before).unwrap();
        // It began before the commit at 10 was known.
        invariant.check(&committed(9), before).unwrap();
        invariant.check(&committed(9), invariant.known_ts()).unwrap_err();
        invariant
            .check(
                &Outcome::Value {
                    basis: Basis::Latest,
                    version_ts: ts(20),
                    value: Some(Bytes::new()),
                },
                ts(10),
            )
            .unwrap();
        invariant.check(&committed(19), invariant.known_ts()).unwrap_err();
        invariant.check(&committed(21), invariant.known_ts()).unwrap();
    }
}
