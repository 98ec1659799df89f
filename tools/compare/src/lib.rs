//! Comparison of the two replication modes, and single runs of the benchmark.
//!
//! Every run of a comparison has its own cluster of real processes, so that no run inherits the log
//! of another. The history of every run is checked, independent of its figures.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "measures real time")]

mod compare;
mod machine;
mod output;
pub mod report;
pub mod results;
pub mod table;
mod trial;

pub use compare::{CompareOptions, compare};
pub use machine::machine;
pub use output::{OutputError, check_histories, write_all, write_history_file, write_results};
pub use trial::{Finished, Servers, Trial, TrialError, run_trial};
