//! A group of replicas with their disks and a network, and what must always hold of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use palisade_replication::{
    After, Append, Effects, Entry, Membership, Protocol, RecoveredGroup, Refusal,
};
use palisade_wire::{NodeId, PeerAddress, ShardId};

/// A protocol, with what the suite needs beyond the contract.
pub(crate) trait Subject: Protocol + Sized {
    fn start(
        me: PeerAddress,
        members: &[PeerAddress],
        recovered: RecoveredGroup,
        random_seed: u64,
        now_us: u64,
    ) -> Self;
    fn membership(&self) -> &Membership;
    /// How many members must hold an entry durably before it may count as committed.
    fn needed_copies(members: usize) -> usize;
    /// Enters a new epoch, in the mode that has them.
    fn install(&mut self, membership: Membership, effects: &mut Effects<Self::Message>);
}

pub(crate) fn address(node: u16) -> PeerAddress {
    PeerAddress { node: NodeId(node), shard: ShardId(0) }
}

/// A member's disk: writes in order, of which a beginning is durable.
#[derive(Default)]
struct Disk {
    writes: Vec<Append>,
    durable: usize,
}

impl Disk {
    fn recover(&self) -> RecoveredGroup {
        let mut recovered = RecoveredGroup::default();
        for write in &self.writes {
            match write {
                Append::Entry(entry) => {
                    recovered.entries.truncate(entry.index as usize - 1);
                    recovered.entries.push(entry.clone());
                }
                Append::State { term, payload } => {
                    recovered.state = Some((*term, payload.clone()));
                }
            }
        }
        recovered
    }

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
    disk: Disk,
    /// Writes on the disk when the member started: the protocol counts from there.
    writes_at_start: usize,
    /// Messages that wait for the first so many writes.
    held: Vec<(usize, PeerAddress, P::Message)>,
    applied: u64,
    /// Reads under way, and what was acknowledged when they began.
    reads: BTreeMap<u64, u64>,
}

pub(crate) struct Group<P: Subject> {
    pub(crate) random: fastrand::Rng,
    pub(crate) now_us: u64,
    pub(crate) members: Vec<Member<P>>,
    /// These reach each other, and the rest reach each other, but nothing passes between.
    pub(crate) isolated: Vec<PeerAddress>,
    pub(crate) network: Vec<(PeerAddress, PeerAddress, P::Message)>,
    /// What was handed out as committed, by index.
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
                disk: Disk::default(),
                writes_at_start: 0,
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

    /// Runs one call on a member, then one turn's end, and carries out the effects.
    fn step(&mut self, at: usize, call: impl FnOnce(&mut P, u64, &mut Effects<P::Message>)) {
        let now_us = self.now_us;
        let Some(replica) = &mut self.members[at].running else { return };
        let mut effects = Effects::default();
        call(replica, now_us, &mut effects);
        replica.flush(now_us, &mut effects);
        self.carry_out(at, effects);
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
                self.network.push((from, send.to, send.message));
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
                let members = &replica.membership().members;
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
        self.step(at, |replica, now_us, effects| replica.tick(now_us, effects));
    }

    /// Delivers one message of the network.
    pub(crate) fn deliver(&mut self, message: usize) {
        let (from, to, message) = self.network.swap_remove(message);
        if self.isolated.contains(&from) != self.isolated.contains(&to) {
            return;
        }
        let at = usize::from(to.node.0);
        self.step(at, |replica, now_us, effects| replica.receive(from, message, now_us, effects));
    }

    /// Parts the group in two.
    pub(crate) fn isolate_some(&mut self) {
        let random = &mut self.random;
        let addresses = self.members.iter().map(|member| member.address);
        self.isolated = addresses.filter(|_| random.bool()).collect();
    }

    /// Syncs the first `writes` writes of a member, and lets go what waited for them.
    pub(crate) fn sync(&mut self, at: usize, writes: usize) {
        let member = &mut self.members[at];
        if member.running.is_none() || writes <= member.disk.durable {
            return;
        }
        member.disk.durable = writes;
        let appends = writes.saturating_sub(member.writes_at_start) as u64;
        let (from, held) = (member.address, std::mem::take(&mut member.held));
        for (needs, to, message) in held {
            if needs <= writes {
                self.network.push((from, to, message));
            } else {
                self.members[at].held.push((needs, to, message));
            }
        }
        self.step(at, |replica, _, effects| replica.durable(appends, effects));
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
        self.step(at, |replica, _, effects| refusal = replica.propose(payload, effects).err());
        refusal
    }

    pub(crate) fn read(&mut self, at: usize) {
        // Whatever any replica knows to be committed may have been acknowledged.
        let acknowledged = self.committed.len() as u64;
        self.next_token += 1;
        let token = self.next_token;
        let Some(replica) = &mut self.members[at].running else { return };
        let mut effects = Effects::default();
        if replica.read(token, &mut effects).is_ok() {
            self.members[at].reads.insert(token, acknowledged);
        }
        let now_us = self.now_us;
        let replica = self.members[at].running.as_mut().expect("it is running");
        replica.flush(now_us, &mut effects);
        self.carry_out(at, effects);
    }

    /// Stops a member; of what it had not synced, a beginning may have reached the disk.
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
        member.writes_at_start = member.disk.writes.len();
        let recovered = member.disk.recover();
        member.running = Some(P::start(member.address, &members, recovered, random_seed, now_us));
    }

    pub(crate) fn install(&mut self, at: usize, membership: Membership) {
        self.step(at, |replica, _, effects| replica.install(membership, effects));
    }

    /// Lets everybody run undisturbed for a while.
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
            let (from, to, message) = self.network.remove(0);
            let at = usize::from(to.node.0);
            self.step(at, |replica, now_us, effects| {
                replica.receive(from, message, now_us, effects);
            });
        }
    }
}
