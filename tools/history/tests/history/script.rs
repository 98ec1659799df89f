//! Short constructors of operations on one key, for hand-written histories.

use palisade_history::{Action, Completion, Operation};

pub(crate) const KEY: u32 = 17;

pub(crate) fn operation(action: Action, start_ns: u64, end_ns: u64) -> Operation {
    Operation { process: 1, start_ns, end_ns, key: KEY, action, outcome: Completion::Ok }
}

pub(crate) fn write(value: u64, start_ns: u64, end_ns: u64) -> Operation {
    operation(Action::Write(value), start_ns, end_ns)
}

pub(crate) fn read(value: u64, start_ns: u64, end_ns: u64) -> Operation {
    operation(Action::Read(Some(value)), start_ns, end_ns)
}

pub(crate) fn absent(start_ns: u64, end_ns: u64) -> Operation {
    operation(Action::Read(None), start_ns, end_ns)
}

pub(crate) fn info(operation: Operation) -> Operation {
    Operation { outcome: Completion::Info, ..operation }
}

pub(crate) fn fail(operation: Operation) -> Operation {
    Operation { outcome: Completion::Fail, ..operation }
}
