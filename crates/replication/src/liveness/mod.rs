//! Failure detection, promises and leases between shards, for all of their groups at once.
//!
//! The problem: a follower must detect that its leader is lost, and a leader that its followers
//! are. One heartbeat per group costs thousands of messages a second on a shard with thousands of
//! groups, nearly all of them idle. Here each pair of shards exchanges one heartbeat for all of
//! their groups, and an idle group costs nothing (the idea of CockroachDB's store liveness).
//!
//! Rules that make this safe:
//! - A follower treats every heartbeat of its leader's shard as the leader's own. It *promises* not
//!   to vote against the leader for [`PeerTiming::promise_us`] after receiving it.
//! - A heartbeat echoes the send time of the latest one received. The echoes of a majority give the
//!   leader a lease, counted from when it *sent* the heartbeats that they echo. The lease is
//!   shorter than the promise by more than clocks drift meanwhile.
//! - A replica that stops leading or following *revokes* that no later than with the next heartbeat
//!   of its shard. The heartbeats repeat the range and the term until the peer has confirmed them.
//! - A shard that has just restarted neither leads nor follows. Each start of a shard has a number,
//!   its *session*, which all its messages carry. Once a peer has seen a session, it drops the
//!   messages of earlier ones and no longer counts on what they stood for. The restarted shard
//!   itself keeps its earlier promises until they expire.
//!
//! The detector is adaptive: a peer is suspected once its heartbeats stay away for much longer than
//! their usual interval, within bounds. A suspected peer may be live. Terms and promises keep every
//! decision safe that depends on a suspicion.

mod detector;
mod heartbeat;
mod leases;
mod revocations;

use std::collections::BTreeMap;

use palisade_wire::PeerAddress;

pub use detector::PeerTiming;
pub use heartbeat::Heartbeat;
pub use revocations::{Revocation, Revoked};

use detector::Arrivals;
use revocations::Unconfirmed;

/// A shard's view of all other shards with which it shares groups.
#[derive(Debug)]
pub struct Peers {
    timing: PeerTiming,
    session: u64,
    started_us: u64,
    /// True if this shard is about to stop.
    draining: bool,
    peers: BTreeMap<PeerAddress, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    /// The peer's latest session, or 0 before its first message.
    session: u64,
    /// Arrival time of the latest heartbeat of that session, and the latest send time received.
    heard: Option<(u64, u64)>,
    /// Send time of the latest heartbeat of this shard that the peer echoed in that session.
    acked_us: Option<u64>,
    heartbeat_due_us: u64,
    arrivals: Arrivals,
    revocations: Unconfirmed,
    /// True if the peer is about to stop.
    draining: bool,
    /// How many of the peer's revocations this shard has processed.
    taken_in: u64,
    /// The state as of the last [`Peers::tick`].
    state: PeerState,
    /// When the connection was last reported as broken, or first looked at.
    reported_us: Option<u64>,
    /// How often it was reported since an echo arrived.
    reports: u32,
}

/// How long no echo may arrive until the connection counts as broken. Doubles with each report, up
/// to about a minute: the peer may be down, or the way back may be broken.
const BROKEN_AFTER_US: u64 = 2_000_000;
const MAX_DOUBLINGS: u32 = 5;

/// Whether the peer's heartbeats arrive here, and whether this shard's heartbeats reach the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PeerState {
    heard: bool,
    hears: bool,
}

impl Peers {
    /// Creates the view of a shard whose `session` began now.
    pub fn new(
        timing: PeerTiming,
        session: u64,
        peers: impl IntoIterator<Item = PeerAddress>,
        now_us: u64,
    ) -> Self {
        let peers = peers.into_iter().map(|peer| (peer, Peer::default())).collect();
        Self { timing, session, started_us: now_us, draining: false, peers }
    }

    /// Returns this shard's session, which rises with each of its starts.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Records the session of a message. Returns `None` if the message must be dropped, because its
    /// sender is unknown or has started a later session. Returns `Some(true)` if the session is
    /// new: the peer has restarted.
    pub fn observe(&mut self, from: PeerAddress, session: u64) -> Option<bool> {
        let peer = self.peers.get_mut(&from)?;
        if session < peer.session {
            return None;
        }
        let restarted = session > peer.session;
        if restarted {
            let revocations = peer.revocations.for_next_session();
            *peer = Peer { session, revocations, ..Peer::default() };
        }
        Some(restarted)
    }

