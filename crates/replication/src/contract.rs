//! The contract between a replication protocol and whoever drives it.
//!
//! The problem: an effect such as "answer the vote" must not happen before "write the vote" is on
//! the disk, while "send the entries" should not wait for it. The naive way, to carry out every
//! effect in order and sync after each write, makes each message wait for a disk. Here the writes
//! are one ordered queue, and every send says whether it may overtake them. The driver syncs when
//! it likes, reports how many of the group's writes are durable, and lets go what waited for them.

use bytes::Bytes;
use palisade_wire::{PeerAddress, RangeId};

use crate::{Peers, Revocation};

/// A replicated command, at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the group's log, from 1 on, without gaps.
    pub index: u64,
    /// The Raft term, or the chain epoch, in which it was ordered.
    pub term: u64,
    /// Whom it is for.
    pub kind: EntryKind,
    /// The rest; empty for a command that only marks the beginning of a term.
    pub payload: Bytes,
}

/// Whom an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The state machine.
    Command,
    /// The protocol itself: who replicates the group from here on.
    Members,
}

/// Who replicates a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Rises with every change of the members.
    pub epoch: u64,
    /// The members, from the head to the tail.
    pub members: Vec<PeerAddress>,
}

/// The state of a group up to an index, in parts of bounded size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPart {
    /// Everything up to this entry is in the snapshot.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Which part this is. Part 0 is the protocol's own, the others are the state machine's.
    pub part: u32,
    /// Whether no other part follows. Never true of part 0.
    pub last: bool,
    /// The part's bytes.
    pub payload: Bytes,
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
    /// A part of a snapshot. With the last one, the snapshot stands for the group's entries up to
    /// its index.
    Snapshot {
        /// The part.
        part: SnapshotPart,
        /// With the last part: this log did not lead to the snapshot, and no entry before it stands.
        replaces: bool,
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
    /// Members whose logs end before this one begins: they need a snapshot.
    pub lagging: Vec<PeerAddress>,
    /// What peers must not count on any more: see [`Peers::revoke`].
    pub revoked: Vec<(PeerAddress, Revocation)>,
}

impl<M> Default for Effects<M> {
    fn default() -> Self {
        Self {
            appends: Vec::new(),
            sends: Vec::new(),
            committed: Vec::new(),
            reads: Vec::new(),
            refused_reads: Vec::new(),
            lagging: Vec::new(),
            revoked: Vec::new(),
        }
    }
}

impl<M> Effects<M> {
    pub(crate) fn send(&mut self, to: PeerAddress, message: M, after: After) {
        self.sends.push(Send { to, message, after });
    }
}

/// Why a replica does not take a proposal, a read or a change. Nothing happened; all are retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not the replica's part to serve this, or it can't yet; `hint` may.
    NotServing {
        /// Who serves it, if known.
        hint: Option<PeerAddress>,
    },
    /// Too much is uncommitted already.
    Overloaded,
    /// A change of the members or of the leader is under way, or its preconditions do not hold yet.
    NotNow,
}

/// What a group finds in the log at a restart.
#[derive(Clone, Debug, Default)]
pub struct RecoveredGroup {
    /// The last durable state: the term or epoch, and the rest.
    pub state: Option<(u64, Bytes)>,
    /// The last whole snapshot.
    pub snapshot: Option<RecoveredSnapshot>,
    /// The entries after the snapshot, or from index 1 on.
    pub entries: Vec<Entry>,
}

/// A whole snapshot, as found in the log.
#[derive(Clone, Debug, Default)]
pub struct RecoveredSnapshot {
    /// Everything up to this entry is in it.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Its parts; part 0 is the protocol's own.
    pub parts: Vec<Bytes>,
}

impl RecoveredGroup {
    /// Whether the log held nothing of the group.
    pub fn is_empty(&self) -> bool {
        self.state.is_none() && self.snapshot.is_none() && self.entries.is_empty()
    }
}

/// What a protocol is told of its surroundings with every call.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Microseconds of this replica's monotonic clock.
    pub now_us: u64,
    /// What is known of the shards that the other replicas live on.
    pub peers: &'a Peers,
}

/// A replication protocol of one group at one replica.
///
/// Every call may add to the effects; what the effects ask for is done after the call, writes
/// first.
pub trait Protocol {
    /// What the replicas of a group send each other.
    type Message;

    /// Time has passed, or something about a peer has changed. Called every few milliseconds while
    /// [`Protocol::wants_ticks`].
    fn tick(&mut self, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Whether time must be told to this replica. Changes only with a call, or with what
    /// [`Peers`] says of a peer.
    fn wants_ticks(&self, cx: Context<'_>) -> bool;

    /// A message arrived. Messages may be lost, late, duplicated or out of order.
    fn receive(
        &mut self,
        from: PeerAddress,
        message: Self::Message,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );

    /// The first `appends` writes that this replica asked for since it was made are durable.
    fn durable(&mut self, appends: u64, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Orders a command. The index and term name it; it is committed only if just that entry comes
    /// back in [`Effects::committed`].
    fn propose(
        &mut self,
        payload: Bytes,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    ) -> Result<(u64, u64), Refusal>;

    /// Asks to read the latest state. The token comes back in [`Effects::reads`] or
    /// [`Effects::refused_reads`].
    fn read(&mut self, token: u64, effects: &mut Effects<Self::Message>) -> Result<(), Refusal>;

    /// Ends a turn of the driver: what the calls since the last one have gathered goes out, in as
    /// few messages as possible.
    fn flush(&mut self, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Part 0 of a snapshot that is taken now, at the last entry handed out as committed.
    fn snapshot_head(&self) -> SnapshotPart;

    /// Writes the durable state anew, as it is, so that nothing older in the log is needed for it.
    fn write_state(&mut self, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Writes the next part of a snapshot, of this replica's own state or as received. With the
    /// last part, entries up to its index are forgotten, but for the last ones up to `keep_bytes`.
    fn write_snapshot(
        &mut self,
        part: SnapshotPart,
        keep_bytes: usize,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );

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
