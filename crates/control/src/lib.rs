//! The control plane's state machine: the map of all ranges, with their replication mode and
//! members.
//!
//! Invariants:
//! - The ranges cover the whole key space without overlap, after any sequence of changes.
//! - A range's epoch rises by one with each change of its members.
//!
//! The map is replicated by a Raft group of its own, range 0. This crate knows nothing of that
//! replication, nor of which nodes are live: the proposer of a change must have checked that.
//!
//! Left out so far: failure detection, placement, splits, moves and switches of mode.

mod bootstrap;
mod range_map;
mod topology;

pub use bootstrap::{Bootstrap, MAX_RANGES, ShapeChanged, range_map_of_one};
pub use range_map::{Change, InvalidChange, RangeDescriptor, RangeMap};
pub use topology::{NodeAddress, Topology};
