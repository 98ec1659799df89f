//! A group of replicas with their disks and a network, and its invariants.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{
    After, Append, Context, Effects, Entry, Heartbeat, Membership, PeerTiming, Peers, Protocol,
    RecoveredGroup, Refusal, Revocation,
};
use palisade_wire::{NodeId, PeerAddress, ShardId};

use crate::recover::recover;

/// A protocol, with the operations that the suite needs beyond the contract.
pub(crate) trait Subject: Protocol + Sized + std::fmt::Debug {
    fn start(
        me: PeerAddress,
        members: &[PeerAddress],
        recovered: RecoveredGroup,
        random_seed: u64,
        now_us: u64,
    ) -> Self;
    fn members(&self) -> Vec<PeerAddress>;
    /// Returns how many members must hold an entry durably before it may be committed.
    fn needed_copies(members: usize) -> usize;
    /// Enters a new epoch. Only chains have epochs.
    fn install(
        &mut self,
        membership: Membership,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );
    /// Handles the revocation of a peer's shard. Only Raft counts on peers.
    fn revoked(
        &mut self,
        from: PeerAddress,
        revocation: Revocation,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );
    /// Returns true if the replica knows its leader (Raft), or if its links are up (chain).
    fn is_ready(&self) -> bool;
}

/// The content of a packet between members.
#[derive(Clone)]
pub(crate) enum Packet<M> {
    Group(M),
    Heartbeat(Heartbeat),
}

/// A packet in flight, with the session of its sender.
#[derive(Clone)]
pub(crate) struct UnderWay<M> {
    from: PeerAddress,
    to: PeerAddress,
    session: u64,
    packet: Packet<M>,
}

