//! Passes clients' requests to the replicas that they are for.

use palisade_clock::{Now, Timestamp};
use palisade_control::{Change, Topology};
use palisade_wire::{Operation, Outcome, PeerAddress, RangeId, Rejection, Request, Response};

use super::{Shard, lent};
use crate::{
    TestFault,
    pacing::Waited,
    turn::{ConnectionId, RequestOrigin, Served},
};

impl Shard {
    /// Starts a request of a client, which a turn first found at `since_us`.
    pub(super) fn client_request(
        &mut self,
        connection: ConnectionId,
        since_us: u64,
        request: Request,
        now: Now,
    ) {
        let Request { request_id, may_forward, operation, .. } = request;
        let origin = RequestOrigin { connection, request_id, since_us };
        let copy = may_forward.then(|| operation.clone());
        let served = self.serve(origin, operation, now);
        if let (Err(Rejection::NotServing { hint: Some(to) }), Some(operation)) = (&served, copy)
            && self.forward(origin, *to, operation, now)
        {
            return;
        }
        self.answer(origin, served, now);
    }

    /// Passes a request on to the replica that serves it. Returns false if that is not possible.
    fn forward(
        &mut self,
        origin: RequestOrigin,
        to: PeerAddress,
        operation: Operation,
        now: Now,
    ) -> bool {
        if to == self.config.at || !self.peers.is_heard(to) {
            return false;
        }
        let session = (to, self.peers.session_of(to));
        let body = self.forwarding.forward(origin, session, operation, now.monotonic_us);
        let passed = body.is_some();
        self.hellos.extend(body.map(|body| (to, body)));
        passed
    }

    /// Starts a request that a peer passes on.
    pub(super) fn receive_request(
        &mut self,
        from: (PeerAddress, u64),
        to_session: u64,
        request: Request,
        now: Now,
    ) {
        if to_session != self.admission.session() {
            return;
        }
        let taken = self.forwarding.take(from, request.request_id, now.monotonic_us);
        if let Some(origin) = taken {
            self.request(origin, request.operation, now);
        }
    }

    /// Replies to the client whose request was passed on to a peer.
    pub(super) fn receive_response(&mut self, from: PeerAddress, response: Response, now: Now) {
        if let Some(origin) = self.forwarding.answered(from, response.request_id) {
            lent!(self, now).reply(origin, response.outcome);
        }
    }

    /// Gives up the requests that were passed on and get no response.
    pub(super) fn expire_forwarded(&mut self, now: Now) {
        let peers = &self.peers;
        let expired = self.forwarding.expire(now.monotonic_us, |peer| peers.is_heard(peer));
        let forgets = self.config.planted.is(TestFault::ForgetForwarded);
        let rejection = if forgets { Rejection::Overloaded } else { Rejection::Unknown };
        for origin in expired {
            self.answer(origin, Err(rejection), now);
        }
    }

    /// Starts a request, and replies at once if its outcome is known already.
    pub(super) fn request(&mut self, origin: RequestOrigin, operation: Operation, now: Now) {
        let served = self.serve(origin, operation, now);
        self.answer(origin, served, now);
    }

    fn answer(&mut self, origin: RequestOrigin, served: Result<Served, Rejection>, now: Now) {
        let outcome = match served {
            Ok(Served::Pending) => return,
            Ok(Served::Done(outcome)) => outcome,
            Err(rejection) => Outcome::Rejected(rejection),
        };
        lent!(self, now).reply(origin, outcome);
    }

    fn serve(
        &mut self,
        origin: RequestOrigin,
        operation: Operation,
        now: Now,
    ) -> Result<Served, Rejection> {
        if let Operation::Status = operation {
            return Ok(Served::Done(Outcome::Status(self.status(now).to_bytes())));
        }
        if self.drain.rejects() {
            return Err(Rejection::Draining);
        }
        match operation {
            Operation::RangeMap => {
                let topology = Topology {
                    cluster_id: self.config.cluster_id,
                    nodes: self.config.nodes.clone(),
                    ranges: self.ranges.clone(),
                    now_ts: self.now_ts(now),
                };
                return Ok(Served::Done(Outcome::RangeMap(topology.to_bytes())));
            }
            Operation::KeepVersions { at_ts } => {
                let latest_ts = Timestamp::from_physical_us(now.wall.latest_us);
                if !self.protections.protect(at_ts.min(latest_ts), now) {
                    return Err(Rejection::Collected);
                }
                return Ok(Served::Done(Outcome::VersionsKept));
            }
            _ if !self.admission.is_admitted() => {
                return Err(Rejection::NotServing { hint: None });
            }
            _ => {}
        }
        if !self.log.room.accepts(&operation, self.log_reserve) {
            return Err(Rejection::LogFull);
        }
        match self.pacing.pass(origin, operation, now)? {
            Some(operation) => self.serve_paced(origin, operation, now),
            None => Ok(Served::Pending),
        }
    }

    /// Serves or rejects a request that has waited for room in the log.
    pub(super) fn admit_paced(&mut self, waited: Waited, now: Now) {
        let (origin, served) = match waited {
            Waited::TooLong(origin) => (origin, Err(Rejection::LogFull)),
            Waited::Admitted(origin, _) if self.drain.rejects() => {
                (origin, Err(Rejection::Draining))
            }
            Waited::Admitted(origin, operation) => {
                (origin, self.serve_paced(origin, operation, now))
            }
        };
        self.answer(origin, served, now);
    }

    /// Starts a request that the log has room for.
    fn serve_paced(
        &mut self,
        origin: RequestOrigin,
        operation: Operation,
        now: Now,
    ) -> Result<Served, Rejection> {
        if self.is_fenced(now) {
            return Err(Rejection::ClockUncertain);
        }
        if self.commit_wait.is_full() {
            return Err(Rejection::Overloaded);
        }
        let hasty = self.config.planted.is(TestFault::HastySnapshots);
        let Some(operation) = self.early_reads.pass(origin, operation, hasty, now)? else {
            return Ok(Served::Pending);
        };
        let served = match operation {
            Operation::Commit { range, request, claim } => {
                self.with_replica(range, now, |r, turn| r.commit(origin, request, claim, turn))
            }
            Operation::Get { range, key, kind } => {
                self.with_replica(range, now, |r, turn| r.get(origin, &key, kind, turn))
            }
            Operation::Scan { scan, kind } => {
                self.with_replica(scan.range, now, |r, turn| r.scan(origin, scan, kind, turn))
            }
            Operation::Rollback { range, claim } => {
                self.with_replica(range, now, |r, turn| Ok(r.rollback(claim, turn)))
            }
            Operation::Control(change) => {
                let change = Change::from_bytes(&change).map_err(|_| Rejection::InvalidChange)?;
                self.with_replica(RangeId::CONTROL, now, |r, turn| {
                    r.propose(origin, change.to_bytes(), turn)
                })
            }
            Operation::Replicas { range, change } => {
                self.with_replica(range, now, |r, turn| r.change(origin, change, turn))
            }
            Operation::RangeMap | Operation::Status | Operation::KeepVersions { .. } => {
                unreachable!("they were answered above")
            }
        };
        served.unwrap_or(Err(Rejection::NotHere))
    }

    /// Returns the clock's reading for a client's start, or `None` while it is too uncertain.
    fn now_ts(&self, now: Now) -> Option<Timestamp> {
        let is_sure = !self.is_fenced(now);
        is_sure.then(|| Timestamp::from_physical_us(now.wall.reading_us()))
    }
}
