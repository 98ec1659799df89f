//! The contract between a replication protocol and its driver.
//!
//! The problem: an effect such as "send the vote" must not happen before "write the vote" is
//! durable, while "send the entries" should not wait for a sync. The naive way carries out every
//! effect in order and syncs after each write, so each message waits for the disk. Here a group's
//! writes are one ordered queue, and every send states whether it may overtake them. The driver
//! numbers the writes at the end of a turn, syncs when it chooses, reports the number of the last
//! durable one, and then releases the sends that waited for it.

use bytes::Bytes;
use palisade_wire::{PeerAddress, RangeId};

use crate::{Peers, Revocation};

/// A replicated command at its position in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the group's log, from 1 on, without gaps.
    pub index: u64,
    /// The Raft term, or the chain epoch, in which the entry was ordered.
    pub term: u64,
    /// The consumer of the entry.
    pub kind: EntryKind,
    /// The encoded command. Empty for a command that only marks the beginning of a term.
    pub payload: Bytes,
}

/// The consumer of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A command for the state machine.
    Command,
    /// A configuration for the protocol itself: the members of the group from this entry on.
    Members,
}

/// The members of a chain in one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Rises with every change of the members.
    pub epoch: u64,
    /// The members, from the head to the tail.
    pub members: Vec<PeerAddress>,
}

/// One part of a group's state up to an index. Parts have a bounded size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPart {
    /// Index of the last entry that the snapshot contains.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Number of this part. Part 0 belongs to the protocol, the others to the state machine.
    pub part: u32,
    /// True if no other part follows. Never true for part 0.
    pub last: bool,
    /// The encoded content.
    pub payload: Bytes,
}

/// A durable write that a protocol requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Append {
    /// An entry. It replaces this group's earlier entries from its index on.
    Entry(Entry),
    /// The protocol's own state. It replaces the group's earlier state.
    State {
        /// The term or epoch.
        term: u64,
        /// The remaining state, in the protocol's encoding.
        payload: Bytes,
    },
    /// A part of a snapshot. Once the last part is written, the snapshot replaces the group's
    /// entries up to its index.
    Snapshot {
        /// The part.
        part: SnapshotPart,
        /// True only with the last part, if the log lacked the snapshot's last entry, or holds
        /// later ones that the group has removed. The snapshot then replaces every entry that was
        /// written before it.
        replaces: bool,
    },
}

/// Approximate bytes that a log record takes beside its payload.
pub const RECORD_OVERHEAD_BYTES: u64 = 48;

impl Append {
    /// Returns about how many bytes the write takes in the log.
    pub fn bytes(&self) -> u64 {
        let payload = match self {
            Self::Entry(entry) => return entry.log_bytes(),
            Self::State { payload, .. } => payload,
            Self::Snapshot { part, .. } => &part.payload,
        };
        payload.len() as u64 + RECORD_OVERHEAD_BYTES
    }
}

impl Entry {
    /// Returns about how many bytes the entry takes in the log.
    pub fn log_bytes(&self) -> u64 {
        self.payload.len() as u64 + RECORD_OVERHEAD_BYTES
    }
}

/// The writes that must be durable before a message may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// None: the message may overtake the group's writes.
    Nothing,
    /// Every write that the group has requested so far, including those of the same step.
    Appends,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing<M> {
    /// The receiver.
    pub to: PeerAddress,
    /// The message.
    pub message: M,
    /// The writes that must be durable first.
    pub after: After,
}

/// The effects that a step of a protocol requests. Each list is ordered.
#[derive(Debug)]
pub struct Effects<M> {
    /// Durable writes, to be carried out in this order.
    pub appends: Vec<Append>,
    /// Messages. Those of one step are independent of each other.
    pub sends: Vec<Outgoing<M>>,
    /// Entries that became committed, in index order. The driver must apply them before it runs any
    /// of `reads`.
    pub committed: Vec<Entry>,
    /// Tokens of reads that may run now.
    pub reads: Vec<u64>,
    /// Tokens of reads that this replica can no longer serve.
    pub refused_reads: Vec<u64>,
    /// Members that need a snapshot, because this log no longer holds the entries that they lack.
    pub lagging: Vec<PeerAddress>,
    /// Peers, each with the leadership or support that it must no longer count on. Pass them to
    /// [`Peers::revoke`].
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
        self.sends.push(Outgoing { to, message, after });
    }
}

/// Why a replica refuses a proposal, a read or a change. A refused request has no effect, so every
/// variant is retryable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This replica does not serve the request, or not yet.
    NotServing {
        /// A replica that may serve it, if known.
        hint: Option<PeerAddress>,
    },
    /// Too many bytes are uncommitted.
    Overloaded,
    /// A change of the members or of the leader is pending, or its preconditions do not hold yet.
    NotNow,
}

