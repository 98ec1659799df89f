//! One replica of a group in either replication mode: Raft or chain.

use bytes::Bytes;
use palisade_control::RangeDescriptor;
use palisade_replication::{
    Context, Effects, Entry, Members, Membership, Outgoing, Peers, Protocol, RecoveredGroup,
    Refusal, Revocation, SnapshotPart,
    chain::{self, Chain},
    raft::{self, Raft},
};
use palisade_wire::{Mode, PeerAddress, RangeId, RangeStatus, ReplicaChange, Role, WireError};

use crate::{TestFault, config::ReplicaConfig, messages::PeerBody};

/// A protocol, with the effects that it has requested in this turn.
#[derive(Debug)]
pub(crate) struct Running<P: Protocol> {
    protocol: P,
    effects: Effects<P::Message>,
}

/// A group whose replica is to be created.
#[derive(Debug)]
pub(crate) struct GroupSetup<'a> {
    pub(crate) descriptor: &'a RangeDescriptor,
    pub(crate) recovered: RecoveredGroup,
    pub(crate) random_seed: u64,
    pub(crate) now_us: u64,
}

/// A replica of a group, by replication mode.
#[derive(Debug)]
pub(crate) enum Group {
    Raft(Running<Raft>),
    Chain(Running<Chain>),
}

/// Evaluates an expression with the running protocol of either mode.
macro_rules! either {
    ($group:expr, $running:ident => $call:expr) => {
        match $group {
            Group::Raft($running) => $call,
            Group::Chain($running) => $call,
        }
    };
}

impl Group {
    /// Creates the replica of a group.
    ///
    /// # Errors
    ///
    /// [`WireError`] if the recovered state cannot be decoded.
    pub(crate) fn new(setup: GroupSetup<'_>, config: ReplicaConfig) -> Result<Self, WireError> {
        let GroupSetup { descriptor, recovered, random_seed, now_us } = setup;
        let ReplicaConfig { me, max_message_bytes, .. } = config;
        let planted = config.planted.and_then(TestFault::of_protocol);
        let (range, membership) = (descriptor.range, membership(descriptor));
        Ok(match descriptor.mode {
            Mode::Raft => {
                // A replica that was added later learns the members from its leader.
                let initial = membership.members.contains(&me);
                let members =
                    if initial { Members::of(membership.members) } else { Members::default() };
                let setup = raft::Setup { range, me, members, recovered, random_seed, planted };
                let protocol = {
                    let timing = raft::Timing { max_message_bytes, ..raft::Timing::default() };
                    Raft::new(setup, timing, now_us)?
                };
                Self::Raft(Running { protocol, effects: Effects::default() })
            }
            Mode::Chain => {
                let setup = chain::Setup { range, me, membership, recovered, random_seed, planted };
                let protocol = Chain::new(setup, chain::Timing::default())?;
                Self::Chain(Running { protocol, effects: Effects::default() })
            }
        })
    }

    pub(crate) fn tick(&mut self, cx: Context<'_>) {
        either!(self, running => running.protocol.tick(cx, &mut running.effects));
    }

    pub(crate) fn wants_ticks(&self, cx: Context<'_>) -> bool {
        either!(self, running => running.protocol.wants_ticks(cx))
    }

    /// Handles a Raft message. Ignores it in chain mode.
    pub(crate) fn receive_raft(
        &mut self,
        from: PeerAddress,
        message: raft::Message,
        cx: Context<'_>,
    ) {
        if let Self::Raft(running) = self {
            running.protocol.receive(from, message, cx, &mut running.effects);
        }
    }

    /// Handles a chain message. Ignores it in Raft mode.
    pub(crate) fn receive_chain(
        &mut self,
        from: PeerAddress,
        message: chain::Message,
        cx: Context<'_>,
    ) {
        if let Self::Chain(running) = self {
            running.protocol.receive(from, message, cx, &mut running.effects);
        }
    }

    /// Handles a peer's revocation of its leadership or support. Ignored in chain mode.
    pub(crate) fn revoked(&mut self, from: PeerAddress, revocation: Revocation, cx: Context<'_>) {
        if let Self::Raft(running) = self {
            running.protocol.revoked(from, revocation, cx, &mut running.effects);
        }
    }

    /// Records that the shard's writes up to a number are durable.
    pub(crate) fn durable(&mut self, number: u64, cx: Context<'_>) {
        either!(self, running => running.protocol.durable(number, cx, &mut running.effects));
    }

    pub(crate) fn propose(
        &mut self,
        payload: Bytes,
        cx: Context<'_>,
    ) -> Result<(u64, u64), Refusal> {
        either!(self, running => running.protocol.propose(payload, cx, &mut running.effects))
    }

    pub(crate) fn read(&mut self, token: u64) -> Result<(), Refusal> {
        either!(self, running => running.protocol.read(token, &mut running.effects))
    }

