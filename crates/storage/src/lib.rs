//! The multi-version store of a range, in memory; rebuilt from the log at a restart.
//!
//! Invariants:
//! - The versions of a key lie in the order of their timestamps, and a version is never written
//!   below one that is there already.
//! - A read at a timestamp not below the retention horizon sees exactly what was newest then.
//!
//! Knows nothing of logs or replication: what is applied here is committed.
//!
//! Left out so far: deletes, scans, checkpoints, data larger than memory, and collection of
//! versions of keys that are not written again.

mod store;

pub use store::Store;