    /// Handles a heartbeat whose session was observed. Returns its new revocations, which the
    /// groups must handle at once.
    pub fn receive(
        &mut self,
        from: PeerAddress,
        heartbeat: &Heartbeat,
        now_us: u64,
    ) -> Vec<Revocation> {
        let session = self.session;
        let Some(peer) = self.peers.get_mut(&from) else { return Vec::new() };
        if let Some((at_us, _)) = peer.heard {
            peer.arrivals.count(now_us.saturating_sub(at_us));
        }
        let bore_us = peer.heard.map_or(0, |(_, bore_us)| bore_us).max(heartbeat.sent_us);
        peer.heard = Some((now_us, bore_us));
        // Heartbeats may arrive in another order. A peer that drains does so until it ends.
        peer.draining |= heartbeat.draining;
        if heartbeat.to_session != session {
            // Its echo and its numbers refer to an earlier session of this shard.
            return Vec::new();
        }
        // An echo of a heartbeat that was not sent yet would make a lease last too long.
        if (1..=now_us).contains(&heartbeat.echo_us) {
            peer.acked_us = peer.acked_us.max(Some(heartbeat.echo_us));
        }
        peer.revocations.confirm(heartbeat.taken_in);
        let known = peer.taken_in.saturating_sub(heartbeat.confirmed);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let new: Vec<_> = heartbeat.revocations.iter().skip(known).copied().collect();
        peer.taken_in += new.len() as u64;
        new
    }

    /// Queues a revocation for `peer`. The heartbeats repeat it until the peer has confirmed it.
    pub fn revoke(&mut self, peer: PeerAddress, revocation: Revocation) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.revocations.push(revocation);
        }
    }

    /// Makes all later heartbeats say that this shard is about to stop. The next ones are due at
    /// once.
    pub fn drain(&mut self) {
        self.draining = true;
        self.peers.values_mut().for_each(|peer| peer.heartbeat_due_us = 0);
    }

    /// Returns true if this shard is about to stop.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Returns true if leadership may be handed over to a peer: it is live, and is not about to
    /// stop.
    pub(crate) fn may_take_over(&self, peer: PeerAddress) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.state.heard && !peer.draining)
    }

    /// Updates the state of all peers. Returns the peers whose state changed: their heartbeats
    /// began or ceased to arrive, or this shard's began or ceased to reach them.
    pub fn tick(&mut self, now_us: u64) -> Vec<PeerAddress> {
        let timing = self.timing;
        let mut changed = Vec::new();
        for (address, peer) in &mut self.peers {
            let state = peer.state(&timing, now_us);
            if state != peer.state {
                peer.state = state;
                changed.push(*address);
            }
        }
        changed
    }

    /// Returns the peers that have echoed no new heartbeat of this shard for two seconds, and
    /// again after longer times. Another connection may reach them: TCP waits for up to minutes
    /// before it sends again on one that lost packets.
    pub fn broken_connections(&mut self, now_us: u64) -> Vec<PeerAddress> {
        let mut broken = Vec::new();
        for (address, peer) in &mut self.peers {
            let reported_us = *peer.reported_us.get_or_insert(now_us);
            if peer.acked_us.is_some_and(|us| us > reported_us) {
                peer.reports = 0;
            }
            let since_us = peer.acked_us.unwrap_or(0).max(reported_us);
            if since_us + (BROKEN_AFTER_US << peer.reports.min(MAX_DOUBLINGS)) <= now_us {
                peer.reported_us = Some(now_us);
                peer.reports += 1;
                broken.push(*address);
            }
        }
        broken
    }

    /// Returns the heartbeats that are due.
    ///
    /// Call this at the end of a turn, after every group's revocations of the turn were passed to
    /// [`Peers::revoke`]. A heartbeat echoes what arrived in the turn, and an echo without the
    /// revocation would renew a lease that the turn has ended.
    pub fn heartbeats(&mut self, now_us: u64) -> Vec<(PeerAddress, Heartbeat)> {
        let (heartbeat_us, draining) = (self.timing.heartbeat_us, self.draining);
        let due = self.peers.iter_mut().filter(|(_, peer)| now_us >= peer.heartbeat_due_us);
        due.map(|(address, peer)| {
            peer.heartbeat_due_us = now_us + heartbeat_us;
            (*address, peer.heartbeat(draining, now_us))
        })
        .collect()
    }

    /// Returns a peer's latest session, or 0.
    pub fn session_of(&self, peer: PeerAddress) -> u64 {
        self.peers.get(&peer).map_or(0, |peer| peer.session)
    }

    /// Returns true if a peer's heartbeats arrived recently, as of the last tick.
    pub fn is_heard(&self, peer: PeerAddress) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.state.heard)
    }

    /// Returns true if this shard's heartbeats reached a peer recently, as of the last tick.
    pub(crate) fn hears(&self, peer: PeerAddress) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.state.hears)
    }

    /// Returns how long ago the latest heartbeat was sent that a peer has echoed, in microseconds.
    pub fn echo_age_us(&self, peer: PeerAddress, now_us: u64) -> Option<u64> {
        Some(now_us.saturating_sub(self.peers.get(&peer)?.acked_us?))
    }

    /// Returns the address of every peer.
    pub fn addresses(&self) -> impl Iterator<Item = PeerAddress> + '_ {
        self.peers.keys().copied()
    }
}

