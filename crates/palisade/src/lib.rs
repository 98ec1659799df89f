//! Palisade: a sharded, replicated, strictly serializable store.
//!
//! This is the crate that a program depends on. The database runs in the program's process or is a
//! cluster:
//!
//! ```
//! use palisade::BlockingDatabase;
//!
//! # fn main() -> Result<(), palisade::OpenError> {
//! // Or file:DIRECTORY, or palisade://HOST:PORT,HOST:PORT.
//! let db = BlockingDatabase::open("mem:")?;
//! db.put("answer", "42")?;
//! assert_eq!(db.get("answer")?.unwrap().value, "42");
//! # Ok(())
//! # }
//! ```

mod database;

pub use database::{BlockingDatabase, Database, OpenError};
pub use palisade_client::*;
