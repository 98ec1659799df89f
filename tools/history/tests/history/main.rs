//! Tests of the checks on histories with a known verdict, and of the stored form.

mod accepted;
mod agreement;
mod anomalies;
mod appends;
mod jsonl;
mod script;
mod search;
mod simulated;
mod timestamps;
