//! What scripts can do with a world: wait, send requests, and inject faults. All durations are
//! microseconds of virtual time.

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

/// Interval between two checks of what a script waits for.
const LOOK_US: u64 = 10_000;

impl World {
    /// Runs until a condition holds, for at most `most_us`. Returns false if it does not hold by
    /// then, or if an invariant is violated first.
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

    /// Runs until a range in Raft mode has a leader, and returns it.
    ///
    /// # Panics
    /// If there is none within ten seconds.
    pub fn await_leader(&mut self, range: RangeId) -> PeerAddress {
        let found = self.wait_for(10_000_000, |world| world.leader(range).is_some());
        assert!(found, "no replica leads {range}: {:?}", self.violation);
        self.leader(range).expect("it was found just now")
    }

    /// Returns the leader of a range in Raft mode. If several replicas consider themselves leader,
    /// the one of the latest term.
    pub fn leader(&self, range: RangeId) -> Option<PeerAddress> {
        operator::leader_of(self, range)
    }

    /// Returns the view of a replica, or `None` if its node is down or does not have it.
    pub fn view(&self, at: PeerAddress, range: RangeId) -> Option<ReplicaView<'_>> {
        self.shard(at)?.view(range)
    }

    /// Sends a request to a shard and runs until the answer arrives. Returns `None` if none arrives
    /// within `most_us`.
    pub fn ask(&mut self, to: PeerAddress, operation: Operation, most_us: u64) -> Option<Outcome> {
        let connection = self.send(to, operation);
        self.answer(connection, most_us)
    }

    /// Sends a request. The connection returned identifies its answer.
    pub fn send(&mut self, to: PeerAddress, operation: Operation) -> ConnectionId {
        self.next_question += 1;
        let connection = ConnectionId(FIRST_OWN_CONNECTION + self.next_question);
        let request = Request::new(1, operation);
        self.send_requests(vec![ClientSend { to, connection, request, breaks: false }]);
        connection
    }

    /// Runs until a request is answered. Returns `None` if that takes longer than `most_us`.
    pub fn answer(&mut self, connection: ConnectionId, most_us: u64) -> Option<Outcome> {
        let has_come = |world: &Self| world.answers.iter().any(|(to, _)| *to == connection);
        if !self.wait_for(most_us, has_come) {
            return None;
        }
        let place = self.answers.iter().position(|(to, _)| *to == connection)?;
        Some(self.answers.swap_remove(place).1.outcome)
    }

    /// Returns a put of a value to the script's key of a range, under a new transaction id.
    ///
    /// # Panics
    /// If there is no such range.
    pub fn put_operation(&mut self, range: RangeId, value: u8) -> Operation {
        self.next_question += 1;
        let txn = TxnId { session: SessionId(u64::MAX), sequence: self.next_question };
        let key = self.script_key(range);
        let value = Bytes::from(vec![value; 8]);
        put(range, txn, self.in_a_minute(), key, value)
    }

    /// Returns the timestamp a minute from now, in true time.
    pub fn in_a_minute(&self) -> Timestamp {
        timestamp(self.now_us + 60_000_000)
    }

    /// Returns a get of the script's key of a range.
    ///
    /// # Panics
    /// If there is no such range.
    pub fn get_operation(&self, range: RangeId) -> Operation {
        Operation::Get { range, key: self.script_key(range), kind: ReadKind::Latest }
    }

    /// Returns the key that scripts use in a range.
    ///
    /// # Panics
    /// If there is no such range.
    pub fn script_key(&self, range: RangeId) -> Bytes {
        let descriptor = self.ranges.get(range).expect("scripts name ranges that exist");
        [&descriptor.start[..], b"\0script"].concat().into()
    }

    /// Cuts all links between these nodes and the others.
    pub fn isolate(&mut self, nodes: &[u16]) {
        let all = self.nodes.iter().map(|node| node.id);
        let (inside, outside): (Vec<_>, Vec<_>) = all.partition(|id| nodes.contains(&id.0));
        self.network.part(&inside, &outside);
    }

    /// Cuts the link from one node to another, in this direction only.
    pub fn cut(&mut self, from: u16, to: u16) {
        self.network.cut(NodeId(from), NodeId(to));
    }

    /// Restores all links.
    pub fn mend(&mut self) {
        self.network.mend();
    }

    /// Pauses a node for a duration. Its clocks go on.
    pub fn pause(&mut self, node: usize, duration_us: u64) {
        self.nodes[node].paused_until_us = self.now_us + duration_us;
    }

    /// Sets a node's wall clock to the edge of its normal bound, ahead of true time or behind it.
    pub fn set_wall_clock(&mut self, node: usize, ahead: bool) {
        self.nodes[node].clock.set_to_edge(ahead);
    }

    /// Sets the reported error bound of a node's wall clock to `times` its normal value, and the
    /// clock to a random offset within that.
    pub fn unsure_clock(&mut self, node: usize, times: u64) {
        self.nodes[node].clock.become_unsure(times, &mut self.clock_random);
    }

    /// Holds back the syncs of all shards of a node, or lets them continue.
    pub fn hold_syncs(&mut self, node: usize, held: bool) {
        for shard in 0..self.nodes[node].shards.len() {
            self.hold_syncs_of_shard(node, shard, held);
        }
    }

    /// Holds back the syncs of one shard of a node, or lets them continue. A sync in flight ends as
    /// usual.
    pub fn hold_syncs_of_shard(&mut self, node: usize, shard: usize, held: bool) {
        self.nodes[node].shards[shard].syncs_held = held;
        self.sync(node, shard);
    }

    /// Returns the replica that sequences the writes of a range. Runs until there is a leader in
    /// Raft mode. In chain mode, returns the head of the chain at the creation of the cluster.
    ///
    /// # Panics
    /// If there is no such range, or no leader within ten seconds.
    pub fn await_sequencer(&mut self, range: RangeId) -> PeerAddress {
        let descriptor = self.ranges.get(range).expect("scripts name ranges that exist");
        match descriptor.mode {
            Mode::Raft => self.await_leader(range),
            Mode::Chain => descriptor.members[0],
        }
    }

    /// Makes the syncs of a node slow for a duration: 50 ms to 2 s each.
    pub fn slow_disk(&mut self, node: usize, duration_us: u64) {
        self.nodes[node].slow_disk_until_us = self.now_us + duration_us;
    }

    /// Stops the clients, and checks their histories.
    ///
    /// # Errors
    /// The first violation of an invariant in the run so far.
    pub fn verdict(&mut self) -> Result<(), Violation> {
        self.clients.stop(self.now_us)?;
        match self.violation.take() {
            Some(violation) => Err(violation),
            None => self.invariants.at_end(self.clients.history(), self.clients.timestamped()),
        }
    }

    /// Returns the number of Raft terms that have had a leader, over all ranges.
    pub fn elections(&self) -> u64 {
        self.invariants.elections()
    }
}