/// The state of a group that recovery found in the log.
#[derive(Clone, Debug, Default)]
pub struct RecoveredGroup {
    /// The last durable state: the term or epoch, and the state in the protocol's encoding.
    pub state: Option<(u64, Bytes)>,
    /// The last complete snapshot.
    pub snapshot: Option<RecoveredSnapshot>,
    /// The entries after the snapshot, or from index 1 on.
    pub entries: Vec<Entry>,
}

/// A complete snapshot, as found in the log.
#[derive(Clone, Debug, Default)]
pub struct RecoveredSnapshot {
    /// Index of the last entry that it contains.
    pub index: u64,
    /// Term of that entry.
    pub term: u64,
    /// Its parts. Part 0 belongs to the protocol.
    pub parts: Vec<Bytes>,
}

impl RecoveredGroup {
    /// Returns true if the log held nothing of the group.
    pub fn is_empty(&self) -> bool {
        self.state.is_none() && self.snapshot.is_none() && self.entries.is_empty()
    }
}

/// The driver's clock and its view of the peers, passed with each call that needs them.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// This replica's monotonic clock, in microseconds.
    pub now_us: u64,
    /// The state of the shards on which the other replicas live.
    pub peers: &'a Peers,
}

/// A replication protocol of one group at one replica.
///
/// A call may add to the effects. The driver carries them out after [`Protocol::flush`], the writes
/// first.
pub trait Protocol {
    /// A message between the replicas of a group.
    type Message;

    /// Handles the passage of time or a changed peer. Called every few milliseconds while
    /// [`Protocol::wants_ticks`] returns true.
    fn tick(&mut self, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Returns true if this replica must be ticked. The result changes only with a call to this
    /// replica or with a change of a peer's state in [`Peers`].
    fn wants_ticks(&self, cx: Context<'_>) -> bool;

    /// Handles a message. Messages may be lost, late, duplicated or out of order.
    fn receive(
        &mut self,
        from: PeerAddress,
        message: Self::Message,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );

    /// Handles the driver's report that its writes up to a number are durable: see
    /// [`Protocol::flush`].
    fn durable(&mut self, number: u64, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Orders a command and returns its index and term. The command is committed only if an entry
    /// with this index and this term appears in [`Effects::committed`].
    ///
    /// # Errors
    ///
    /// [`Refusal::NotServing`] if this replica does not order writes, and [`Refusal::Overloaded`]
    /// if too many bytes are uncommitted. Both are retryable.
    fn propose(
        &mut self,
        payload: Bytes,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    ) -> Result<(u64, u64), Refusal>;

    /// Requests a read of the latest state. `token` is returned in [`Effects::reads`] or
    /// [`Effects::refused_reads`].
    ///
    /// # Errors
    ///
    /// [`Refusal::NotServing`] if this replica does not serve reads; retryable.
    fn read(&mut self, token: u64, effects: &mut Effects<Self::Message>) -> Result<(), Refusal>;

    /// Ends a turn of the driver: sends everything that the calls since the last flush have
    /// gathered, in as few messages as possible. The driver numbers the writes requested since the
    /// last flush from `written + 1` on.
    fn flush(&mut self, written: u64, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Returns the number of the last write that is not known to be durable, or 0. Call it after
    /// [`Protocol::flush`].
    fn last_unsynced(&self) -> u64;

    /// Returns at most how many bytes the entries in memory take in the log.
    fn entries_bytes(&self) -> u64;

    /// Returns part 0 of a snapshot at the entry `index`, the last one that the owner has applied.
    ///
    /// # Panics
    ///
    /// If the entry was not handed out as committed, or is not in memory any more.
    fn snapshot_head(&self, index: u64) -> SnapshotPart;

    /// Requests another write of the current durable state, so that no older record in the log is
    /// needed for it.
    fn write_state(&mut self, cx: Context<'_>, effects: &mut Effects<Self::Message>);

    /// Returns true if a part of another replica's snapshot may be written here. False for bytes
    /// that no correct replica sends.
    fn accepts_snapshot(&self, part: &SnapshotPart) -> bool;

    /// Writes the next part of a snapshot of this replica's own state, or of one that it receives.
    /// The last part drops entries up to its index from memory, oldest first, until at most
    /// `keep_bytes` of entries remain.
    ///
    /// # Panics
    ///
    /// If the part lies beyond the commit index of a chain. In Raft, if the last part replaces the
    /// log of a leader, or if it replaces the log and part 0 was not written before it.
    fn write_snapshot(
        &mut self,
        part: SnapshotPart,
        keep_bytes: usize,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );

    /// Returns true if this replica orders writes: it leads (Raft), or it is the head and its links
    /// are up (chain). [`Protocol::propose`] may still refuse a command.
    fn orders_writes(&self) -> bool;

    /// Returns true while this replica may still commit the commands proposed to it. Once this is
    /// false, the outcome of every uncommitted proposal is unknown.
    fn holds_proposals(&self) -> bool;
}

/// Identifies a group and its replica in assertion messages.
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
