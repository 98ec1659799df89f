//! What a shard knows of the shards that its groups' other replicas live on.
//!
//! The problem: a follower must notice that its leader is gone, and a leader that its followers
//! are; the naive way, a heartbeat for each group, costs thousands of messages a second on a shard
//! with thousands of groups, nearly all of them idle. Here each pair of shards exchanges one
//! heartbeat for all of their groups, and an idle group costs nothing (the idea is that of
//! CockroachDB's store liveness).
//!
//! What makes that safe is what silence and speech stand for:
//! - A replica that follows a leader takes every heartbeat of the leader's shard as the leader's
//!   own, and *promises* not to vote against it for [`PeerTiming::promise_us`] from then on.
//! - A heartbeat echoes the send time of the latest one received. The leader takes a majority's
//!   echoes for a lease, counted from when it *sent* the heartbeats that they echo; the lease is
//!   shorter than the promise by more than clocks drift meanwhile.
//! - So whoever stops leading, or stops following, must say so before its next heartbeat is taken
//!   for the opposite. It *revokes*: the range and the term ride on every heartbeat until the peer
//!   has confirmed them.
//! - A shard that has restarted follows and leads nobody. Its start has a number, its *session*,
//!   which is on all that it sends: a higher one ends whatever the earlier session stood for, and
//!   messages of the earlier one are dropped from then on.
//!
//! Suspicion adapts: a peer is taken for silent once it has been quiet for much longer than its
//! heartbeats were apart so far, within bounds. It is never proof of death; what depends on it is
//! kept safe by terms and promises.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, BytesMut};
use palisade_wire::{Decode, Encode, PeerAddress, RangeId, Reader, WireError};

/// Revocations in one heartbeat: some 53 KB.
const MAX_REVOCATIONS: usize = 4_096;

/// How shards watch each other.
#[derive(Clone, Copy, Debug)]
pub struct PeerTiming {
    /// Between two heartbeats to a peer.
    pub heartbeat_us: u64,
    /// How long a follower does not vote against a leader that it heard.
    pub promise_us: u64,
    /// How long a leader counts on a follower, from when it sent what the follower heard.
    pub lease_us: u64,
    /// The shortest and the longest silence after which a peer is suspected.
    pub suspect_us: (u64, u64),
}

impl Default for PeerTiming {
    fn default() -> Self {
        Self {
            heartbeat_us: 50_000,
            promise_us: 220_000,
            lease_us: 175_000,
            suspect_us: (240_000, 2_000_000),
        }
    }
}

/// One shard's view of all others that it shares groups with.
#[derive(Debug)]
pub struct Peers {
    timing: PeerTiming,
    session: u64,
    started_us: u64,
    peers: BTreeMap<PeerAddress, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    /// Its latest session; 0 before anything was heard.
    session: u64,
    /// When its latest heartbeat of that session arrived, and the time that it bore.
    heard: Option<(u64, u64)>,
    /// When the latest heartbeat that it echoed in that session was sent.
    acked_us: Option<u64>,
    heartbeat_due_us: u64,
    arrivals: Arrivals,
    /// What it has yet to confirm, with the number of the first.
    revocations: VecDeque<Revocation>,
    first_revocation: u64,
    /// How many of its own this shard has taken in.
    taken_in: u64,
    /// As last reported by [`Peers::tick`].
    state: PeerState,
}

/// Whether a peer is heard, and whether it hears this shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PeerState {
    heard: bool,
    hears: bool,
}

/// How far apart heartbeats arrive.
#[derive(Debug, Default)]
struct Arrivals {
    mean_us: f64,
    deviation_us: f64,
}

/// Something that must not be counted on any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The range.
    pub range: RangeId,
    /// A term.
    pub term: u64,
    /// What of the sender is not to be counted on in it.
    pub what: Revoked,
}

/// What a peer must not count on any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The sender does not lead this term any more.
    Leadership,
    /// The sender has moved on to this term, and follows nobody of an earlier one.
    Support,
}

/// What one shard tells another, over and over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The sender's clock.
    pub sent_us: u64,
    /// The latest session of the receiver that the sender knows, or 0.
    pub to_session: u64,
    /// The latest `sent_us` that the sender received of that session, or 0.
    pub echo_us: u64,
    /// How many revocations of that session the sender has taken in.
    pub taken_in: u64,
    /// How many revocations came before those below.
    pub confirmed: u64,
    /// What the receiver has not confirmed.
    pub revocations: Vec<Revocation>,
}

impl Peers {
    /// A shard in its `session`-th life, which began now.
    pub fn new(
        timing: PeerTiming,
        session: u64,
        peers: impl IntoIterator<Item = PeerAddress>,
        now_us: u64,
    ) -> Self {
        let peers = peers.into_iter().map(|peer| (peer, Peer::default())).collect();
        Self { timing, session, started_us: now_us, peers }
    }

