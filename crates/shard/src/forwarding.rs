//! Passes requests on to the replica that serves them, for clients that cannot reach it.
//!
//! ```text
//! client ──request──▶ shard of a follower ──Request──▶ shard of the leader
//!        ◀─response──                     ◀─Response──
//! ```
//!
//! A client asks for it after some tries; a request is passed on once. The shard that serves it
//! treats it as a request of a client whose connection is the peer.
//!
//! Messages between shards may be lost, late or doubled, but each request of a client must be
//! served at most once: otherwise one copy could be rejected, so that the client reports that
//! nothing was done, while another takes effect. So a request names the session of its receiver,
//! and a shard takes the requests of a peer's session only in the order of their ids.
//!
//! A response may arrive after the shard that passed the request on has restarted, so no two
//! sessions of a shard use the same id.
//!
//! A request without a response ends as [`Rejection::Unknown`]: after a time, or once the peer is
//! suspected.
//!
//! [`Rejection::Unknown`]: palisade_wire::Rejection::Unknown

use std::collections::BTreeMap;

use palisade_wire::{NodeId, Operation, PeerAddress, Request, Response, ShardId};

use crate::{
    messages::PeerBody,
    turn::{ConnectionId, RequestOrigin},
};

/// Requests of one shard that may be passed on and have no response yet.
const MAX_PENDING: usize = 256;

/// How long a response may take, in microseconds.
const TIMEOUT_US: u64 = 2_000_000;

/// Marks the connections that stand for a peer. Drivers use lower numbers.
const PEER: u64 = 1 << 63;

/// Bits of an id that number the requests of a session. Those above hold the session.
const NUMBER_BITS: u32 = 40;

/// The requests that a shard has passed on, and those that peers have passed on to it.
#[derive(Debug)]
pub(crate) struct Forwarding {
    last_id: u64,
    /// By the id under which each was passed on.
    pending: BTreeMap<u64, Pending>,
    /// The session of each peer, and the last request that was taken in it.
    taken: BTreeMap<PeerAddress, (u64, u64)>,
}

#[derive(Debug)]
struct Pending {
    origin: RequestOrigin,
    to: PeerAddress,
    until_us: u64,
}

impl Forwarding {
    /// Creates the state for a shard whose `session` began now.
    pub(crate) fn new(session: u64) -> Self {
        let last_id = session << NUMBER_BITS;
        Self { last_id, pending: BTreeMap::new(), taken: BTreeMap::new() }
    }

    /// Returns true if no request waits for a response.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Passes a request on to a peer's session. Returns the message, or `None` if too many wait.
    pub(crate) fn forward(
        &mut self,
        origin: RequestOrigin,
        (to, to_session): (PeerAddress, u64),
        operation: Operation,
        now_us: u64,
    ) -> Option<PeerBody> {
        if self.pending.len() >= MAX_PENDING {
            return None;
        }
        self.last_id += 1;
        self.pending.insert(self.last_id, Pending { origin, to, until_us: now_us + TIMEOUT_US });
        Some(PeerBody::Request { to_session, request: Request::new(self.last_id, operation) })
    }

    /// Takes a request of a peer. Returns its origin, or `None` if it is a copy.
    pub(crate) fn take(
        &mut self,
        (from, session): (PeerAddress, u64),
        request_id: u64,
        now_us: u64,
    ) -> Option<RequestOrigin> {
        let last = self.taken.entry(from).or_default();
        if (session, request_id) <= *last {
            return None;
        }
        *last = (session, request_id);
        Some(RequestOrigin { connection: connection_of(from), request_id, since_us: now_us })
    }

    /// Removes the request that a response of a peer answers. Returns its origin.
    pub(crate) fn answered(&mut self, from: PeerAddress, request_id: u64) -> Option<RequestOrigin> {
        self.pending.get(&request_id).filter(|pending| pending.to == from)?;
        self.pending.remove(&request_id).map(|pending| pending.origin)
    }

    /// Removes the requests that will get no response: they have waited for too long, or their
    /// peer is not heard. Returns their origins.
    pub(crate) fn expire(
        &mut self,
        now_us: u64,
        is_heard: impl Fn(PeerAddress) -> bool,
    ) -> Vec<RequestOrigin> {
        let is_over =
            |_: &u64, pending: &mut Pending| pending.until_us <= now_us || !is_heard(pending.to);
        self.pending.extract_if(.., is_over).map(|(_, pending)| pending.origin).collect()
    }

