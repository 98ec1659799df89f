//! Chain replication (van Renesse and Schneider, OSDI'04).
//!
//! The problem: a majority protocol makes one replica send every entry to all the others. In a
//! chain each member sends it once, to the next one. Writes enter at the head, which orders them,
//! and flow down the chain. The tail commits them and also serves the reads. A chain has no votes:
//! its members are decided elsewhere, epoch by epoch, and every message carries the epoch.
//!
//! Forwarding an entry only once it is durable would make a chain of three pay three syncs one
//! after the other. Here a member forwards at once, and reports with it which index is *stable*:
//! durable at itself and at every member before it. The tail commits what is stable upstream and
//! durable at the tail. So all syncs run in parallel, and a committed entry is durable at every
//! member.
//!
//! The cost: a member that crashed may have forwarded entries that it then lost. Its successor's
//! log is longer, and a new entry at the same index would fork the chain. So after a start, and in
//! a new epoch, the chain links up from its tail, which is attached by itself. A member asks its
//! successor where its log ends, fetches the entries that it lacks, and sends those that the
//! successor lacks. Only then does it attach to its own predecessor. The head orders nothing before
//! its successor is attached. So the longest log reaches the head before anything is added.
//!
//! Fencing: a member serves nothing until both its links are up, in its epoch and since its start.
//! The links of all members together span the chain. So a member that was removed while it was down
//! never serves: one of its neighbours has moved to a later epoch, or itself lacks a link for the
//! same reason. A member that is removed while it runs is not fenced by this. The operator must
//! stop it before the removal, and keep it stopped until every remaining member is in the new
//! epoch.
//!
//! Late messages: a message may be arbitrarily late, while an index may be ordered again in the
//! same epoch after every member lost it. So a member draws a random session at its start and in
//! each epoch, and a random link when it attaches. Replies to it carry the session, and entries
//! sent to it carry the link. It ignores those of an earlier session or link.
//!
//! Left out so far: leases, reads at members other than the tail (CRAQ), and adding a member.

mod link;
mod message;

use bytes::Bytes;
use palisade_wire::{PeerAddress, RangeId, Role, WireError};

pub use message::{Body, Message};

use crate::{
    Context, Effects, Entry, EntryKind, Membership, Planted, Protocol, ProtocolFault,
    RecoveredGroup, Refusal, SnapshotPart,
    codec::{decode_members, encode_members},
    contract::Name,
    entry_log::EntryLog,
};

/// Timing of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Interval between requests to a neighbour that has not answered, in microseconds.
    pub retry_us: u64,
    /// A member probes its successor if its commit index has not advanced for this long while
    /// entries are uncommitted, in microseconds.
    pub stall_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { retry_us: 20_000, stall_us: 200_000 }
    }
}

/// Payload that may be uncommitted before proposals are refused, in bytes.
const MAX_UNCOMMITTED_BYTES: usize = 32 * 1024 * 1024;

/// What a member of a chain is created from.
#[derive(Debug)]
pub struct Setup {
    /// The range that the chain replicates.
    pub range: RangeId,
    /// The address of the member.
    pub me: PeerAddress,
    /// The members. Those of a later epoch in the log supersede them.
    pub membership: Membership,
    /// The state that recovery found in the log.
    pub recovered: RecoveredGroup,
    /// Seed of the random sessions and links.
    pub random_seed: u64,
    /// A rule to break, in tests.
    pub planted: Planted<ProtocolFault>,
}

/// A member of a chain.
#[derive(Debug)]
pub struct Chain {
    name: Name,
    me: PeerAddress,
    timing: Timing,
    random: fastrand::Rng,
    planted: Planted<ProtocolFault>,
    membership: Membership,
    log: EntryLog,
    commit_index: u64,
    uncommitted_bytes: usize,