    /// Which life of this shard this is.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Takes note of the session that a message bears: `None` if the message is to be dropped,
    /// else whether the peer has restarted.
    pub fn observe(&mut self, from: PeerAddress, session: u64) -> Option<bool> {
        let peer = self.peers.get_mut(&from)?;
        if session < peer.session {
            return None;
        }
        let restarted = session > peer.session;
        if restarted {
            // Its new session may follow or count on this shard by a message of before.
            let revocations = std::mem::take(&mut peer.revocations);
            *peer = Peer { session, revocations, ..Peer::default() };
        }
        Some(restarted)
    }

    /// Takes in a heartbeat whose session was observed. What it revokes is for the groups to act
    /// on at once.
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
        if heartbeat.to_session != session {
            // It was meant for an earlier life of this shard, as was what it numbers.
            return Vec::new();
        }
        if heartbeat.echo_us > 0 {
            peer.acked_us = peer.acked_us.max(Some(heartbeat.echo_us));
        }
        while peer.first_revocation < heartbeat.taken_in && peer.revocations.pop_front().is_some() {
            peer.first_revocation += 1;
        }
        let known = peer.taken_in.saturating_sub(heartbeat.confirmed);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let new: Vec<_> = heartbeat.revocations.iter().skip(known).copied().collect();
        peer.taken_in += new.len() as u64;
        new
    }

    /// Tells a peer, from now on and until it has confirmed, not to count on this replica.
    pub fn revoke(&mut self, peer: PeerAddress, revocation: Revocation) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.revocations.push_back(revocation);
        }
    }

    /// Looks at the time: returns the peers that are heard again, or no longer, or that hear this
    /// shard, or no longer.
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

    /// The heartbeats that are due.
    ///
    /// To be called at the end of a turn, once every group's revocations of the turn were passed to
    /// [`Peers::revoke`]: a heartbeat echoes what arrived in the turn, and an echo without the
    /// revocation would renew a lease that the turn has ended.
    pub fn heartbeats(&mut self, now_us: u64) -> Vec<(PeerAddress, Heartbeat)> {
        let heartbeat_us = self.timing.heartbeat_us;
        let due = self.peers.iter_mut().filter(|(_, peer)| now_us >= peer.heartbeat_due_us);
        due.map(|(address, peer)| {
            peer.heartbeat_due_us = now_us + heartbeat_us;
            (*address, peer.heartbeat(now_us))
        })
        .collect()
    }

    /// A peer's latest session, or 0.
    pub fn session_of(&self, peer: PeerAddress) -> u64 {
        self.peers.get(&peer).map_or(0, |peer| peer.session)
    }

    /// Whether a peer was heard lately, as of the last tick.
    pub(crate) fn is_heard(&self, peer: PeerAddress) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.state.heard)
    }

    /// Whether a peer lately heard this shard, as of the last tick.
    pub(crate) fn hears(&self, peer: PeerAddress) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.state.hears)
    }

    /// Until when this shard must not vote against a leader on a peer in a session.
    pub(crate) fn promised_until_us(&self, leader: PeerAddress, session: u64) -> u64 {
        let peer = self.peers.get(&leader).filter(|peer| peer.session == session);
        let heard_us = peer.and_then(|peer| peer.heard).map(|(at_us, _)| at_us);
        heard_us.map_or(0, |heard_us| heard_us + self.timing.promise_us)
    }

    /// Until when promises may be in force that an earlier session gave.
    pub(crate) fn inherited_promises_until_us(&self) -> u64 {
        self.started_us + self.timing.promise_us
    }

    /// Until when a leader may count on a follower that confirmed its leadership in a session.
    pub(crate) fn supported_until_us(&self, follower: PeerAddress, session: u64) -> u64 {
        let peer = self.peers.get(&follower).filter(|peer| peer.session == session);
        let acked_us = peer.and_then(|peer| peer.acked_us);
        acked_us.map_or(0, |acked_us| acked_us + self.timing.lease_us)
    }

    /// Until when a leader may count on itself.
    pub(crate) fn supports_itself_until_us(&self, now_us: u64) -> u64 {
        now_us + self.timing.lease_us
    }

    /// Everybody who is watched.
    pub fn addresses(&self) -> impl Iterator<Item = PeerAddress> + '_ {
        self.peers.keys().copied()
    }
}

