//! The load generator: closed and open loops of puts and gets, their latencies, and their history.
//!
//! A closed loop has a fixed number of clients, each of which sends its next operation when its
//! last one is answered. An open loop has a fixed rate: operations fall due on a schedule that does
//! not depend on responses. Their latency counts from the time at which they were due, so that a
//! stall also counts for the operations that it delayed.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measures real time")]

mod keys;
mod load;
mod measure;
mod pacer;
mod session;

pub use keys::Keys;
pub use load::{LoadError, LoadOptions, Workload, preload, read_back, run};
pub use measure::{Backlog, Measured, Moment, Percentiles, TimeBucket};
