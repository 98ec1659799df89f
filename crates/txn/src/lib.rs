//! Transactions, so far without reads of their own: the command that is replicated, with the writes
//! and what must hold for them, and the memory of outcomes that makes every commit happen once.
//!
//! Invariants:
//! - A transaction id takes effect at most once, however often it is proposed, by whichever leader.
//! - A retry gets the outcome of the first run; another body under the same id is an error; an id
//!   that its session had settled is never run again.
//!
//! Both are decided while applying committed entries, so every replica decides alike, and a new
//! leader knows what the old one knew.

mod command;
mod outcome;

pub use command::CommitCommand;
pub use outcome::{OutcomeTable, Settled, Verdict};
