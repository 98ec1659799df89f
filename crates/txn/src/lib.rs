//! Transactions within a range: the lock table of the leader, the replicated command with its
//! conditions and writes, and the table of outcomes that makes every commit take effect once.
//!
//! Invariants:
//! - A transaction keeps its locks until it ends or loses all of them at once.
//! - A request for locks waits only for older transactions.
//! - A transaction id takes effect at most once, however often and by whichever leader it is
//!   proposed.
//! - A retry gets the outcome of the first run. Another body under the same id is an error. An id
//!   that its session has settled never runs again.
//!
//! The last two are decided when committed entries are applied. So all replicas decide the same,
//! and a new leader knows all outcomes. It does not know the locks, which end with a leadership.

mod command;
mod lock_request;
mod lock_spans;
mod lock_table;
mod outcome;

pub use command::CommitCommand;
pub use lock_request::{LockError, LockEvent, LockRequest, Priority};
pub use lock_spans::{Span, Strength};
pub use lock_table::{IDLE_US, LockTable};
pub use outcome::{Attempt, OutcomeTable, Settled, Verdict};