pub(crate) fn address(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

/// A member's disk: writes in order, the first `durable` of them durable.
#[derive(Default)]
struct Disk {
    writes: Vec<Append>,
    durable: usize,
}

impl Disk {
    fn holds(&self, wanted: &Entry) -> bool {
        let mut held = false;
        for write in &self.writes[..self.durable] {
            if let Append::Entry(entry) = write
                && entry.index <= wanted.index
            {
                held = entry == wanted;
            }
        }
        held
    }
}

pub(crate) struct Member<P: Subject> {
    pub(crate) address: PeerAddress,
    pub(crate) running: Option<P>,
    peers: Peers,
    disk: Disk,
    /// Messages, each with the number of writes that must be durable first.
    held: Vec<(usize, PeerAddress, P::Message)>,
    applied: u64,
    /// Pending reads by token, each with the group's commit index when it began.
    reads: BTreeMap<u64, u64>,
}

pub(crate) struct Group<P: Subject> {
    pub(crate) random: fastrand::Rng,
    pub(crate) now_us: u64,
    pub(crate) members: Vec<Member<P>>,
    /// One side of a network partition. No packet passes between it and the other members.
    pub(crate) isolated: Vec<PeerAddress>,
    pub(crate) network: Vec<UnderWay<P::Message>>,
    /// The entries that were handed out as committed, by index.
    committed: Vec<Entry>,
    next_token: u64,
    next_payload: u64,
    pub(crate) reads_served: u64,
}

impl<P: Subject> Group<P>
where
    P::Message: Clone,
{
    pub(crate) fn new(size: u16, seed: u64) -> Self {
        let members = (0..size)
            .map(|node| Member {
                address: address(node),
                running: None,
                peers: peers_of(node, size, 0, 0),
                disk: Disk::default(),
                held: Vec::new(),
                applied: 0,
                reads: BTreeMap::new(),
            })
            .collect();
        let mut group = Self {
            random: fastrand::Rng::with_seed(seed),
            now_us: 0,
            members,
            isolated: Vec::new(),
            network: Vec::new(),
            committed: Vec::new(),
            next_token: 0,
            next_payload: 0,
            reads_served: 0,
        };
        for at in 0..usize::from(size) {
            group.restart(at);
        }
        group
    }

    pub(crate) fn committed(&self) -> usize {
        self.committed.len()
    }

    pub(crate) fn applied(&self, at: usize) -> usize {
        self.members[at].applied as usize
    }

    /// Runs one call on a member, then the end of the turn, and carries out the effects.
    fn step(
        &mut self,
        at: usize,
        call: impl FnOnce(&mut P, Context<'_>, &mut Effects<P::Message>),
    ) {
        let member = &mut self.members[at];
        let Some(replica) = &mut member.running else { return };
        let cx = Context { now_us: self.now_us, peers: &member.peers };
        let mut effects = Effects::default();
        call(replica, cx, &mut effects);
        replica.flush(member.disk.writes.len() as u64, cx, &mut effects);
        for (peer, revocation) in effects.revoked.drain(..) {
            member.peers.revoke(peer, revocation);
        }
        self.carry_out(at, effects);
    }

    fn post(&mut self, at: usize, to: PeerAddress, packet: Packet<P::Message>) {
        let Member { address: from, peers, .. } = &self.members[at];
        self.network.push(UnderWay { from: *from, to, session: peers.session(), packet });
    }

    fn carry_out(&mut self, at: usize, effects: Effects<P::Message>) {
        let from = self.members[at].address;
        self.members[at].disk.writes.extend(effects.appends);
        let written = self.members[at].disk.writes.len();
        for send in effects.sends {
            let member = &mut self.members[at];
            if send.after == After::Appends && member.disk.durable < written {
                member.held.push((written, send.to, send.message));
            } else {
                self.post(at, send.to, Packet::Group(send.message));
            }
        }
        for entry in effects.committed {
            self.check_commit(at, entry);
        }
        for token in effects.reads {
            let member = &mut self.members[at];
            let began_at = member.reads.remove(&token).expect("a read is let through once");
            assert!(
                member.applied >= began_at,
                "{from} serves a read at {} that must see {began_at}",
                member.applied
            );
            self.reads_served += 1;
        }
        for token in effects.refused_reads {
            let known = self.members[at].reads.remove(&token);
            assert!(known.is_some(), "a read is refused once");
        }
    }

    fn check_commit(&mut self, at: usize, entry: Entry) {
        let member = &mut self.members[at];
        assert_eq!(entry.index, member.applied + 1, "{} hands out of order", member.address);
        member.applied = entry.index;
        match self.committed.get(entry.index as usize - 1) {
            Some(known) => assert_eq!(*known, entry, "two entries are committed at one index"),
            None => {
                let replica = self.members[at].running.as_ref().expect("it just committed");
                let members = replica.members();
                let copies = self
                    .members
                    .iter()
                    .filter(|m| members.contains(&m.address))
                    .filter(|m| m.disk.holds(&entry));
                let (copies, needed) = (copies.count(), P::needed_copies(members.len()));
                assert!(
                    copies >= needed,
                    "{entry:?} is committed with {copies} of {needed} copies"
                );
                assert_eq!(entry.index as usize, self.committed.len() + 1);
                self.committed.push(entry);
            }
        }
    }

    pub(crate) fn tick(&mut self, at: usize) {
        if self.members[at].running.is_none() {
            return;
        }
        self.members[at].peers.tick(self.now_us);
        self.step(at, |replica, cx, effects| {
            // Idle replicas are not ticked.
            if replica.wants_ticks(cx) {
                replica.tick(cx, effects);
            }
        });
        for (to, heartbeat) in self.members[at].peers.heartbeats(self.now_us) {
            self.post(at, to, Packet::Heartbeat(heartbeat));
        }
    }

    /// Delivers one message of the network, or loses it at a partition.
    pub(crate) fn deliver(&mut self, message: usize) {
        let under_way = self.network.swap_remove(message);
        let (from, to) = (under_way.from, under_way.to);
        if self.isolated.contains(&from) == self.isolated.contains(&to) {
            self.arrive(under_way);
        }
    }

    fn arrive(&mut self, under_way: UnderWay<P::Message>) {
        let UnderWay { from, to, session, packet } = under_way;
        let at = usize::from(to.node.0);
        let member = &mut self.members[at];
        if member.running.is_none() || member.peers.observe(from, session).is_none() {
            return;
        }
        match packet {
            Packet::Group(message) => {
                self.step(at, |replica, cx, effects| replica.receive(from, message, cx, effects));
            }
            Packet::Heartbeat(heartbeat) => {
                for revocation in member.peers.receive(from, &heartbeat, self.now_us) {
                    self.step(at, |replica, cx, effects| {
                        replica.revoked(from, revocation, cx, effects);
                    });
                }
            }
        }
    }

    /// Partitions the group at random.
    pub(crate) fn isolate_some(&mut self) {
        let random = &mut self.random;
        let addresses = self.members.iter().map(|member| member.address);
        self.isolated = addresses.filter(|_| random.bool()).collect();
    }

    /// Syncs the first `writes` writes of a member, and releases the messages that waited for them.
    pub(crate) fn sync(&mut self, at: usize, writes: usize) {
        let member = &mut self.members[at];
        if member.running.is_none() || writes <= member.disk.durable {
            return;
        }
        member.disk.durable = writes;
        let held = std::mem::take(&mut member.held);
        for (needs, to, message) in held {
            if needs <= writes {
                self.post(at, to, Packet::Group(message));
            } else {
                self.members[at].held.push((needs, to, message));
            }
        }
        self.step(at, |replica, cx, effects| replica.durable(writes as u64, cx, effects));
    }

    pub(crate) fn sync_some(&mut self, at: usize) {
        let disk = &self.members[at].disk;
        let (durable, written) = (disk.durable, disk.writes.len());
        let writes = self.random.usize(durable..=written);
        self.sync(at, writes);
    }

    pub(crate) fn sync_all(&mut self, at: usize) {
        let written = self.members[at].disk.writes.len();
        self.sync(at, written);
    }

    pub(crate) fn propose(&mut self, at: usize) -> Option<Refusal> {
        self.next_payload += 1;
        let payload = Bytes::from(self.next_payload.to_string());
        let mut refusal = None;
        self.step(at, |replica, cx, effects| {
            refusal = replica.propose(payload, cx, effects).err();
        });
        refusal
    }

    pub(crate) fn read(&mut self, at: usize) {
        // Any entry that a replica has handed out as committed may have been acknowledged.
        let acknowledged = self.committed.len() as u64;
        self.next_token += 1;
        let token = self.next_token;
        let Some(replica) = &mut self.members[at].running else { return };
        let mut effects = Effects::default();
        if replica.read(token, &mut effects).is_ok() {
            self.members[at].reads.insert(token, acknowledged);
        }
        self.carry_out(at, effects);
        self.step(at, |_, _, _| {});
    }

    /// Crashes a member. A random prefix of its unsynced writes survives.
    pub(crate) fn crash(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.running = None;
        member.held.clear();
        member.reads.clear();
        member.applied = 0;
        let kept = self.random.usize(member.disk.durable..=member.disk.writes.len());
        member.disk.writes.truncate(kept);
        member.disk.durable = kept;
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let members: Vec<_> = self.members.iter().map(|member| member.address).collect();
        let random_seed = self.random.u64(..);
        let now_us = self.now_us;
        let member = &mut self.members[at];
        assert!(member.running.is_none(), "it is running already");
        let recovered = recover(&member.disk.writes);
        let session = member.peers.session() + 1;
        member.peers = peers_of(member.address.node.0, members.len() as u16, session, now_us);
        member.running = Some(P::start(member.address, &members, recovered, random_seed, now_us));
    }

    pub(crate) fn install(&mut self, at: usize, membership: Membership) {
        self.step(at, |replica, cx, effects| replica.install(membership, cx, effects));
    }

    /// Runs all members without faults for a while.
    pub(crate) fn settle(&mut self, duration_us: u64) {
        let end_us = self.now_us + duration_us;
        while self.now_us < end_us {
            self.now_us += 5_000;
            for at in 0..self.members.len() {
                self.tick(at);
            }
            let mut rounds = 0;
            while !self.network.is_empty() && rounds < 200 {
                rounds += 1;
                for _ in 0..self.network.len() {
                    self.deliver_oldest();
                }
                for at in 0..self.members.len() {
                    self.sync_all(at);
                }
            }
            for at in 0..self.members.len() {
                self.sync_all(at);
            }
        }
    }

    fn deliver_oldest(&mut self) {
        if !self.network.is_empty() {
            let oldest = self.network.remove(0);
            self.arrive(oldest);
        }
    }
}

fn peers_of(node: u16, size: u16, session: u64, now_us: u64) -> Peers {
    let others = (0..size).filter(|other| *other != node).map(address);
    Peers::new(PeerTiming::default(), session, others, now_us)
}
