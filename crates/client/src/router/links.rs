//! The open connections, and which of their shards do not answer.
//!
//! The problem: a process that is stopped, or a network that drops packets, leaves a connection
//! open. Without a limit, its requests would wait until their deadlines, although other replicas
//! serve the range meanwhile. A limit for each request would be wrong as well: a request may wait
//! for locks for a long time at a shard that works.
//!
//! So a shard that owes an answer and sends none of any kind gets a probe, which every shard
//! answers in its next turn. If that is not answered either, the shard counts as silent.
//!
//! ```text
//! sent ── nothing heard for `limit_us` ──> probe ── nothing for `limit_us` ──> silent
//! ```
//!
//! Bytes on the connection count as well: a large value takes long on a slow network. The limit
//! follows the latency of the shard, and doubles after each connection that was closed for silence,
//! as TCP's retransmission timeout does (RFC 6298 §2, §5).

use std::collections::BTreeMap;

use palisade_wire::PeerAddress;

/// Bounds of the time after which a shard gets a probe, and then counts as silent, in microseconds.
const MIN_LIMIT_US: u64 = 200_000;
const MAX_LIMIT_US: u64 = 500_000;

/// The limit doubles with each connection that is closed without an answer, up to this often.
const MAX_DOUBLINGS: u32 = 4;

/// The connections, by shard. What is known of a shard's latency outlives its connection.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: BTreeMap<PeerAddress, Link>,
}

#[derive(Debug, Default)]
struct Link {
    is_open: bool,
    /// Number of requests without an answer.
    in_flight: u64,
    /// When the shard sent its last answer, or was sent a request while it owed none.
    heard_us: u64,
    stage: Stage,
    /// When the probe was sent.
    probed_us: u64,
    /// How often the connection was closed for silence since anything was heard.
    closes: u32,
    /// The smoothed latency, and its mean deviation.
    latency_us: u64,
    deviation_us: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Answers,
    IsProbed,
    IsSilent,
}

/// What is to be done about a shard that owes an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Send a request that it answers in its next turn.
    Probe,
    /// Close the connection.
    Close,
}

impl Links {
    pub(super) fn open(&mut self, at: PeerAddress) {
        let link = self.links.entry(at).or_default();
        (link.is_open, link.in_flight, link.stage) = (true, 0, Stage::Answers);
    }

    pub(super) fn close(&mut self, at: PeerAddress) {
        self.links.entry(at).or_default().is_open = false;
    }

    pub(super) fn is_open(&self, at: PeerAddress) -> bool {
        self.links.get(&at).is_some_and(|link| link.is_open)
    }

    /// Returns the shards with an open connection.
    pub(super) fn shards(&self) -> impl Iterator<Item = PeerAddress> {
        self.links.iter().filter(|(_, link)| link.is_open).map(|(at, _)| *at)
    }

    /// Records that a request was sent to a shard.
    pub(super) fn sent(&mut self, to: PeerAddress, now_us: u64) {
        if let Some(link) = self.links.get_mut(&to) {
            if link.in_flight == 0 {
                link.heard_us = now_us;
            }
            link.in_flight += 1;
        }
    }

    /// Records that a request was not sent after all.
    pub(super) fn not_sent(&mut self, to: PeerAddress) {
        if let Some(link) = self.links.get_mut(&to) {
            link.in_flight = link.in_flight.saturating_sub(1);
        }
    }

    /// Records an answer of a shard, and the latency of the request if that is known.
    pub(super) fn heard(&mut self, from: PeerAddress, latency_us: Option<u64>, now_us: u64) {
        let Some(link) = self.links.get_mut(&from) else { return };
        link.progressed(now_us);
        link.in_flight = link.in_flight.saturating_sub(1);
        if let Some(sample_us) = latency_us.map(|us| us.min(MAX_LIMIT_US)) {
            let deviation_us = link.latency_us.abs_diff(sample_us);
            link.deviation_us = (3 * link.deviation_us + deviation_us) / 4;
            link.latency_us = (7 * link.latency_us + sample_us) / 8;
        }
    }

    /// Records that bytes came from a shard, or went to it.
    pub(super) fn progressed(&mut self, at: PeerAddress, now_us: u64) {
        if let Some(link) = self.links.get_mut(&at) {
            link.progressed(now_us);
        }
    }

    /// Returns what is due now, and records that it is done.
    pub(super) fn take_due(&mut self, now_us: u64) -> Option<(PeerAddress, Due)> {
        let (at, link) = self.links.iter_mut().find(|(_, link)| link.due_us() <= now_us)?;
        Some(if link.stage == Stage::Answers {
            // Counted from the probe: this client may have been suspended until now.
            (link.stage, link.probed_us) = (Stage::IsProbed, now_us);
            (*at, Due::Probe)
        } else {
            link.stage = Stage::IsSilent;
            link.closes += 1;
            (*at, Due::Close)
        })
    }

