//! The multi-version store of a range, in memory; rebuilt from the log at a restart.
//!
//! Invariants:
//! - The versions of a key lie in the order of their timestamps, and a version is never written
//!   below one that is there already.
//! - A read at a timestamp not below the horizon sees exactly what was newest then; below it, a read
//!   is refused, because what it would see may have been collected.
//! - What is collected is what no read at or above the horizon can see: nothing else, and, in time,
//!   all of it.
//!
//! Knows nothing of logs or replication: what is applied here is committed.
//!
//! Left out: deletes of spans as one version (they are deletes of the keys in them), and data larger
//! than memory.

mod history;
mod index;
mod slots;
mod store;

pub use store::{Collected, Store, Version};
