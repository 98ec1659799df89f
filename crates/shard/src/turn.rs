//! A turn of a shard: its inputs, what the shard lends to its replicas, and its effects.

use palisade_clock::{Hlc, Now};
use palisade_control::RangeDescriptor;
use palisade_replication::{Append, Context, Peers};
use palisade_wire::{Outcome, PeerAddress, RangeId, Rejection, Request, Response};

use crate::{
    log_room::Growth,
    messages::PeerMessage,
    metrics::{Metrics, RejectionStorm, SlowRequest},
    work::Work,
};

/// A client's connection to this shard. The driver chooses the number, below 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// An input of the shard.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client sent a request.
    Request {
        /// The connection to reply on.
        connection: ConnectionId,
        /// The request.
        request: Request,
    },
    /// A peer sent a message.
    Peer {
        /// The sending shard.
        from: PeerAddress,
        /// The message.
        message: PeerMessage,
    },
    /// The shard's first `appends` writes since its start are durable.
    Durable {
        /// Number of durable writes; never decreases.
        appends: u64,
    },
    /// A range has a new set of replicas.
    Install(RangeDescriptor),
    /// Time has passed.
    Tick,
    /// The node is about to stop: the shard hands over its leaderships, then serves nothing more.
    /// See [`Shard::is_drained`](crate::Shard::is_drained).
    Drain,
}

/// Effects of a turn. The driver performs the writes first, in order, and the rest in any order.
#[derive(Debug, Default)]
pub struct ShardEffects {
    /// Writes to the log, each for one group.
    pub appends: Vec<(RangeId, Append)>,
    /// Messages that may leave now.
    pub sends: Vec<(PeerAddress, PeerMessage)>,
    /// Replies to clients.
    pub replies: Vec<(ConnectionId, Response)>,
    /// Peers that messages do not reach. The driver closes its connection to each, and opens
    /// another.
    pub reconnects: Vec<PeerAddress>,
    /// Changed range descriptors, to be installed in every shard of this node, including this one.
    pub installs: Vec<RangeDescriptor>,
    /// Requests that took long, for the operator.
    pub slow: Vec<SlowRequest>,
    /// Many rejections in a short time, for the operator.
    pub storm: Option<RejectionStorm>,
    /// Microseconds after which the next turn is due, unless an input causes one earlier.
    pub wake_after_us: Option<u64>,
}

/// Where a request came from, and where its reply goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestOrigin {
    pub(crate) connection: ConnectionId,
    pub(crate) request_id: u64,
    /// When a turn first found the request, on the monotonic clock.
    pub(crate) since_us: u64,
}

/// How far a request has come. A rejected one is the `Err` of a `Result`.
#[derive(Debug)]
pub(crate) enum Served {
    /// This is its outcome.
    Done(Outcome),
    /// It is answered later.
    Pending,
}

/// What a shard lends to a replica for a call.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) now: Now,
    pub(crate) hlc: &'a mut Hlc,
    pub(crate) peers: &'a Peers,
    pub(crate) effects: &'a mut ShardEffects,
    /// Whether the state of the shard may grow, such that its log can hold it.
    pub(crate) growth: Growth,
    pub(crate) work: &'a mut Work,
    pub(crate) metrics: &'a mut Metrics,
}

impl<'a> Turn<'a> {
    /// Returns what a replication protocol needs of the turn.
    pub(crate) fn context(&self) -> Context<'a> {
        Context { now_us: self.now.monotonic_us, peers: self.peers }
    }

    pub(crate) fn reply(&mut self, origin: RequestOrigin, outcome: Outcome) {
        let RequestOrigin { connection, request_id, since_us } = origin;
        if let Outcome::Rejected(rejection) = outcome {
            let done_after_us = self.now.monotonic_us.saturating_sub(since_us);
            self.metrics.done(SlowRequest::Rejected { rejection, done_after_us });
        }
        self.effects.replies.push((connection, Response { request_id, outcome }));
    }

    pub(crate) fn reject(&mut self, origin: RequestOrigin, rejection: Rejection) {
        self.reply(origin, Outcome::Rejected(rejection));
    }
}
