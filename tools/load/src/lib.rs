//! The load generator: closed and open loops of puts and gets, their latencies, and their history.
//!
//! A closed loop has so many clients, each of which sends its next operation when its last one is
//! answered. An open loop has a rate: operations fall due on a schedule that no answer delays, and
//! their latency counts from the moment they were due, so that a stall is not hidden by the
//! operations that it kept from being sent.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measures real time")]

mod keys;
mod load;
mod measure;
mod pacer;
mod session;

pub use keys::Keys;
pub use load::{LoadError, LoadOptions, Workload, preload, read_back, run};
pub use measure::{Backlog, Measured, Moment, Percentiles, TimeBucket};
