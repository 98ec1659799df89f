//! What a script does to a world, and asks of it.

use bytes::Bytes;
use palisade_clock::Timestamp;
use palisade_shard::{ConnectionId, ReplicaView};
use palisade_wire::{
    Mode, NodeId, Operation, Outcome, PeerAddress, RangeId, ReadKind, Request, SessionId, TxnId,
};

use crate::{
    Violation, World,
    clients::{ClientSend, put},
    clock::timestamp,
    operator,
    world::FIRST_OWN_CONNECTION,
};

/// Between two looks at what a script waits for.
const LOOK_US: u64 = 10_000;

impl World {
    /// Runs until something is so, for at most a while; tells whether it is.
    pub fn wait_for(&mut self, most_us: u64, is_so: impl Fn(&Self) -> bool) -> bool {
        let until_us = self.now_us + most_us;
        while !is_so(self) {
            if self.now_us >= until_us || self.violation.is_some() {
                return false;
            }
            self.run_for(LOOK_US);
        }
        true
    }

    /// Runs until a range has a leader or head that knows it, and returns it.
    ///
    /// # Panics
    /// If that takes more than ten seconds.
    pub fn await_leader(&mut self, range: RangeId) -> PeerAddress {
        let found = self.wait_for(10_000_000, |world| world.leader(range).is_some());
        assert!(found, "nobody leads {range}: {:?}", self.violation);
        self.leader(range).expect("it was found just now")
    }

    /// Who leads a range in Raft mode: of several that think so, the one of the latest term.
    pub fn leader(&self, range: RangeId) -> Option<PeerAddress> {
        operator::leader_of(self, range)
    }

    /// A replica.
    pub fn view(&self, at: PeerAddress, range: RangeId) -> Option<ReplicaView<'_>> {
        self.shard(at)?.view(range)
    }

    /// Asks a shard for something, and runs until it answers, or for at most a while.
    pub fn ask(&mut self, to: PeerAddress, operation: Operation, most_us: u64) -> Option<Outcome> {
        let connection = self.send(to, operation);
        self.answer(connection, most_us)
    }

    /// Sends a request; the connection names it.
    pub fn send(&mut self, to: PeerAddress, operation: Operation) -> ConnectionId {
        self.next_question += 1;
        let connection = ConnectionId(FIRST_OWN_CONNECTION + self.next_question);
        let request = Request { request_id: 1, operation };
        self.send_requests(vec![ClientSend { to, connection, request }]);
        connection
    }

    /// Runs until a request is answered, or for at most a while.
    pub fn answer(&mut self, connection: ConnectionId, most_us: u64) -> Option<Outcome> {
        let has_come = |world: &Self| world.answers.iter().any(|(to, _)| *to == connection);
        if !self.wait_for(most_us, has_come) {
            return None;
        }
        let place = self.answers.iter().position(|(to, _)| *to == connection)?;
        Some(self.answers.swap_remove(place).1.outcome)
    }

    /// A put of a value to a key of its own in a range, under an id that is never used again.
    pub fn put_operation(&mut self, range: RangeId, value: u8) -> Operation {
        self.next_question += 1;
        let txn = TxnId { session: SessionId(u64::MAX), sequence: self.next_question };
        let key = self.script_key(range);
        let value = Bytes::from(vec![value; 8]);
        put(range, txn, self.in_a_minute(), key, value)
    }

    /// A minute from now, by true time.
    pub fn in_a_minute(&self) -> Timestamp {
        timestamp(self.now_us + 60_000_000)
    }

    /// A get of that key.
    pub fn get_operation(&self, range: RangeId) -> Operation {
        Operation::Get { range, key: self.script_key(range), kind: ReadKind::Latest }
    }

    /// The key of a script in a range.
    pub fn script_key(&self, range: RangeId) -> Bytes {
        let descriptor = self.ranges.get(range).expect("scripts name ranges that exist");
        [&descriptor.start[..], b"\0script"].concat().into()
    }

    /// Nothing passes between these nodes and the others.
    pub fn isolate(&mut self, nodes: &[u16]) {
        let all = self.nodes.iter().map(|node| node.id);
        let (inside, outside): (Vec<_>, Vec<_>) = all.partition(|id| nodes.contains(&id.0));
        self.network.part(&inside, &outside);
    }

    /// Nothing passes from one node to another.
    pub fn cut(&mut self, from: u16, to: u16) {
        self.network.cut(NodeId(from), NodeId(to));
    }

    /// Everybody reaches everybody again.
    pub fn mend(&mut self) {
        self.network.mend();
    }

    /// A node stands still for a while.
    pub fn pause(&mut self, node: usize, duration_us: u64) {
        self.nodes[node].paused_until_us = self.now_us + duration_us;
    }

    /// A node's wall clock is set to be ahead by as much as its bound allows, or behind.
    pub fn set_wall_clock(&mut self, node: usize, ahead: bool) {
        self.nodes[node].clock.set_to_edge(ahead);
    }

    /// A node's wall clock calls itself right to within so many times its bound.
    pub fn unsure_clock(&mut self, node: usize, times: u64) {
        self.nodes[node].clock.become_unsure(times, &mut self.clock_random);
    }

    /// The disks of a node sync nothing until `held` is false again.
    pub fn hold_syncs(&mut self, node: usize, held: bool) {
        for shard in 0..self.nodes[node].shards.len() {
            self.hold_syncs_of_shard(node, shard, held);
        }
    }

    /// One shard of a node syncs nothing until `held` is false again.
    pub fn hold_syncs_of_shard(&mut self, node: usize, shard: usize, held: bool) {
        self.nodes[node].shards[shard].syncs_held = held;
        self.sync(node, shard);
    }

    /// The replica that sequences the writes of a range: Raft's leader, or the chain's head.
    ///
    /// # Panics
    /// If there is none within ten seconds.
    pub fn await_sequencer(&mut self, range: RangeId) -> PeerAddress {
        let descriptor = self.ranges.get(range).expect("scripts name ranges that exist");
        match descriptor.mode {
            Mode::Raft => self.await_leader(range),
            Mode::Chain => descriptor.members[0],
        }
    }

    /// Syncs of a node take long for a while.
    pub fn slow_disk(&mut self, node: usize, duration_us: u64) {
        self.nodes[node].slow_disk_until_us = self.now_us + duration_us;
    }

    /// Stops the clients, and says whether everything held that must.
    pub fn verdict(&mut self) -> Result<(), Violation> {
        self.clients.stop(self.now_us);
        match self.violation.take() {
            Some(violation) => Err(violation),
            None => self.invariants.at_end(self.clients.history(), self.clients.timestamped()),
        }
    }

    /// Leaderships that have begun so far, of all ranges.
    pub fn elections(&self) -> u64 {
        self.invariants.elections()
    }
}
