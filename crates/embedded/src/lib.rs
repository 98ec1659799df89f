//! The driver of a database inside a program: one shard, whose log is a directory, or nothing.
//!
//! The same shard as a node's, with the same log, driven by two plain threads instead of an executor
//! with a ring: a program that embeds a database should not have to grant it locked memory, and has
//! no sockets for it to wait on.
//!
//! Invariants:
//! - The shard is touched by its own thread alone.
//! - What is acknowledged is durable, if there is a directory. In memory it lasts as long as the
//!   engine.
//! - A failed sync ends the engine: after it nobody knows what the disk holds. So does a full disk
//!   that leaves no room for what must be written. Calls end by their deadlines then.
//!
//! The clock is the machine's as it was when the engine started, and runs on by itself: there is
//! nobody whose clock could differ, so nothing waits for a bound, and setting the machine's clock
//! moves nothing. It never begins before what the log holds.
#![allow(clippy::disallowed_methods, reason = "drives the real machine")]

mod clock;
mod engine;
mod storage;

pub use engine::{Engine, OpenError};
