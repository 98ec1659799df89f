//! Whoever starts after having learned of a commit commits later: in true time, over all keys and
//! ranges (Spanner, OSDI'12 §1, "external consistency"). A reader learns of what it reads.
//!
//! The check of histories looks at one key at a time, and would not notice.
//!
//! No false alarm: learned is counted when an answer has arrived, and start when nothing was sent.

use palisade_clock::Timestamp;
use palisade_wire::Outcome;

#[derive(Debug, Default)]
pub(crate) struct ExternalConsistency {
    known_ts: Timestamp,
}

impl ExternalConsistency {
    pub(crate) const NAME: &'static str = "commits are ordered as the world saw them";

    /// The largest timestamp that anybody knows of.
    pub(crate) fn known_ts(&self) -> Timestamp {
        self.known_ts
    }

    /// An answer has come to an operation that began when `known_ts` was known.
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
    fn a_causal_reverse_is_noticed_through_writers_and_readers() {
        let mut invariant = ExternalConsistency::default();
        let before = invariant.known_ts();
        invariant.check(&committed(10), before).unwrap();
        // It had begun before that was known.
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
