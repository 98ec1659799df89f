//! What the calls of a client return.

use std::time::Duration;

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_wire::Outcome;

use crate::{ClientError, error::unexpected};

/// A value and the timestamp of its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value, at most [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) bytes.
    pub value: Bytes,
    /// The commit timestamp of the write. [`Expected::Version`](crate::Expected::Version) accepts
    /// it.
    pub version_ts: Timestamp,
}

impl Versioned {
    /// Converts the outcome of a read of one key.
    pub(crate) fn of(outcome: Outcome) -> Result<Option<Self>, ClientError> {
        match outcome {
            Outcome::Value { version_ts, value, .. } => {
                Ok(value.map(|value| Self { value, version_ts }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A commit that is durable and replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The timestamp of the new versions. It is above every timestamp that had been returned to any
    /// client when the commit was requested.
    pub commit_ts: Timestamp,
    /// How long the acknowledgement waited for the timestamp to pass, after replication was done.
    /// Whole microseconds. Zero if an earlier try had committed already.
    pub waited: Duration,
}

/// Counters of a client and its clones, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Number of requests that were sent again, and of transactions that were run again.
    pub retries: u64,
}