    /// Requests a read at the replica that sequences writes: Raft's leader after a leadership
    /// check, or the chain's head. The chain's epochs must exclude earlier heads.
    pub(crate) fn read_at_sequencer(&mut self, token: u64) -> Result<(), Refusal> {
        match self {
            Self::Raft(running) => running.protocol.read(token, &mut running.effects),
            Self::Chain(running) if running.protocol.orders_writes() => {
                running.effects.reads.push(token);
                Ok(())
            }
            Self::Chain(_) => Err(Refusal::NotServing { hint: self.leader() }),
        }
    }

    /// Changes the leader or the members of a Raft group. Returns the index and term of the entry
    /// to wait for, or `None` if there is none. Chains refuse with `NotNow`.
    pub(crate) fn change(
        &mut self,
        change: ReplicaChange,
        cx: Context<'_>,
    ) -> Result<Option<(u64, u64)>, Refusal> {
        let Self::Raft(Running { protocol, effects }) = self else {
            return Err(Refusal::NotNow);
        };
        match change {
            ReplicaChange::Transfer { to } => protocol.transfer(to, cx, effects).map(|()| None),
            ReplicaChange::Members { voters, learners } => {
                protocol.change_members(voters, learners, cx, effects).map(Some)
            }
        }
    }

    /// Returns true until another replica leads, if one can. False for chains.
    pub(crate) fn hands_over(&self, cx: Context<'_>) -> bool {
        matches!(self, Self::Raft(running) if running.protocol.hands_over(cx))
    }

    pub(crate) fn snapshot_head(&self, index: u64) -> SnapshotPart {
        either!(self, running => running.protocol.snapshot_head(index))
    }

    /// Rewrites the protocol's durable state, unchanged, at the end of the log.
    pub(crate) fn write_state(&mut self, cx: Context<'_>) {
        either!(self, running => running.protocol.write_state(cx, &mut running.effects));
    }

    /// Returns true if this part of another replica's snapshot may be written.
    pub(crate) fn accepts_snapshot(&self, part: &SnapshotPart) -> bool {
        either!(self, running => running.protocol.accepts_snapshot(part))
    }

    pub(crate) fn write_snapshot(
        &mut self,
        part: SnapshotPart,
        keep_bytes: usize,
        cx: Context<'_>,
    ) {
        either!(self, running => {
            running.protocol.write_snapshot(part, keep_bytes, cx, &mut running.effects);
        });
    }

    /// Records that a member has durably installed a snapshot up to `index`.
    pub(crate) fn snapshot_installed(&mut self, at: PeerAddress, index: u64, cx: Context<'_>) {
        if let Self::Raft(running) = self {
            running.protocol.snapshot_installed(at, index, cx, &mut running.effects);
        }
    }

    /// Returns at most how many bytes the entries in memory take in the log.
    pub(crate) fn entries_bytes(&self) -> u64 {
        either!(self, running => running.protocol.entries_bytes())
    }

    /// Returns true if a removed member's log on disk holds entries that it has dropped.
    pub(crate) fn has_removed_entries(&self) -> bool {
        matches!(self, Self::Chain(running) if running.protocol.has_removed_entries())
    }

    pub(crate) fn orders_writes(&self) -> bool {
        either!(self, running => running.protocol.orders_writes())
    }

    pub(crate) fn holds_proposals(&self) -> bool {
        either!(self, running => running.protocol.holds_proposals())
    }

    pub(crate) fn install(&mut self, descriptor: &RangeDescriptor, cx: Context<'_>) {
        if let Self::Chain(running) = self {
            running.protocol.install(membership(descriptor), cx, &mut running.effects);
        }
    }

    /// Ends the turn and returns all effects since the last one. The writes among them are the
    /// shard's writes from `written + 1` on.
    pub(crate) fn flush(
        &mut self,
        range: RangeId,
        written: u64,
        cx: Context<'_>,
    ) -> Effects<PeerBody> {
        match self {
            Self::Raft(running) => {
                running.flush(written, cx, |message| PeerBody::Raft { range, message })
            }
            Self::Chain(running) => {
                running.flush(written, cx, |message| PeerBody::Chain { range, message })
            }
        }
    }

    /// Returns the number of the group's last write that is not durable, or 0.
    pub(crate) fn last_unsynced(&self) -> u64 {
        either!(self, running => running.protocol.last_unsynced())
    }

    pub(crate) fn role(&self) -> Role {
        either!(self, running => running.protocol.role())
    }

    /// Returns the Raft term, or the chain epoch.
    pub(crate) fn term(&self) -> u64 {
        match self {
            Self::Raft(running) => running.protocol.term(),
            Self::Chain(running) => running.protocol.membership().epoch,
        }
    }

