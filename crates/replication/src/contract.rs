//! The contract between a replication protocol and whoever drives it.
//!
//! The problem: an effect such as "answer the vote" must not happen before "write the vote" is on
//! the disk, while "send the entries" should not wait for it. The naive way, to carry out every
//! effect in order and sync after each write, makes each message wait for a disk. Here the writes
//! are one ordered queue, and every send says whether it may overtake them. The driver syncs when
//! it likes, reports how many of the group's writes are durable, and lets go what waited for them.

use bytes::Bytes;
use palisade_wire::{PeerAddress, RangeId};

/// A replicated command, at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the group's log, from 1 on, without gaps.
    pub index: u64,
    /// The Raft term, or the chain epoch, in which it was ordered.
    pub term: u64,
    /// The command; empty for an entry that only marks the beginning of a term.
    pub payload: Bytes,
}

/// Who replicates a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Rises with every change of the members.
    pub epoch: u64,
    /// The replicas; in chain mode from the head to the tail.
    pub members: Vec<PeerAddress>,
}

/// A durable write that a protocol asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Append {
    /// An entry. It replaces this group's earlier entries from its index on.
    Entry(Entry),
    /// The protocol's own state. It replaces the group's earlier state.
    State {
        /// The term or epoch.
        term: u64,
        /// The rest, as the protocol encodes it.
        payload: Bytes,
    },
}

/// What must be durable before a message may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing: it may overtake the group's writes.
    Nothing,
    /// Every write that the group has asked for so far.
    Appends,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send<M> {
    /// To whom.
    pub to: PeerAddress,
    /// What.
    pub message: M,
    /// When.
    pub after: After,
}

/// What a step of a protocol asks for, in order within each list.
#[derive(Debug)]
pub struct Effects<M> {
    /// Durable writes, to be done in this order.
    pub appends: Vec<Append>,
    /// Messages. Those of one step are independent of each other.
    pub sends: Vec<Send<M>>,
    /// Entries that became committed, in index order; to be applied before any of `reads` runs.
    pub committed: Vec<Entry>,
    /// Reads that may run now, by the token that they were asked with.
    pub reads: Vec<u64>,
    /// Reads that this replica can't serve any more.
    pub refused_reads: Vec<u64>,
}

impl<M> Default for Effects<M> {
    fn default() -> Self {
        Self {
            appends: Vec::new(),
            sends: Vec::new(),
            committed: Vec::new(),
            reads: Vec::new(),
            refused_reads: Vec::new(),
        }
    }
}

impl<M> Effects<M> {
    pub(crate) fn send(&mut self, to: PeerAddress, message: M, after: After) {
        self.sends.push(Send { to, message, after });
    }
}

/// Why a replica does not take a proposal or a read. Nothing happened; both are retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not the replica's part to serve this, or it can't yet; `hint` may.
    NotServing {
        /// Who serves it, if known.
        hint: Option<PeerAddress>,
    },
    /// Too much is uncommitted already.
    Overloaded,
}

/// What a group finds in the log at a restart.
#[derive(Clone, Debug, Default)]
pub struct RecoveredGroup {
    /// The last durable state: the term or epoch, and the rest.
    pub state: Option<(u64, Bytes)>,
    /// The entries, from index 1 on.
    pub entries: Vec<Entry>,
}

/// A replication protocol of one group at one replica.
///
/// Times are microseconds of one monotonic clock. Every call may add to the effects; what the
/// effects ask for is done after the call, writes first.
pub trait Protocol {
    /// What the replicas of a group send each other.
    type Message;

    /// Time has passed. Called every few milliseconds.
    fn tick(&mut self, now_us: u64, effects: &mut Effects<Self::Message>);

    /// A message arrived. Messages may be lost, late, duplicated or out of order.
    fn receive(
        &mut self,
        from: PeerAddress,
        message: Self::Message,
        now_us: u64,
        effects: &mut Effects<Self::Message>,
    );

    /// The first `appends` writes that this replica asked for since it was made are durable.
    fn durable(&mut self, appends: u64, effects: &mut Effects<Self::Message>);

    /// Orders a command. The index and term name it; it is committed only if just that entry comes
    /// back in [`Effects::committed`].
    fn propose(
        &mut self,
        payload: Bytes,
        effects: &mut Effects<Self::Message>,
    ) -> Result<(u64, u64), Refusal>;

    /// Asks to read the latest state. The token comes back in [`Effects::reads`] or
    /// [`Effects::refused_reads`].
    fn read(&mut self, token: u64, effects: &mut Effects<Self::Message>) -> Result<(), Refusal>;

    /// Ends a turn of the driver: what the calls since the last one have gathered goes out, in as
    /// few messages as possible.
    fn flush(&mut self, now_us: u64, effects: &mut Effects<Self::Message>);

    /// Whether a proposal would be taken now.
    fn orders_writes(&self) -> bool;

    /// Whether what was proposed here may still be committed by this replica. Once this is false,
    /// the outcome of everything proposed and not committed is unknown.
    fn holds_proposals(&self) -> bool;
}

/// Names a group in the messages of assertions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(crate) range: RangeId,
    pub(crate) me: PeerAddress,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.range, self.me)
    }
}
