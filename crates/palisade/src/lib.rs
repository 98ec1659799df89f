//! Palisade: a sharded, replicated, strictly serializable store.
//!
//! What a program adds to its `Cargo.toml`, whether the database is in its own process or a cluster:
//!
//! ```
//! use palisade::BlockingDatabase;
//!
//! # fn main() -> Result<(), palisade::OpenError> {
//! let db = BlockingDatabase::open("mem:")?; // or file:DIRECTORY, or palisade://HOST:PORT,HOST:PORT
//! db.put("answer", "42")?;
//! assert_eq!(db.get("answer")?.unwrap().value, "42");
//! # Ok(())
//! # }
//! ```

mod database;

pub use database::{BlockingDatabase, Database, OpenError};
pub use palisade_client::*;
