//! Transactions within a range: the lock table of its leader, the command that is replicated, with
//! the writes and what must hold for them, and the memory of outcomes that makes every commit happen
//! once.
//!
//! Invariants:
//! - Who holds a lock keeps it until its transaction ends or loses all of them; whoever waits, waits
//!   for somebody older.
//! - A transaction id takes effect at most once, however often it is proposed, by whichever leader.
//! - A retry gets the outcome of the first run; another body under the same id is an error; an id
//!   that its session had settled is never run again.
//!
//! The last two are decided while applying committed entries, so every replica decides alike, and a
//! new leader knows what the old one knew. Locks it does not know: they end with a leadership.

mod command;
mod lock_request;
mod lock_table;
mod outcome;
mod segments;

pub use command::CommitCommand;
pub use lock_request::{LockError, LockEvent, LockRequest, Priority};
pub use lock_table::{IDLE_US, LockTable};
pub use outcome::{Attempt, OutcomeTable, Settled, Verdict};
pub use segments::{Span, Strength};