    /// Removes the replies to requests that peers have passed on. Returns them as messages.
    pub(crate) fn responses(
        &self,
        replies: &mut Vec<(ConnectionId, Response)>,
    ) -> Vec<(PeerAddress, PeerBody)> {
        if self.taken.is_empty() {
            return Vec::new();
        }
        let of_peers = replies.extract_if(.., |(connection, _)| is_peer(*connection));
        let message = |(connection, response)| (peer_of(connection), PeerBody::Response(response));
        of_peers.map(message).collect()
    }
}

/// Returns true if a connection stands for a peer.
pub(crate) fn is_peer(connection: ConnectionId) -> bool {
    connection.0 & PEER != 0
}

fn connection_of(PeerAddress { node, shard }: PeerAddress) -> ConnectionId {
    ConnectionId(PEER | u64::from(node.0) << 16 | u64::from(shard.0))
}

fn peer_of(ConnectionId(number): ConnectionId) -> PeerAddress {
    let [.., node, shard] = [number >> 16, number].map(|part| part as u16);
    PeerAddress { node: NodeId(node), shard: ShardId(shard) }
}

#[cfg(test)]
mod tests {
    use palisade_wire::Outcome;

    use super::*;

    fn at(node: u16) -> PeerAddress {
        PeerAddress { node: NodeId(node), shard: ShardId(3) }
    }

    fn origin(request_id: u64) -> RequestOrigin {
        RequestOrigin { connection: ConnectionId(5), request_id, since_us: 0 }
    }

    /// Passes a client's request on to session 8 of node 1. Returns the id for the peer.
    fn forward(forwarding: &mut Forwarding, request_id: u64) -> u64 {
        let origin = origin(request_id);
        let body = forwarding.forward(origin, (at(1), 8), Operation::Status, 0).unwrap();
        let id = forwarding.last_id;
        let request = Request::new(id, Operation::Status);
        assert_eq!(body, PeerBody::Request { to_session: 8, request });
        id
    }

    #[test]
    fn each_request_of_a_session_is_taken_once() {
        let mut forwarding = Forwarding::new(6);
        let mut take = |node, session, id| forwarding.take((at(node), session), id, 0).is_some();
        assert!(take(1, 4, 1) && take(1, 4, 2) && take(2, 4, 1));
        assert!(!take(1, 4, 2) && !take(1, 4, 1) && !take(1, 3, 9));
        assert!(take(1, 5, 1), "the peer has restarted");
        assert!(take(1, 5, 4) && !take(1, 5, 3), "an earlier one is late");
    }

    #[test]
    fn response_ends_the_request_that_was_sent_to_its_peer() {
        let mut forwarding = Forwarding::new(6);
        let [first, ..] = [11, 12, 13].map(|request_id| forward(&mut forwarding, request_id));
        assert!(forwarding.answered(at(2), first).is_none());
        assert_eq!(forwarding.answered(at(1), first).unwrap().request_id, 11);
        assert!(forwarding.answered(at(1), first).is_none());
        assert!(forwarding.expire(TIMEOUT_US - 1, |_| true).is_empty());
        assert_eq!(forwarding.expire(0, |peer| peer != at(1)).len(), 2, "the peer is suspected");
        assert!(forwarding.is_empty());
    }

    #[test]
    fn late_response_to_an_earlier_session_answers_no_request() {
        let before = forward(&mut Forwarding::new(6), 11);
        let mut forwarding = Forwarding::new(7);
        forward(&mut forwarding, 12);
        assert!(forwarding.answered(at(1), before).is_none());
    }

    #[test]
    fn responses_return_to_the_peer() {
        let mut forwarding = Forwarding::new(6);
        let origin = forwarding.take((at(7), 1), 1, 0).unwrap();
        let response = Response { request_id: 1, outcome: Outcome::RolledBack };
        let mut replies =
            vec![(ConnectionId(2), response.clone()), (origin.connection, response.clone())];
        let message = PeerBody::Response(response.clone());
        assert_eq!(forwarding.responses(&mut replies), [(at(7), message)]);
        assert_eq!(replies, [(ConnectionId(2), response)]);
    }
}
