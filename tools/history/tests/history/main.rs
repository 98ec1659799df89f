//! The check against histories of known standing, and the stored form against itself.

mod accepted;
mod agreement;
mod anomalies;
mod appends;
mod jsonl;
mod script;
mod search;
mod simulated;
mod timestamps;