    /// Returns the chain's epoch; 0 in Raft mode.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::Raft(_) => 0,
            Self::Chain(running) => running.protocol.membership().epoch,
        }
    }

    pub(crate) fn leader(&self) -> Option<PeerAddress> {
        match self {
            Self::Raft(running) => running.protocol.leader(),
            Self::Chain(running) => running.protocol.membership().members.first().copied(),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        match self {
            // A candidate may still name the leader that it has lost.
            Self::Raft(running) => {
                running.protocol.leader().is_some() && self.role() != Role::Candidate
            }
            Self::Chain(running) => running.protocol.is_ready(),
        }
    }

    /// Returns true if reads need no round to the other replicas. Always false in a chain, where a
    /// replica's position decides whether it may read.
    pub(crate) fn is_leased(&self, cx: Context<'_>) -> bool {
        match self {
            Self::Raft(running) => running.protocol.is_leased(cx),
            Self::Chain(_) => false,
        }
    }

    /// Returns how many entries each follower may lack, and about how many bytes they take: all
    /// followers of a Raft leader, or the next member of a chain.
    pub(crate) fn follower_lags(&self) -> Vec<(PeerAddress, u64, u64)> {
        match self {
            Self::Raft(running) => running.protocol.follower_lags().collect(),
            Self::Chain(running) => running.protocol.successor_lag().into_iter().collect(),
        }
    }

    /// Returns the voters (or the members of the chain), and the learners.
    pub(crate) fn members(&self) -> (Vec<PeerAddress>, Vec<PeerAddress>) {
        match self {
            Self::Raft(running) => {
                let Members { voters, outgoing, learners } = running.protocol.members();
                let mut all: Vec<_> = voters.iter().chain(outgoing).copied().collect();
                all.sort_unstable();
                all.dedup();
                (all, learners.clone())
            }
            Self::Chain(running) => (running.protocol.membership().members.clone(), Vec::new()),
        }
    }

    /// Returns the sets of voters of which a majority each decides; or all members of the chain.
    pub(crate) fn electorates(&self) -> Vec<Vec<PeerAddress>> {
        match self {
            Self::Raft(running) => {
                let Members { voters, outgoing, .. } = running.protocol.members();
                let both = [voters.clone(), outgoing.clone()];
                both.into_iter().filter(|half| !half.is_empty()).collect()
            }
            Self::Chain(running) => vec![running.protocol.membership().members.clone()],
        }
    }

    pub(crate) fn commit_index(&self) -> u64 {
        either!(self, running => running.protocol.commit_index())
    }

    pub(crate) fn first_index(&self) -> u64 {
        either!(self, running => running.protocol.first_index())
    }

    pub(crate) fn last_index(&self) -> u64 {
        either!(self, running => running.protocol.last_index())
    }

    pub(crate) fn durable_index(&self) -> u64 {
        either!(self, running => running.protocol.durable_index())
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&Entry> {
        either!(self, running => running.protocol.entry(index))
    }

    /// Returns true if the replica can serve, or follows one that can, as far as it knows: it hears
    /// its leader, or all members of its chain.
    fn serves(&self, me: PeerAddress, peers: &Peers) -> bool {
        let hears = |peer| peer == me || peers.is_heard(peer);
        let needed = match self {
            Self::Raft(_) => self.leader().into_iter().collect(),
            Self::Chain(_) => self.members().0,
        };
        self.is_ready() && needed.into_iter().all(hears)
    }

    pub(crate) fn status(
        &self,
        descriptor: &RangeDescriptor,
        me: PeerAddress,
        peers: &Peers,
    ) -> RangeStatus {
        RangeStatus {
            range: descriptor.range,
            mode: descriptor.mode,
            role: self.role(),
            term: self.term(),
            epoch: self.epoch().max(descriptor.epoch),
            last_index: self.last_index(),
            commit_index: self.commit_index(),
            ready: self.serves(me, peers),
        }
    }
}

fn membership(descriptor: &RangeDescriptor) -> Membership {
    Membership { epoch: descriptor.epoch, members: descriptor.members.clone() }
}

impl<P: Protocol> Running<P> {
    fn flush(
        &mut self,
        written: u64,
        cx: Context<'_>,
        wrap: impl Fn(P::Message) -> PeerBody,
    ) -> Effects<PeerBody> {
        self.protocol.flush(written, cx, &mut self.effects);
        let effects = std::mem::take(&mut self.effects);
        let wrap = |send: Outgoing<P::Message>| Outgoing {
            to: send.to,
            message: wrap(send.message),
            after: send.after,
        };
        Effects {
            appends: effects.appends,
            sends: effects.sends.into_iter().map(wrap).collect(),
            committed: effects.committed,
            reads: effects.reads,
            refused_reads: effects.refused_reads,
            lagging: effects.lagging,
            revoked: effects.revoked,
        }
    }
}
