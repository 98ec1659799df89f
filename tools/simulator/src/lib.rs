//! Deterministic simulation of whole clusters.
//!
//! The problem: what breaks a replicated store are rare orders of rare events, and a test on real
//! machines sees few of them, never the same one twice. The naive way out, a model of the protocol,
//! checks the model. Here the production shards run, whole clusters of them, in one thread and in
//! virtual time; the network, the disks, the clocks and the order of events are drawn from a seed.
//! The same seed gives the same run, event by event, so that whatever is found can be looked at.
//!
//! A run has two phases: faults, under which nothing unsafe may happen; then peace, in which
//! everything that can work must work within a bound. What must hold is checked after every turn of
//! every shard: see `invariants`, one a file. What clients saw is checked at the end.
//!
//! Left out: the real log's files and the executor (they have tests of their own), malicious
//! peers, and more than one node a run that loses its disk: nothing promises to survive that.

mod clients;
mod clock;
mod disk;
mod faults;
mod interactive;
mod invariants;
mod network;
mod node;
mod operator;
mod parameters;
mod run;
mod script;
mod snapshot_reads;
mod trace;
mod world;

pub use invariants::Violation;
pub use parameters::{ALL_FAULTS, FaultKind, Parameters};
pub use run::{Failure, Summary, explain, simulate};
pub use trace::Trace;
pub use world::World;
