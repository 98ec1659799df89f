//! Palisade: a sharded, replicated, linearizable store.
//!
//! What a program that uses a cluster adds to its `Cargo.toml`:
//!
//! ```no_run
//! use palisade::{BlockingClient, ClientOptions};
//!
//! # fn main() -> Result<(), palisade::ClientError> {
//! let nodes = ["127.0.0.1:7000".parse().unwrap(), "127.0.0.1:7010".parse().unwrap()];
//! let client = BlockingClient::connect(&nodes, ClientOptions::default())?;
//! client.put("answer", "42")?;
//! assert_eq!(client.get("answer")?.unwrap().value, "42");
//! # Ok(())
//! # }
//! ```

pub use palisade_client::*;
