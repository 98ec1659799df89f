//! The closed choice between the two replication modes.

use bytes::Bytes;
use palisade_control::RangeDescriptor;
use palisade_replication::{
    Effects, Membership, Protocol, RecoveredGroup, Refusal, Send,
    chain::{self, Chain},
    raft::{self, Raft},
};
use palisade_wire::{Mode, PeerAddress, RangeStatus, WireError};

use crate::PeerBody;

/// A protocol with what it has asked for in this turn.
#[derive(Debug)]
pub(crate) struct Running<P: Protocol> {
    protocol: P,
    effects: Effects<P::Message>,
}

/// One replica's end of a replicated group.
#[derive(Debug)]
pub(crate) enum Group {
    Raft(Running<Raft>),
    Chain(Running<Chain>),
}

/// Calls a method of whichever protocol runs, with its effects.
macro_rules! either {
    ($group:expr, $running:ident => $call:expr) => {
        match $group {
            Group::Raft($running) => $call,
            Group::Chain($running) => $call,
        }
    };
}

impl Group {
    pub(crate) fn new(
        me: PeerAddress,
        descriptor: &RangeDescriptor,
        recovered: RecoveredGroup,
        random_seed: u64,
        now_us: u64,
    ) -> Result<Self, WireError> {
        let (range, membership) = (descriptor.range, descriptor.membership());
        Ok(match descriptor.mode {
            Mode::Raft => {
                let timing = raft::Timing::default();
                let protocol =
                    Raft::new(range, me, membership, recovered, timing, random_seed, now_us)?;
                Self::Raft(Running { protocol, effects: Effects::default() })
            }
            Mode::Chain => {
                let timing = chain::Timing::default();
                let protocol = Chain::new(range, me, membership, recovered, timing, random_seed)?;
                Self::Chain(Running { protocol, effects: Effects::default() })
            }
        })
    }

    pub(crate) fn tick(&mut self, now_us: u64) {
        either!(self, running => running.protocol.tick(now_us, &mut running.effects));
    }

    /// Hands on a message; one of the other protocol is from another life of the range.
    pub(crate) fn receive(&mut self, from: PeerAddress, body: PeerBody, now_us: u64) {
        match (self, body) {
            (Self::Raft(running), PeerBody::Raft(message)) => {
                running.protocol.receive(from, message, now_us, &mut running.effects);
            }
            (Self::Chain(running), PeerBody::Chain(message)) => {
                running.protocol.receive(from, message, now_us, &mut running.effects);
            }
            _ => {}
        }
    }

    pub(crate) fn durable(&mut self, appends: u64) {
        either!(self, running => running.protocol.durable(appends, &mut running.effects));
    }

    pub(crate) fn propose(&mut self, payload: Bytes) -> Result<(u64, u64), Refusal> {
        either!(self, running => running.protocol.propose(payload, &mut running.effects))
    }

    pub(crate) fn read(&mut self, token: u64) -> Result<(), Refusal> {
        either!(self, running => running.protocol.read(token, &mut running.effects))
    }

    pub(crate) fn orders_writes(&self) -> bool {
        either!(self, running => running.protocol.orders_writes())
    }

    pub(crate) fn holds_proposals(&self) -> bool {
        either!(self, running => running.protocol.holds_proposals())
    }

    pub(crate) fn install(&mut self, membership: Membership) {
        if let Self::Chain(running) = self {
            running.protocol.install(membership, &mut running.effects);
        }
    }

    /// Ends the turn: everything that was asked for since the last one.
    pub(crate) fn flush(&mut self, now_us: u64) -> Effects<PeerBody> {
        match self {
            Self::Raft(running) => running.flush(now_us, PeerBody::Raft),
            Self::Chain(running) => running.flush(now_us, PeerBody::Chain),
        }
    }

    pub(crate) fn status(&self, descriptor: &RangeDescriptor) -> RangeStatus {
        let (mode, range) = (descriptor.mode, descriptor.range);
        match self {
            Self::Raft(Running { protocol, .. }) => RangeStatus {
                range,
                mode,
                role: protocol.role(),
                term: protocol.term(),
                epoch: protocol.membership().epoch,
                last_index: protocol.last_index(),
                commit_index: protocol.commit_index(),
                ready: protocol.leader().is_some(),
            },
            Self::Chain(Running { protocol, .. }) => RangeStatus {
                range,
                mode,
                role: protocol.role(),
                term: protocol.membership().epoch,
                epoch: protocol.membership().epoch,
                last_index: protocol.last_index(),
                commit_index: protocol.commit_index(),
                ready: protocol.is_ready(),
            },
        }
    }
}

impl<P: Protocol> Running<P> {
    fn flush(&mut self, now_us: u64, wrap: impl Fn(P::Message) -> PeerBody) -> Effects<PeerBody> {
        self.protocol.flush(now_us, &mut self.effects);
        let Effects { appends, sends, committed, reads, refused_reads } =
            std::mem::take(&mut self.effects);
        let wrap = |send: Send<P::Message>| Send {
            to: send.to,
            message: wrap(send.message),
            after: send.after,
        };
        let sends = sends.into_iter().map(wrap).collect();
        Effects { appends, sends, committed, reads, refused_reads }
    }
}
