//! One operation as a client saw it: what it asked, when, and what it was told.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an operation did to its register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A put of this value. No value is put twice to one key: a read then names its write.
    Write(u64),
    /// A get, with the value it returned; `None` is the answer that the key is absent.
    ///
    /// The value means something only when the outcome is [`Outcome::Ok`].
    Read(Option<u64>),
}

impl Action {
    /// The value written or returned; `None` is the absence of the key.
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Write(value) => Some(value),
            Self::Read(value) => value,
        }
    }
}

/// What the client knows of the operation's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It took effect between its start and its end.
    Ok,
    /// It certainly had no effect, and never will.
    Fail,
    /// Unknown: it may have taken effect, may still do so at any later time, or never will.
    Info,
}

/// One recorded operation on one register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// The client that issued it. It serves to name the operation to a person: the check looks only
    /// at times.
    pub process: u32,
    /// When the client sent the request.
    pub start_ns: u64,
    /// When the client had the answer; of an [`Outcome::Info`] operation, when it stopped waiting.
    pub end_ns: u64,
    /// The index of the key.
    pub key: u32,
    /// What was asked for, and for a read what was answered.
    pub action: Action,
    /// What the client knows of the operation's end.
    pub outcome: Outcome,
}

impl Operation {
    /// The last instant at which the operation may take effect. A request whose outcome is unknown
    /// may be lying in a queue, so the time at which the client gave up says nothing.
    pub(crate) const fn latest_effect_ns(&self) -> u64 {
        match self.outcome {
            Outcome::Info => u64::MAX,
            Outcome::Ok | Outcome::Fail => self.end_ns,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, start_ns, end_ns, key, action, outcome } = *self;
        write!(f, "process {process} ")?;
        match (action, outcome) {
            (Action::Write(value), Outcome::Ok) => write!(f, "wrote {value} to k{key}"),
            (Action::Write(value), Outcome::Fail) => write!(f, "failed to write {value} to k{key}"),
            (Action::Write(value), Outcome::Info) => write!(f, "maybe wrote {value} to k{key}"),
            (Action::Read(Some(value)), Outcome::Ok) => write!(f, "read {value} from k{key}"),
            (Action::Read(None), Outcome::Ok) => write!(f, "found k{key} absent"),
            (Action::Read(_), Outcome::Fail) => write!(f, "failed to read k{key}"),
            (Action::Read(_), Outcome::Info) => write!(f, "had no answer to a read of k{key}"),
        }?;
        match outcome {
            Outcome::Info => write!(f, " [{start_ns} ns, unknown]"),
            Outcome::Ok | Outcome::Fail => write!(f, " [{start_ns}, {end_ns} ns]"),
        }
    }
}
