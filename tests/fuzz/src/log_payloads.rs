//! The payloads of log records and of snapshots: commands, outcomes, the range map and the shape of
//! the cluster.
//!
//! Left out, because their decoders are private: `Members` and Raft's state, a chain's members, the
//! admission record, and the items of a snapshot.

use bytes::Bytes;
use palisade_control::{Bootstrap, Change, RangeDescriptor, RangeMap};
use palisade_txn::{CommitCommand, OutcomeTable};

use crate::round_trip::{exact, postcard};

/// Checks `data` as a payload of each type. Returns true if it decodes as one of them.
pub fn check(data: &[u8]) -> bool {
    let decoded = [
        exact(data, CommitCommand::from_payload, CommitCommand::to_payload),
        outcomes(data),
        postcard(data, Change::from_bytes, Change::to_bytes),
        postcard(data, RangeMap::from_bytes, RangeMap::to_bytes),
        postcard(data, RangeDescriptor::from_bytes, |descriptors: &Vec<_>| {
            RangeDescriptor::to_bytes(descriptors.iter())
        }),
        postcard(data, Bootstrap::from_bytes, Bootstrap::to_bytes),
    ];
    decoded.contains(&true)
}

/// Checks `data` as the outcomes of one session.
fn outcomes(data: &[u8]) -> bool {
    let mut table = OutcomeTable::new();
    if table.restore(Bytes::copy_from_slice(data)).is_err() {
        return false;
    }
    let pieces: Vec<_> = table.to_pieces().collect();
    assert_eq!(pieces, [data], "the table returns another piece");
    true
}
