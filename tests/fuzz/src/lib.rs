//! The checks that the fuzz targets run. `tests/fuzz_corpus.rs` of the main workspace includes the
//! same files, and runs them on the corpus in `cargo test`.

pub mod client_messages;
pub mod frames;
pub mod log_payloads;
pub mod peer_messages;
mod round_trip;
pub mod wal_recovery;
