//! The control plane's state machine: which ranges there are, how and by whom they are replicated.
//!
//! Invariants:
//! - The ranges cover the whole key space without overlap, whatever changes were applied.
//! - A range's epoch rises by one with each change of its members.
//!
//! The map is replicated by a Raft group of its own, range 0. Knows nothing of how it is
//! replicated, nor of who is alive: whoever proposes a change has found that out.
//!
//! Left out so far: failure detection, placement, splits, moves and switches of mode.

mod bootstrap;
mod range_map;
mod topology;

pub use bootstrap::{Bootstrap, MAX_RANGES, ShapeChanged, range_map_of_one};
pub use range_map::{Change, InvalidChange, RangeDescriptor, RangeMap};
pub use topology::{NodeAddress, Topology};