    /// Identifies this member since its start and in this epoch, so that late replies to an earlier
    /// session are ignored.
    session: u64,
    /// The session of the predecessor's last probe, and the link drawn for it, which the
    /// predecessor sends with entries. A later probe of the same session gets the same link, so
    /// that a probe repeated before its answer arrived does not invalidate the link.
    link: Option<(u64, u64)>,
    /// The link to the successor; `None` at the tail, and until the successor has attached.
    downstream: Option<link::Downstream>,
    /// Index durable at every member before this one, as the predecessor reported in this epoch;
    /// `None` before the first report.
    upstream_stable: Option<u64>,
    /// The commit index last sent to the predecessor.
    reported_commit: u64,
    retry_due_us: u64,
    stall_due_us: u64,
    stall_commit: u64,
}

impl Chain {
    /// Creates a member from the state that recovery found in the log.
    ///
    /// # Errors
    ///
    /// [`WireError`] if the recovered membership cannot be decoded; not retryable.
    ///
    /// # Panics
    ///
    /// If the recovered entries have a gap.
    pub fn new(setup: Setup, timing: Timing) -> Result<Self, WireError> {
        let Setup { range, me, membership, recovered, random_seed, planted } = setup;
        let name = Name { range, me };
        let membership = match recovered.state {
            Some((epoch, payload)) if epoch >= membership.epoch => {
                Membership { epoch, members: decode_members(payload)? }
            }
            _ => membership,
        };
        let mut random = fastrand::Rng::with_seed(random_seed);
        let base = recovered.snapshot.map_or((0, 0), |snapshot| (snapshot.index, snapshot.term));
        let mut chain = Self {
            name,
            me,
            timing,
            session: random.u64(..),
            random,
            link: None,
            planted,
            membership,
            log: EntryLog::new(name, base, recovered.entries),
            commit_index: base.0,
            uncommitted_bytes: 0,
            downstream: None,
            upstream_stable: None,
            reported_commit: 0,
            retry_due_us: 0,
            stall_due_us: 0,
            stall_commit: 0,
        };
        chain.drop_entries_if_removed();
        Ok(chain)
    }

    /// Drops the entries that are not committed here, if this replica is no member any more. They
    /// have no use, but the shard's log would be kept for them.
    fn drop_entries_if_removed(&mut self) {
        if self.place().is_none() {
            self.log.truncate(self.commit_index + 1);
        }
    }

    /// Enters a later epoch, and requests the write of its membership. Other epochs are ignored.
    pub fn install(
        &mut self,
        membership: Membership,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        if membership.epoch <= self.membership.epoch {
            return;
        }
        let payload = encode_members(&membership);
        self.log.append_state(membership.epoch, payload, cx.now_us, effects);
        self.membership = membership;
        self.drop_entries_if_removed();
        self.session = self.random.u64(..);
        self.link = None;
        self.downstream = None;
        self.upstream_stable = None;
        self.reported_commit = 0;
        self.retry_due_us = 0;
        self.advance_commit(effects);
    }

    /// Returns the member's role in its chain.
    pub fn role(&self) -> Role {
        match (self.place(), self.membership.members.len()) {
            (None, _) => Role::Removed,
            (Some(0), 1) => Role::Single,
            (Some(0), _) => Role::Head,
            (Some(place), members) if place + 1 == members => Role::Tail,
            _ => Role::Middle,
        }
    }

    /// Returns the current epoch and its members, from head to tail.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Returns true if the log on disk holds entries that were removed here, because this replica
    /// is no member any more.
    pub fn has_removed_entries(&self) -> bool {
        self.place().is_none() && self.log.has_removed()
    }

    /// Returns the index of the first entry in memory.
    pub fn first_index(&self) -> u64 {
        self.log.first_index()
    }

    /// Returns the index of the last entry.
    pub fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    /// Returns the index of the last entry that is durable here with all entries before it.
    pub fn durable_index(&self) -> u64 {
        self.log.durable_index()
    }

