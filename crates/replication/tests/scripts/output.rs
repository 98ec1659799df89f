//! The lines that a command prints.

/// The level of detail of a line, least detailed first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The state of a node.
    State,
    /// A change of a role, a commit, a read, or a refusal.
    Event,
    /// A write, a sync or a message.
    Effect,
    /// A heartbeat between shards. Printed once a command, even if repeated.
    Heartbeat,
}

/// Collects the lines of one command.
pub(crate) struct Output {
    lines: Vec<String>,
    /// More detailed lines are not printed.
    limit: Kind,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self { lines: Vec::new(), limit: Kind::Heartbeat }
    }

    /// Omits lines more detailed than `limit` until the end of the command.
    pub(crate) fn limit(&mut self, limit: Kind) {
        self.limit = limit;
    }

    pub(crate) fn print(&mut self, kind: Kind, line: String) {
        let is_repeated = kind == Kind::Heartbeat && self.lines.contains(&line);
        if kind <= self.limit && !is_repeated {
            self.lines.push(line);
        }
    }

    /// Ends a command and returns its lines.
    pub(crate) fn take(&mut self) -> Vec<String> {
        self.limit = Kind::Heartbeat;
        std::mem::take(&mut self.lines)
    }
}