impl Peer {
    fn heartbeat(&self, now_us: u64) -> Heartbeat {
        // An echo renews every promise that is not revoked with it or before.
        let is_complete = self.revocations.len() <= MAX_REVOCATIONS;
        let echo_us = self.heard.map_or(0, |(_, bore_us)| bore_us);
        Heartbeat {
            sent_us: now_us,
            to_session: self.session,
            echo_us: if is_complete { echo_us } else { 0 },
            taken_in: self.taken_in,
            confirmed: self.first_revocation,
            revocations: self.revocations.iter().take(MAX_REVOCATIONS).copied().collect(),
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

impl Arrivals {
    fn count(&mut self, interval_us: u64) {
        // Deviations are remembered for some hundred heartbeats: a peer that was slow once is given
        // time for as long as that, and a single pause does not change much.
        const WEIGHT: f64 = 1.0 / 64.0;
        let interval_us = interval_us.min(2_000_000) as f64;
        self.mean_us += (interval_us - self.mean_us) * WEIGHT;
        let deviation_us = (interval_us - self.mean_us).abs();
        self.deviation_us += (deviation_us - self.deviation_us) * WEIGHT;
    }

    /// A silence that is much longer than the intervals so far.
    fn suspect_us(&self, timing: &PeerTiming) -> u64 {
        let (shortest_us, longest_us) = timing.suspect_us;
        let long_us = self.mean_us * 2.0 + self.deviation_us * 8.0;
        (long_us as u64).clamp(shortest_us, longest_us)
    }
}

impl Encode for Heartbeat {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.sent_us);
        out.put_u64_le(self.to_session);
        out.put_u64_le(self.echo_us);
        out.put_u64_le(self.taken_in);
        out.put_u64_le(self.confirmed);
        out.put_u32_le(u32::try_from(self.revocations.len()).expect("ranges are numbered so"));
        for revocation in &self.revocations {
            out.put_u32_le(revocation.range.0);
            out.put_u64_le(revocation.term);
            out.put_u8(match revocation.what {
                Revoked::Leadership => 1,
                Revoked::Support => 2,
            });
        }
    }
}

impl Decode for Heartbeat {
    fn decode(reader: &mut Reader) -> Result<Self, WireError> {
        let sent_us = reader.u64()?;
        let (to_session, echo_us) = (reader.u64()?, reader.u64()?);
        let (taken_in, confirmed) = (reader.u64()?, reader.u64()?);
        let count = reader.u32()?;
        // Nothing is reserved for a count that nobody vouches for.
        let mut revocations = Vec::new();
        for _ in 0..count {
            let (range, term) = (RangeId(reader.u32()?), reader.u64()?);
            let what = match reader.u8()? {
                1 => Revoked::Leadership,
                2 => Revoked::Support,
                tag => return Err(WireError::UnknownTag { what: "revocation", tag }),
            };
            revocations.push(Revocation { range, term, what });
        }
        Ok(Self { sent_us, to_session, echo_us, taken_in, confirmed, revocations })
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{NodeId, ShardId};

    use super::*;

    fn at(node: u16) -> PeerAddress {
        PeerAddress { node: NodeId(node), shard: ShardId(0) }
    }

    fn pair() -> (Peers, Peers) {
        let timing = PeerTiming::default();
        (Peers::new(timing, 1, [at(1)], 0), Peers::new(timing, 1, [at(0)], 0))
    }

    /// One heartbeat from each to the other; returns what `b` and `a` were told to revoke.
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

    /// When the so-many-th heartbeat is due.
    fn beat(number: u64) -> u64 {
        number * PeerTiming::default().heartbeat_us
    }

    #[test]
    fn support_lasts_from_when_the_echoed_heartbeat_was_sent_and_ends_before_the_promise() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, 1_000_000);
        let PeerTiming { lease_us, promise_us, .. } = PeerTiming::default();
        assert_eq!(a.supported_until_us(at(1), 1), 1_000_000 + lease_us);
        assert_eq!(b.promised_until_us(at(0), 1), 1_000_000 + promise_us);
        assert!(lease_us < promise_us);
        // Another session stands for nothing.
        assert_eq!(a.supported_until_us(at(1), 2), 0);
        assert_eq!(b.promised_until_us(at(0), 2), 0);
    }

    #[test]
    fn no_echo_renews_a_lease_before_all_revocations_have_arrived() {
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
    fn a_silent_peer_is_noticed_once_and_so_is_its_return() {
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
    fn irregular_heartbeats_buy_time_within_bounds() {
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
    fn a_revocation_is_told_until_it_is_confirmed_and_taken_in_once() {
        let (mut a, mut b) = pair();
        exchange(&mut a, &mut b, beat(1));
        a.revoke(at(1), revocation(3));
        // The first heartbeat that tells it is lost.
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
    fn a_revocation_outlives_a_restart_of_the_peer_that_has_not_confirmed_it() {
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
    fn messages_of_an_earlier_session_are_dropped() {
        let (mut a, _) = pair();
        assert_eq!(a.observe(at(1), 3), Some(true));
        assert_eq!(a.observe(at(1), 3), Some(false));
        assert_eq!(a.observe(at(1), 2), None);
        assert_eq!(a.observe(at(9), 1), None);
    }
}
