//! One operation as its client saw it: the request, its start and end, and the response.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The action of an operation on its register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A put of this value. No value is put twice to one key, so a read identifies its write.
    Write(u64),
    /// A get that returned this value; `None` means that the key was absent.
    ///
    /// The value is meaningful only if the outcome is [`Completion::Ok`].
    Read(Option<u64>),
}

impl Action {
    /// Returns the value written or read; `None` means that the key was absent.
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Write(value) => Some(value),
            Self::Read(value) => value,
        }
    }
}

/// The outcome of an operation, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Completion {
    /// The operation took effect between its start and its end.
    Ok,
    /// The operation had no effect and never will have one.
    Fail,
    /// Unknown: the operation may have taken effect, may do so at any later time, or never will.
    Info,
}

/// One recorded operation on one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// The client that issued the operation. Used in messages only: the check looks at times.
    pub process: u32,
    /// When the client sent the request, in nanoseconds.
    pub start_ns: u64,
    /// When the client received the response, in nanoseconds. For a [`Completion::Info`] operation,
    /// when it stopped waiting.
    pub end_ns: u64,
    /// The index of the key.
    pub key: u32,
    /// The request, and for a read the value that it returned.
    pub action: Action,
    /// The outcome, as far as the client knows.
    pub outcome: Completion,
}

impl Operation {
    /// Returns the last instant at which the operation can take effect. For an unknown outcome this
    /// is `u64::MAX`: the request may still be queued when its client gives up.
    pub(crate) const fn latest_effect_ns(&self) -> u64 {
        match self.outcome {
            Completion::Info => u64::MAX,
            Completion::Ok | Completion::Fail => self.end_ns,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, start_ns, end_ns, key, action, outcome } = *self;
        write!(f, "process {process} ")?;
        match (action, outcome) {
            (Action::Write(value), Completion::Ok) => write!(f, "wrote {value} to k{key}"),
            (Action::Write(value), Completion::Fail) => {
                write!(f, "failed to write {value} to k{key}")
            }
            (Action::Write(value), Completion::Info) => write!(f, "maybe wrote {value} to k{key}"),
            (Action::Read(Some(value)), Completion::Ok) => write!(f, "read {value} from k{key}"),
            (Action::Read(None), Completion::Ok) => write!(f, "found k{key} absent"),
            (Action::Read(_), Completion::Fail) => write!(f, "failed to read k{key}"),
            (Action::Read(_), Completion::Info) => write!(f, "had no answer to a read of k{key}"),
        }?;
        match outcome {
            Completion::Info => write!(f, " [{start_ns} ns, unknown]"),
            Completion::Ok | Completion::Fail => write!(f, " [{start_ns}, {end_ns} ns]"),
        }
    }
}
