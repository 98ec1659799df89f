//! A client: the router of production, and the connections that the simulated network gives it.

use std::{collections::BTreeMap, fmt};

use palisade_client::router::{Router, RouterConfig, RouterEffect, RouterInput};
use palisade_control::{NodeAddress, RangeMap, Topology};
use palisade_shard::ConnectionId;
use palisade_wire::{
    CommitRequest, LockClaim, NodeId, Operation, Outcome, PeerAddress, RangeId, Request, Response,
    SessionId,
};

use crate::{clock::timestamp, parameters::Parameters};

/// How far the clock of a client's machine may be wrong.
const MAX_CLOCK_ERROR_US: u64 = 20_000_000;

/// How many commits a client keeps, to repeat them once they are answered.
const SENT_KEPT: usize = 64;

/// A commit that was sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) range: RangeId,
    pub(super) request: CommitRequest,
    pub(super) claim: Option<LockClaim>,
}

pub(super) struct Client {
    router: Router,
    /// The open connections.
    pub(super) connections: BTreeMap<PeerAddress, ConnectionId>,
    /// Commits by the id of their request: the latest ones without an answer.
    sent: BTreeMap<u64, Sent>,
    /// Requests that went to another shard than the router chose: that shard, by their ids.
    strayed: BTreeMap<u64, PeerAddress>,
    /// Sends most requests to one fixed replica of a range, even if another leads. Such a client is
    /// the first to see a stale replica.
    stubborn_at: Option<usize>,
    /// When the client was suspended with its clock, in true time, and until when.
    suspended_us: (u64, u64),
    /// By how much earlier suspensions have put its clock back.
    lost_us: u64,
}

impl Client {
    pub(super) fn new(
        parameters: &Parameters,
        ranges: &RangeMap,
        random: &mut fastrand::Rng,
    ) -> Self {
        let client = vec![([127, 0, 0, 1], 1).into(); usize::from(parameters.shards)];
        let node = |node| NodeAddress { node: NodeId(node), client: client.clone() };
        let nodes = (0..parameters.nodes).map(node).collect();
        let topology = Topology { cluster_id: 1, nodes, ranges: ranges.clone(), now_ts: None };
        let error_us = random.u64(0..2 * MAX_CLOCK_ERROR_US);
        let now_ts = timestamp(error_us).saturating_sub_us(MAX_CLOCK_ERROR_US);
        let mut sessions = random.fork();
        let router = Router::new(RouterConfig {
            topology,
            session: SessionId(sessions.u64(..)),
            now_ts,
            now_us: 0,
            first_window: parameters.first_window,
            random: random.fork(),
            fresh_session: Box::new(move || sessions.bool().then(|| SessionId(sessions.u64(..)))),
        });
        Self {
            router,
            connections: BTreeMap::new(),
            sent: BTreeMap::new(),
            strayed: BTreeMap::new(),
            stubborn_at: random.bool().then(|| random.usize(..)),
            suspended_us: (0, 0),
            lost_us: 0,
        }
    }

    /// Returns the client's monotonic time.
    pub(super) fn now_us(&self, now_us: u64) -> u64 {
        let (from_us, until_us) = self.suspended_us;
        let lost_us = now_us.clamp(from_us, until_us) - from_us;
        now_us - self.lost_us - lost_us
    }

    /// Suspends the client together with its clock.
    pub(super) fn suspend(&mut self, now_us: u64, length_us: u64) {
        let (from_us, until_us) = self.suspended_us;
        self.lost_us += until_us - from_us;
        self.suspended_us = (now_us, now_us + length_us);
    }

    pub(super) fn suspended_until_us(&self) -> u64 {
        self.suspended_us.1
    }

    /// Returns the true time at which the router's next tick is due.
    pub(super) fn due_us(&self) -> u64 {
        let (from_us, until_us) = self.suspended_us;
        let lost_us = self.lost_us + (until_us - from_us);
        let due_us = self.router.next_due_us().map_or(u64::MAX, |due_us| due_us + lost_us);
        due_us.max(until_us)
    }

    pub(super) fn step(&mut self, input: RouterInput, now_us: u64) -> Vec<RouterEffect> {
        let mut effects = Vec::new();
        self.router.step(input, self.now_us(now_us), &mut effects);
        effects
    }

    /// Returns the shard and connection of a request that the router sends to `to`. Some requests
    /// go to another member of their range.
    pub(super) fn stray(
        &mut self,
        to: PeerAddress,
        request: &Request,
        random: &mut fastrand::Rng,
    ) -> (PeerAddress, ConnectionId) {
        let members = self.members(request);
        let other = match self.stubborn_at {
            Some(place) if random.u8(0..4) > 0 => members.get(place % members.len().max(1)),
            _ if random.u8(0..8) == 0 => random.choice(members),
            _ => None,
        };
        let other = other.copied();
        let open = |at: PeerAddress| self.connections.get(&at).map(|connection| (at, *connection));
        let other = other.and_then(open);
        let found = other.or_else(|| open(to)).expect("the router knows the open connections");
        self.strayed.remove(&request.request_id);
        if found.0 != to {
            self.strayed.insert(request.request_id, to);
            if self.strayed.len() > SENT_KEPT {
                self.strayed.pop_first();
            }
        }
        found
    }

    /// Returns the members of the range of a request: empty for requests of one shard.
    fn members(&self, request: &Request) -> &[PeerAddress] {
        let range = match &request.operation {
            Operation::Commit { range, .. }
            | Operation::Get { range, .. }
            | Operation::Rollback { range, .. } => *range,
            Operation::Scan { scan, .. } => scan.range,
            _ => return &[],
        };
        let descriptor = self.router.topology().ranges.get(range);
        &descriptor.expect("ranges are never removed").members
    }

    /// Records a commit that is sent.
    pub(super) fn sends(&mut self, Request { request_id, operation, .. }: &Request) {
        if let Operation::Commit { range, request, claim } = operation {
            let sent = Sent { range: *range, request: request.clone(), claim: *claim };
            self.sent.insert(*request_id, sent);
            if self.sent.len() > SENT_KEPT {
                self.sent.pop_first();
            }
        }
    }

    /// Returns the shard that answers, as the router sees it.
    pub(super) fn answers_for(&mut self, request_id: u64, from: PeerAddress) -> PeerAddress {
        self.strayed.remove(&request_id).unwrap_or(from)
    }

    /// Returns the commit that an answer ends, if it was not rejected.
    pub(super) fn answered(&mut self, response: &Response) -> Option<Sent> {
        match response.outcome {
            Outcome::Committed { .. } | Outcome::ConditionFailed { .. } => {
                self.sent.remove(&response.request_id)
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("connections", &self.connections).finish_non_exhaustive()
    }
}