    /// Returns an entry, if it is in memory.
    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.log.entry(index)
    }

    /// Returns the index of the last entry known to be committed.
    pub fn commit_index(&self) -> u64 {
        self.commit_index
    }

    /// Returns true if the member's links to its neighbours are up.
    pub fn is_ready(&self) -> bool {
        self.is_attached() && (self.is_head() || self.is_fed())
    }

    /// Returns the next member, how many entries of this member are not known to be committed, and
    /// about how many bytes they take.
    pub fn successor_lag(&self) -> Option<(PeerAddress, u64, u64)> {
        let entries = self.log.last_index().saturating_sub(self.commit_index);
        Some((self.successor()?, entries, self.log.bytes_of_last(entries)))
    }

    fn place(&self) -> Option<usize> {
        self.membership.members.iter().position(|member| *member == self.me)
    }

    fn is_head(&self) -> bool {
        self.place() == Some(0)
    }

    fn is_tail(&self) -> bool {
        self.place().is_some_and(|place| place + 1 == self.membership.members.len())
    }

    fn head(&self) -> Option<PeerAddress> {
        self.membership.members.first().copied()
    }

    fn tail(&self) -> Option<PeerAddress> {
        self.membership.members.last().copied()
    }

    fn predecessor(&self) -> Option<PeerAddress> {
        let before = self.place()?.checked_sub(1)?;
        Some(self.membership.members[before])
    }

    fn successor(&self) -> Option<PeerAddress> {
        self.membership.members.get(self.place()? + 1).copied()
    }

    fn message(&self, body: Body) -> Message {
        Message { epoch: self.membership.epoch, body }
    }

    /// Returns true if this member's log holds everything that any member after it holds.
    fn is_attached(&self) -> bool {
        self.is_tail() || self.downstream.is_some()
    }

    /// Returns true if the predecessor has reported in this epoch what is stable.
    fn is_fed(&self) -> bool {
        self.upstream_stable.is_some()
    }

    /// Returns the last index that is durable at this member and at every member before it, as far
    /// as this member knows.
    fn stable_index(&self) -> u64 {
        let durable = self.log.durable_index();
        let alone = self.is_tail() && self.planted.is(ProtocolFault::EagerTail);
        if alone || self.is_head() {
            durable
        } else {
            durable.min(self.upstream_stable.unwrap_or(0))
        }
    }

    fn commit_to(&mut self, index: u64, effects: &mut Effects<Message>) {
        assert!(index <= self.log.last_index(), "{}: commits what it does not hold", self.name);
        while self.commit_index < index {
            self.commit_index += 1;
            let entry = self.log.entry(self.commit_index).expect("it is not forgotten before");
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(entry.payload.len());
            effects.committed.push(entry.clone());
        }
    }

    /// Tail: commits the entries that are durable everywhere.
    fn advance_commit(&mut self, effects: &mut Effects<Message>) {
        if self.is_tail() {
            self.commit_to(self.stable_index().max(self.commit_index), effects);
        }
    }
}

impl Protocol for Chain {
    type Message = Message;

    fn tick(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        if self.place().is_none() || cx.now_us < self.retry_due_us {
            return;
        }
        self.retry_due_us = cx.now_us + self.timing.retry_us;
        // A chain of one receives no message that would advance its commit index.
        self.advance_commit(effects);
        if !self.is_attached() {
            self.probe(effects);
        } else if !self.is_head() && !self.is_fed() {
            self.ask_for_probe(effects);
        }
        self.probe_if_stalled(cx.now_us, effects);
    }

    fn wants_ticks(&self, _cx: Context<'_>) -> bool {
        let at_work = !self.is_ready() || self.commit_index < self.log.last_index();
        at_work && self.place().is_some()
    }

