//! The packets in flight. Each stays until a command delivers or drops it.

use palisade_replication::Heartbeat;

/// A packet between two nodes.
pub(crate) struct Packet<M> {
    pub(crate) from: u16,
    pub(crate) to: u16,
    /// The session of the sender's shard.
    pub(crate) session: u64,
    pub(crate) content: Content<M>,
}

pub(crate) enum Content<M> {
    Message(M),
    Heartbeat(Heartbeat),
}

/// The packets that a command selects: `1->2`, `1->*`, `*->2`, or all by default.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way {
    from: Option<u16>,
    to: Option<u16>,
}

impl Way {
    pub(crate) fn parse(text: &str) -> Self {
        let (from, to) = text.split_once("->").expect("a way such as 1->2 or 1->*");
        let end = |word: &str| (word != "*").then(|| word.parse().expect("a node or *"));
        Self { from: end(from), to: end(to) }
    }

    pub(crate) fn includes<M>(self, packet: &Packet<M>) -> bool {
        let fits = |wanted: Option<u16>, node| wanted.is_none_or(|wanted| wanted == node);
        fits(self.from, packet.from) && fits(self.to, packet.to)
    }
}

/// The packets in flight, oldest first.
pub(crate) struct Network<M> {
    in_flight: Vec<Packet<M>>,
}

impl<M> Network<M> {
    pub(crate) fn new() -> Self {
        Self { in_flight: Vec::new() }
    }

    pub(crate) fn send(&mut self, packet: Packet<M>) {
        self.in_flight.push(packet);
    }

    pub(crate) fn in_flight(&self) -> &[Packet<M>] {
        &self.in_flight
    }

    /// Removes and returns the packets for which `is_wanted` returns true.
    pub(crate) fn take(&mut self, is_wanted: impl Fn(&Packet<M>) -> bool) -> Vec<Packet<M>> {
        let all = std::mem::take(&mut self.in_flight);
        let (taken, left) = all.into_iter().partition(is_wanted);
        self.in_flight = left;
        taken
    }
}