impl Peer {
    fn heartbeat(&self, draining: bool, now_us: u64) -> Heartbeat {
        // An echo renews every lease that is not revoked in this heartbeat or an earlier one. So
        // there is no echo while some revocations do not fit.
        let is_complete = self.revocations.fit();
        let echo_us = self.heard.map_or(0, |(_, bore_us)| bore_us);
        Heartbeat {
            sent_us: now_us,
            draining,
            to_session: self.session,
            echo_us: if is_complete { echo_us } else { 0 },
            taken_in: self.taken_in,
            confirmed: self.revocations.confirmed(),
            revocations: self.revocations.first(),
        }
    }

    fn state(&self, timing: &PeerTiming, now_us: u64) -> PeerState {
        let suspect_us = self.arrivals.suspect_us(timing);
        let lately = |at_us: u64| at_us + suspect_us > now_us;
        PeerState {
            heard: self.heard.is_some_and(|(at_us, _)| lately(at_us)),
            hears: self.acked_us.is_some_and(lately),
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{NodeId, RangeId, ShardId};

    use super::{revocations::MAX_REVOCATIONS, *};

    fn at(node: u16) -> PeerAddress {
        PeerAddress { node: NodeId(node), shard: ShardId(0) }
    }

    fn pair() -> (Peers, Peers) {
        let timing = PeerTiming::default();
        (Peers::new(timing, 1, [at(1)], 0), Peers::new(timing, 1, [at(0)], 0))
    }

    /// Sends one heartbeat each way. Returns the revocations that `b` and `a` received.
    fn exchange(a: &mut Peers, b: &mut Peers, now_us: u64) -> (Vec<Revocation>, Vec<Revocation>) {
        let mut revoked = (Vec::new(), Vec::new());
        a.tick(now_us);
        for (_, heartbeat) in a.heartbeats(now_us) {
            b.observe(at(0), a.session()).expect("sessions rise");
            revoked.0.extend(b.receive(at(0), &heartbeat, now_us));
        }
        b.tick(now_us);
        for (_, heartbeat) in b.heartbeats(now_us) {
            a.observe(at(1), b.session()).expect("sessions rise");
            revoked.1.extend(a.receive(at(1), &heartbeat, now_us));
        }
        revoked
    }

    fn revocation(term: u64) -> Revocation {
        Revocation { range: RangeId(1), term, what: Revoked::Leadership }
    }

    /// Returns when heartbeat `number` is due.
    fn beat(number: u64) -> u64 {
        number * PeerTiming::default().heartbeat_us
    }

    #[test]
    fn lease_starts_at_heartbeat_send_and_ends_before_promise() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, 1_000_000);
        let PeerTiming { lease_us, promise_us, .. } = PeerTiming::default();
        assert_eq!(a.supported_until_us(at(1), 1), 1_000_000 + lease_us);
        assert_eq!(b.promised_until_us(at(0), 1), 1_000_000 + promise_us);
        assert!(lease_us < promise_us);
        // Other sessions give no support and no promise.
        assert_eq!(a.supported_until_us(at(1), 2), 0);
        assert_eq!(b.promised_until_us(at(0), 2), 0);
    }

