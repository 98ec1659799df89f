//! The multi-version store of a range. It is in memory, and is rebuilt from the log at a restart.
//!
//! Invariants:
//! - The versions of a key are ordered by timestamp. No version is written below an existing one.
//! - A read at or above the horizon returns the newest version at its timestamp. A read below the
//!   horizon is refused, because the version that it needs may have been collected.
//! - Garbage collection drops only versions that no read at or above the horizon can see, and
//!   eventually drops all of them.
//!
//! The store does not depend on logs or replication: everything applied to it is committed.
//!
//! Left out: the delete of a span as one version (each key in it is deleted on its own), and data
//! larger than memory.

mod history;
mod index;
mod key_hash;
mod slots;
mod store;

pub use store::{Collected, LiveData, PageEnd, Store, Version};
