//! Deterministic simulation of whole clusters.
//!
//! Rare orders of rare events break a replicated store. A test on real machines sees few of them
//! and cannot repeat one; a model of the protocol checks only the model. Here the production shards
//! run as whole clusters in one thread and in virtual time. The network, the disks, the clocks and
//! the order of events are drawn from a seed. The same seed gives the same run, event by event, so
//! every failure can be reproduced.
//!
//! A run has two phases. While faults are injected, nothing unsafe may happen. After the faults,
//! everything that can work must work again within a time bound. The invariants are checked after
//! every turn of every shard: see `invariants`, one per file. The histories of the clients are
//! checked at the end.
//!
//! Left out: the real log's files and the executor (they have tests of their own), malicious
//! peers, and the loss of more than one node's disk in a run, which Palisade does not promise to
//! survive.

mod clients;
mod clock;
mod faults;
mod interactive;
mod invariants;
mod network;
mod node;
mod operator;
mod parameters;
#[cfg(feature = "planted-faults")]
mod planted;
mod run;
mod script;
mod simulated_log;
mod snapshot_reads;
mod trace;
mod turn_cost;
mod world;

pub use invariants::Violation;
pub use parameters::{ALL_FAULTS, FaultKind, Parameters};
#[cfg(feature = "planted-faults")]
pub use planted::{MAX_SEEDS, PLANTED_FAULTS, PlantedFault};
pub use run::{Failure, Summary, explain, simulate};
pub use trace::Trace;
pub use world::World;
