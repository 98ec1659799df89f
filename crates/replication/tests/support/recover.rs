//! What a new start of a replica finds, for the scripts and the conformance suite.

use palisade_replication::{Append, RecoveredGroup};

/// Returns what a replica recovers from its writes, in the order of the log.
pub(crate) fn recover(writes: &[Append]) -> RecoveredGroup {
    let mut recovered = RecoveredGroup::default();
    for write in writes {
        match write {
            Append::Entry(entry) => {
                recovered.entries.truncate(entry.index as usize - 1);
                recovered.entries.push(entry.clone());
            }
            Append::State { term, payload } => {
                recovered.state = Some((*term, payload.clone()));
            }
            Append::Snapshot { .. } => unreachable!("these tests take no snapshots"),
        }
    }
    recovered
}