    /// Returns when something is due next, or `u64::MAX`.
    pub(super) fn next_due_us(&self) -> u64 {
        self.links.values().map(Link::due_us).min().unwrap_or(u64::MAX)
    }
}

impl Link {
    fn progressed(&mut self, now_us: u64) {
        (self.heard_us, self.stage, self.closes) = (now_us, Stage::Answers, 0);
    }

    fn due_us(&self) -> u64 {
        let limit_us = self.latency_us + 4 * self.deviation_us;
        // A shard that is silent again and again may be far away, or overloaded.
        let limit_us = limit_us.clamp(MIN_LIMIT_US, MAX_LIMIT_US) << self.closes.min(MAX_DOUBLINGS);
        match self.stage {
            Stage::Answers if self.is_open && self.in_flight > 0 => self.heard_us + limit_us,
            Stage::IsProbed if self.is_open => self.probed_us + limit_us,
            _ => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{NodeId, ShardId};

    use super::*;

    const AT: PeerAddress = PeerAddress { node: NodeId(0), shard: ShardId(0) };

    fn links() -> Links {
        let mut links = Links::default();
        links.open(AT);
        links
    }

    #[test]
    fn silent_shard_is_probed_then_closed() {
        let mut links = links();
        assert_eq!(links.next_due_us(), u64::MAX, "a shard that owes nothing may be silent");
        links.sent(AT, 1_000);
        links.sent(AT, 2_000);
        assert_eq!(links.take_due(1_000 + MIN_LIMIT_US - 1), None);
        assert_eq!(links.take_due(1_000 + MIN_LIMIT_US), Some((AT, Due::Probe)));
        links.sent(AT, 1_000 + MIN_LIMIT_US);
        assert_eq!(links.take_due(1_000 + MIN_LIMIT_US), None);
        assert_eq!(links.next_due_us(), 1_000 + 2 * MIN_LIMIT_US);
        assert_eq!(links.take_due(1_000 + 2 * MIN_LIMIT_US), Some((AT, Due::Close)));
        assert_eq!(links.next_due_us(), u64::MAX, "it is closed once");
    }

    #[test]
    fn any_answer_shows_that_a_shard_works() {
        let mut links = links();
        links.sent(AT, 0);
        links.sent(AT, 0);
        assert_eq!(links.take_due(MIN_LIMIT_US), Some((AT, Due::Probe)));
        links.sent(AT, MIN_LIMIT_US);
        links.heard(AT, None, MIN_LIMIT_US + 1);
        assert_eq!(links.next_due_us(), 2 * MIN_LIMIT_US + 1);
        links.heard(AT, None, MIN_LIMIT_US + 2);
        links.heard(AT, None, MIN_LIMIT_US + 3);
        assert_eq!(links.next_due_us(), u64::MAX, "it owes nothing");
    }

    #[test]
    fn limit_follows_the_latency_within_bounds() {
        let mut links = links();
        let limit_us = |links: &mut Links, latency_us| {
            for _ in 0..64 {
                links.sent(AT, 0);
                links.heard(AT, Some(latency_us), 0);
            }
            links.sent(AT, 0);
            let limit_us = links.next_due_us();
            links.heard(AT, None, 0);
            limit_us
        };
        assert_eq!(limit_us(&mut links, 100), MIN_LIMIT_US);
        let slow_us = limit_us(&mut links, 300_000);
        assert!((300_000..320_000).contains(&slow_us), "{slow_us}");
        assert_eq!(limit_us(&mut links, 10_000_000), MAX_LIMIT_US);
        links.close(AT);
        links.open(AT);
        links.sent(AT, 0);
        assert_eq!(links.next_due_us(), MAX_LIMIT_US, "the latency outlives the connection");
    }

    #[test]
    fn suspended_client_probes_before_it_closes() {
        let mut links = links();
        links.sent(AT, 0);
        let late_us = 100 * MAX_LIMIT_US;
        assert_eq!(links.take_due(late_us), Some((AT, Due::Probe)));
        assert_eq!(links.take_due(late_us), None);
        assert_eq!(links.next_due_us(), late_us + MIN_LIMIT_US);
        links.progressed(AT, late_us + 1);
        assert_eq!(links.next_due_us(), late_us + 1 + MIN_LIMIT_US, "bytes have come");
    }

    #[test]
    fn limit_doubles_while_nothing_is_heard() {
        let mut links = links();
        let mut limits_us = Vec::new();
        for _ in 0..6 {
            links.close(AT);
            links.open(AT);
            links.sent(AT, 0);
            limits_us.push(links.next_due_us());
            assert_eq!(links.take_due(1 << 40).unwrap().1, Due::Probe);
            assert_eq!(links.take_due(1 << 41).unwrap().1, Due::Close);
        }
        assert_eq!(limits_us, [1, 2, 4, 8, 16, 16].map(|times| times * MIN_LIMIT_US));
        links.heard(AT, None, 0);
        links.open(AT);
        links.sent(AT, 0);
        assert_eq!(links.next_due_us(), MIN_LIMIT_US);
    }
}