    fn receive(
        &mut self,
        from: PeerAddress,
        message: Message,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        let member = self.membership.members.contains(&from);
        if message.epoch != self.membership.epoch || from == self.me || !member {
            return;
        }
        let from_predecessor = Some(from) == self.predecessor();
        let from_successor = Some(from) == self.successor();
        match message.body {
            Body::Hello if from_successor => self.probe(effects),
            Body::Probe { session } if from_predecessor && self.is_attached() => {
                self.attach(session, effects);
            }
            Body::Attach { session, link, last_index, last_term, commit_index }
                if from_successor && session == self.session =>
            {
                self.attached(
                    link::Attached { link, last_index, last_term, commit_index },
                    effects,
                );
            }
            Body::Fetch { session, from_index } if from_predecessor && from_index > 0 => {
                self.answer_fetch(from, session, from_index, effects);
            }
            Body::Fetched { session, entries }
                if from_successor && session == self.session && self.downstream.is_none() =>
            {
                self.fetched(entries, cx.now_us, effects);
            }
            Body::Forward { link, previous_index, previous_term, stable_index, entries }
                if from_predecessor && self.link.is_some_and(|(_, ours)| ours == link) =>
            {
                let previous = (previous_index, previous_term);
                self.accept(previous, stable_index, entries, cx.now_us, effects);
            }
            Body::Committed { index } if from_successor && index <= self.log.last_index() => {
                self.commit_to(index.max(self.commit_index), effects);
            }
            // Late, or from a former neighbour or session.
            _ => {}
        }
    }

    fn durable(&mut self, number: u64, _cx: Context<'_>, effects: &mut Effects<Message>) {
        self.log.set_durable(number);
        self.advance_commit(effects);
    }

    fn propose(
        &mut self,
        payload: Bytes,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) -> Result<(u64, u64), Refusal> {
        if !self.orders_writes() {
            let hint = self.head().filter(|head| *head != self.me);
            return Err(Refusal::NotServing { hint });
        }
        if self.uncommitted_bytes + payload.len() > MAX_UNCOMMITTED_BYTES {
            return Err(Refusal::Overloaded);
        }
        self.uncommitted_bytes += payload.len();
        let (index, term) = (self.log.last_index() + 1, self.membership.epoch);
        let entry = Entry { index, term, kind: EntryKind::Command, payload };
        self.log.append(entry, cx.now_us, effects);
        Ok((index, term))
    }

    fn read(&mut self, token: u64, effects: &mut Effects<Message>) -> Result<(), Refusal> {
        // A chain of one that has just started holds committed entries, and no message or sync
        // advances its commit index.
        self.advance_commit(effects);
        if !self.is_tail() || !self.is_ready() {
            let hint = self.tail().filter(|tail| *tail != self.me);
            return Err(Refusal::NotServing { hint });
        }
        effects.reads.push(token);
        Ok(())
    }

    fn flush(&mut self, written: u64, _cx: Context<'_>, effects: &mut Effects<Message>) {
        self.send_entries(effects);
        self.report_commit(effects);
        self.log.number_writes(written);
    }

    fn last_unsynced(&self) -> u64 {
        self.log.last_unsynced()
    }

    fn entries_bytes(&self) -> u64 {
        self.log.entries_bytes()
    }

    fn snapshot_head(&self, index: u64) -> SnapshotPart {
        assert!(index <= self.commit_index, "{}: a snapshot of uncommitted entries", self.name);
        let term = self.log.term_at(index).expect("what was applied last is not forgotten");
        SnapshotPart { index, term, part: 0, last: false, payload: Bytes::new() }
    }

    fn write_state(&mut self, cx: Context<'_>, effects: &mut Effects<Message>) {
        let payload = encode_members(&self.membership);
        self.log.append_state(self.membership.epoch, payload, cx.now_us, effects);
    }

    fn accepts_snapshot(&self, _part: &SnapshotPart) -> bool {
        // Every member holds all committed entries.
        false
    }

    fn write_snapshot(
        &mut self,
        part: SnapshotPart,
        keep_bytes: usize,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        // Every member holds all committed entries, so none will request the dropped ones.
        assert!(part.index <= self.commit_index, "{}: a snapshot from elsewhere", self.name);
        let replaced = self.log.append_snapshot(part, keep_bytes, cx.now_us, effects);
        assert!(!replaced, "{}: a snapshot of its own state differs from its log", self.name);
    }

    fn orders_writes(&self) -> bool {
        self.is_head() && self.is_ready()
    }

    fn holds_proposals(&self) -> bool {
        self.is_head()
    }
}
