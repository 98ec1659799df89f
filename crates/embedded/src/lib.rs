//! Driver of an embedded database: one shard, whose log is in a directory or in memory.
//!
//! The shard and its log are those of a node. Two plain threads drive them instead of an `io_uring`
//! executor: a program that embeds a database should not have to allow locked memory, and there are
//! no sockets to wait for.
//!
//! Invariants:
//! - Only the shard's thread touches the shard.
//! - Acknowledged writes are durable if there is a directory. In memory, they last as long as the
//!   engine.
//! - After a failed sync the engine stops, because the contents of the disk are unknown. It also
//!   stops when the disk is full and a required write does not fit. Calls then fail with
//!   `ClientError::Closed`.
//!
//! The clock reads the machine's wall clock once, when the engine starts, and then follows the
//! monotonic clock. It starts above every timestamp in the log. No other clock can differ from it,
//! so no commit waits for an error bound, and setting the machine's clock has no effect.
#![allow(clippy::disallowed_methods, reason = "drives the real machine")]

mod clock;
mod engine;
mod storage;

pub use engine::{Engine, OpenError};