    #[test]
    fn lease_renewal_waits_for_all_revocations() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, beat(100));
        let all: Vec<_> = (0..3 * MAX_REVOCATIONS as u64 - 1).map(revocation).collect();
        all.iter().for_each(|revocation| b.revoke(at(0), *revocation));
        let until_us = a.supported_until_us(at(1), 1);
        let mut arrived = Vec::new();
        for round in 101..104 {
            assert_eq!(a.supported_until_us(at(1), 1), until_us);
            arrived.extend(exchange(&mut a, &mut b, beat(round)).1);
        }
        assert!(arrived == all, "{} of {} arrived", arrived.len(), all.len());
        assert!(a.supported_until_us(at(1), 1) > until_us);
    }

    #[test]
    fn connection_is_broken_while_heartbeats_do_not_reach_peer() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, 1_000_000);
        exchange(&mut a, &mut b, 1_000_000 + beat(1));
        assert_eq!(a.broken_connections(1_000_000 + beat(1)), []);
        let mut broken = Vec::new();
        for tick in 0..1_450 {
            let now_us = 1_100_000 + tick * 10_000;
            a.tick(now_us);
            broken.extend(a.broken_connections(now_us).into_iter().map(|peer| (peer, now_us)));
        }
        assert_eq!(broken.len(), 3, "{broken:?}");
        let pauses: Vec<_> = broken.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
        assert_eq!(pauses, [2 * BROKEN_AFTER_US, 4 * BROKEN_AFTER_US]);
        exchange(&mut a, &mut b, 20_000_000);
        exchange(&mut a, &mut b, 20_000_000 + beat(1));
        assert_eq!(a.broken_connections(21_000_000), []);
    }

    #[test]
    fn suspicion_is_reported_once_and_ends_on_heartbeat() {
        let (mut a, mut b) = pair();
        let mut now_us = 1_000_000;
        for _ in 0..50 {
            exchange(&mut a, &mut b, now_us);
            now_us += beat(1);
        }
        assert!(a.is_heard(at(1)) && a.hears(at(1)));
        let mut changes = 0;
        for _ in 0..100 {
            now_us += 10_000;
            changes += a.tick(now_us).len();
        }
        assert_eq!(changes, 1);
        assert!(!a.is_heard(at(1)) && !a.hears(at(1)));
        exchange(&mut a, &mut b, now_us + beat(1));
        exchange(&mut a, &mut b, now_us + beat(2));
        assert!(a.is_heard(at(1)) && a.hears(at(1)));
    }

    #[test]
    fn suspicion_timeout_adapts_within_bounds() {
        let timing = PeerTiming::default();
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.suspect_us(&timing), timing.suspect_us.0);
        for at in 0..500 {
            arrivals.count(if at % 5 == 0 { 200_000 } else { 10_000 });
        }
        let suspect_us = arrivals.suspect_us(&timing);
        assert!(suspect_us > 2 * timing.suspect_us.0, "{suspect_us}");
        for _ in 0..500 {
            arrivals.count(u64::MAX);
        }
        assert_eq!(arrivals.suspect_us(&timing), timing.suspect_us.1);
    }

    #[test]
    fn revocation_is_resent_until_confirmed_and_applied_once() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, beat(1));
        a.revoke(at(1), revocation(3));
        // The first heartbeat that carries it is lost.
        assert_eq!(a.heartbeats(beat(2))[0].1.revocations, [revocation(3)]);
        a.revoke(at(1), revocation(4));
        let (to_b, _) = exchange(&mut a, &mut b, beat(3));
        assert_eq!(to_b, [revocation(3), revocation(4)]);
        assert!(a.heartbeats(beat(4))[0].1.revocations.is_empty());
        a.revoke(at(1), revocation(5));
        let (to_b, _) = exchange(&mut a, &mut b, beat(5));
        assert_eq!(to_b, [revocation(5)]);
    }

    #[test]
    fn revocation_survives_restart_of_receiver() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, beat(100));
        a.revoke(at(1), revocation(3));
        let mut b = Peers::new(PeerTiming::default(), 2, [at(0)], 0);
        let (first, _) = exchange(&mut a, &mut b, beat(101));
        assert!(first.is_empty(), "the heartbeat was meant for the session before");
        let (second, _) = exchange(&mut a, &mut b, beat(102));
        assert_eq!(second, [revocation(3)]);
        exchange(&mut a, &mut b, beat(103));
        assert!(a.heartbeats(beat(104))[0].1.revocations.is_empty());
    }

    #[test]
    fn messages_of_earlier_session_are_dropped() {
        let (mut a, _) = pair();
        assert_eq!(a.observe(at(1), 3), Some(true));
        assert_eq!(a.observe(at(1), 3), Some(false));
        assert_eq!(a.observe(at(1), 2), None);
        assert_eq!(a.observe(at(9), 1), None);
    }

    #[test]
    fn lease_ignores_echo_of_heartbeat_not_yet_sent() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, 1_000_000);
        let until_us = a.supported_until_us(at(1), 1);
        let heartbeat = Heartbeat {
            sent_us: 1_000_001,
            draining: false,
            to_session: 1,
            echo_us: 9_000_000,
            taken_in: 0,
            confirmed: 0,
            revocations: Vec::new(),
        };
        a.receive(at(1), &heartbeat, 1_000_001);
        assert_eq!(a.supported_until_us(at(1), 1), until_us);
    }
}
