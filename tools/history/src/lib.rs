//! Checks recorded histories: register operations for linearizability, transactions over lists for
//! strict serializability, and timestamped operations for agreement with their timestamps.
//!
//! A load generator records each client's requests, their start and end times, and the responses.
//! This crate stores such a history and checks it:
//!
//! * [`Operation`] is one put or get of one key, small enough to keep millions in memory.
//! * [`write_history`] and [`read_history`] store a history as JSON lines, so that a failing run
//!   can be kept, read by a person and checked again.
//! * [`check`] decides in O(n log n) whether some order of the operations explains every response.
//!   If none does, it names the operations that no order can explain.
//! * [`check_appends`] decides the same for [`Transaction`]s that append to lists and read them.
//! * [`check_timestamps`] decides whether [`TimestampedOperation`]s of all kinds, over all keys,
//!   agree with the timestamps in their responses and with real time.
//!
//! Left out: transactions over registers, and register operations other than put and get. A delete
//! or a compare-and-set breaks an assumption of the fast algorithm. The crate reads no clock. The
//! recorder supplies all times, which must come from one clock or from clocks that agree.
//!
//! ```
//! use palisade_history::{Action, Operation, Completion, Violation, check};
//!
//! let write = |value, start_ns, end_ns| Operation {
//!     process: 1,
//!     start_ns,
//!     end_ns,
//!     key: 17,
//!     action: Action::Write(value),
//!     outcome: Completion::Ok,
//! };
//! let stale = Operation { process: 2, action: Action::Read(Some(5)), ..write(5, 50, 60) };
//! let history = [write(5, 10, 20), write(6, 30, 40), stale];
//! assert!(matches!(check(&history), Err(Violation::StaleRead(_))));
//! assert!(check(&history[..2]).is_ok());
//! ```

pub mod append;
pub mod jsonl;
pub mod linearizability;
mod record;
pub mod timestamps;
mod violation;
mod zone;

pub use append::{AppendViolation, Step, Transaction, check_appends};
pub use jsonl::{HistoryError, read_history, write_history};
pub use linearizability::{Checked, check};
pub use record::{Action, Completion, Operation};
pub use timestamps::{TimestampViolation, TimestampedOperation, check_timestamps};
pub use violation::{Conflict, ValueInterval, Violation};
