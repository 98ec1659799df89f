//! A node: a replica, its disk, and its view of the other nodes. Prints and carries out the effects
//! of each call to the replica.

use bytes::Bytes;
use palisade_replication::{
    After, Append, Context, Effects, Heartbeat, PeerTiming, Peers, Protocol, RecoveredGroup,
    Refusal, Revocation,
};
use palisade_wire::PeerAddress;

use crate::{
    disk::Disk,
    network::{Content, Network, Packet},
    notation::{self, Aliases, address},
    output::{Kind, Output},
};

/// A protocol, with what a script needs beyond the contract.
pub(crate) trait Replica: Protocol + Sized {
    /// The members of a new group.
    type Group: Clone;
    /// The state whose changes are printed.
    type Status;
    /// True if the protocol depends on the heartbeats between shards.
    const HEARTBEATS: bool;

    /// Creates a replica. `session` counts the starts of the node, from 1 on.
    fn start(
        group: Self::Group,
        me: PeerAddress,
        recovered: RecoveredGroup,
        session: u64,
        now_us: u64,
    ) -> Self;
    /// Returns the status after a call that had these effects.
    fn status(
        &self,
        before: Option<&Self::Status>,
        effects: &Effects<Self::Message>,
        cx: Context<'_>,
    ) -> Self::Status;
    /// Returns a line for each change of the status.
    fn changes(before: &Self::Status, now: &Self::Status) -> Vec<String>;
    /// Returns the state in one line.
    fn summary(&self, status: &Self::Status) -> String;
    /// Returns a message in the notation: its name, its term or epoch, and its content.
    fn describe_message(message: &Self::Message, aliases: &mut Aliases) -> String;
    /// Returns the protocol's durable state in the notation.
    fn describe_state(term: u64, payload: &Bytes) -> String;
    fn handle_revocation(
        &mut self,
        from: PeerAddress,
        revocation: Revocation,
        cx: Context<'_>,
        effects: &mut Effects<Self::Message>,
    );
}

/// The clock, the network and the output, which all nodes share.
pub(crate) struct Shared<M> {
    pub(crate) now_us: u64,
    pub(crate) network: Network<M>,
    pub(crate) output: Output,
    pub(crate) aliases: Aliases,
}

pub(crate) struct Node<R: Replica> {
    number: u16,
    /// The replica and its status after the last call; `None` while the node is down.
    running: Option<(R, R::Status)>,
    peers: Peers,
    disk: Disk,
    /// Messages that wait for a sync, each with its receiver.
    held: Vec<(u16, R::Message)>,
}

fn describe_write<R: Replica>(write: &Append) -> String {
    notation::write(write, R::describe_state)
}

impl<R: Replica> Node<R>
where
    R::Message: Clone,
{
    /// Creates a node that is down and has an empty disk.
    pub(crate) fn new(number: u16) -> Self {
        let peers = Peers::new(PeerTiming::default(), 0, [], 0);
        Self { number, running: None, peers, disk: Disk::default(), held: Vec::new() }
    }

    pub(crate) fn start(
        &mut self,
        group: R::Group,
        others: Vec<PeerAddress>,
        shared: &mut Shared<R::Message>,
    ) {
        let (node, now_us) = (self.number, shared.now_us);
        assert!(self.running.is_none(), "node {node} is running already");
        let session = self.peers.session() + 1;
        self.peers = Peers::new(PeerTiming::default(), session, others, now_us);
        let replica = R::start(group, address(node), self.disk.recover(), session, now_us);
        let cx = Context { now_us, peers: &self.peers };
        let status = replica.status(None, &Effects::default(), cx);
        let line = format!("{node} starts as {}", replica.summary(&status));
        shared.output.print(Kind::Event, line);
        self.running = Some((replica, status));
    }

    pub(crate) fn crash(&mut self, shared: &mut Shared<R::Message>) {
        let node = self.number;
        assert!(self.running.is_some(), "node {node} is down already");
        shared.output.print(Kind::Event, format!("{node} crashes"));
        for write in self.disk.unsynced() {
            let lost = describe_write::<R>(write);
            shared.output.print(Kind::Effect, format!("{node} loses {lost}"));
        }
        for (to, message) in self.held.drain(..) {
            let lost = R::describe_message(&message, &mut shared.aliases);
            shared.output.print(Kind::Effect, format!("{node} -> {to} {lost} (lost)"));
        }
        self.disk.crash();
        self.running = None;
    }

    /// Makes a call, ends the turn, and prints and carries out the effects.
    pub(crate) fn request(
        &mut self,
        request: &str,
        shared: &mut Shared<R::Message>,
        call: impl FnOnce(&mut R, Context<'_>, &mut Effects<R::Message>) -> Result<(), Refusal>,
    ) {
        let (node, now_us) = (self.number, shared.now_us);
        let Some((replica, _)) = &mut self.running else {
            shared.output.print(Kind::Event, format!("{node} is down"));
            return;
        };
        let cx = Context { now_us, peers: &self.peers };
        let mut effects = Effects::default();
        let result = call(replica, cx, &mut effects);
        replica.flush(self.disk.written(), cx, &mut effects);
        if let Err(refusal) = result {
            let reason = notation::refusal(refusal);
            shared.output.print(Kind::Event, format!("{node} refuses {request}: {reason}"));
        }
        self.observe(&effects, shared);
        self.carry_out(effects, shared);
    }

    /// Makes a call that cannot be refused.
    pub(crate) fn step(
        &mut self,
        shared: &mut Shared<R::Message>,
        call: impl FnOnce(&mut R, Context<'_>, &mut Effects<R::Message>),
    ) {
        self.request("", shared, |replica, cx, effects| {
            call(replica, cx, effects);
            Ok(())
        });
    }

    /// Prints the changes of the status since the last call, or since time passed.
    pub(crate) fn observe(
        &mut self,
        effects: &Effects<R::Message>,
        shared: &mut Shared<R::Message>,
    ) {
        let (node, now_us) = (self.number, shared.now_us);
        let Some((replica, status)) = &mut self.running else { return };
        let cx = Context { now_us, peers: &self.peers };
        let now = replica.status(Some(&*status), effects, cx);
        for change in R::changes(status, &now) {
            shared.output.print(Kind::Event, format!("{node} {change}"));
        }
        *status = now;
    }

    fn carry_out(&mut self, effects: Effects<R::Message>, shared: &mut Shared<R::Message>) {
        let node = self.number;
        for write in &effects.appends {
            let write = describe_write::<R>(write);
            shared.output.print(Kind::Effect, format!("{node} writes {write}"));
        }
        self.disk.write(effects.appends);
        for send in effects.sends {
            let to = send.to.node.0;
            if send.after == After::Appends && !self.disk.unsynced().is_empty() {
                let text = R::describe_message(&send.message, &mut shared.aliases);
                let line = format!("{node} -> {to} {text} (after its sync)");
                shared.output.print(Kind::Effect, line);
                self.held.push((to, send.message));
            } else {
                self.send(to, send.message, "", shared);
            }
        }
        let output = &mut shared.output;
        for entry in &effects.committed {
            output.print(Kind::Event, format!("{node} commits {}", notation::entry(entry)));
        }
        for token in effects.reads {
            output.print(Kind::Event, format!("{node} serves read {token}"));
        }
        for token in effects.refused_reads {
            output.print(Kind::Event, format!("{node} refuses read {token}"));
        }
        for peer in effects.lagging {
            output.print(Kind::Event, format!("{node} reports that {} lags", peer.node.0));
        }
        for (peer, revocation) in effects.revoked {
            let (to, what) = (peer.node.0, notation::revocation(revocation));
            output.print(Kind::Effect, format!("{node} revokes at {to}: {what}"));
            self.peers.revoke(peer, revocation);
        }
    }

    fn send(&self, to: u16, message: R::Message, note: &str, shared: &mut Shared<R::Message>) {
        let from = self.number;
        let text = R::describe_message(&message, &mut shared.aliases);
        shared.output.print(Kind::Effect, format!("{from} -> {to} {text}{note}"));
        let (session, content) = (self.peers.session(), Content::Message(message));
        shared.network.send(Packet { from, to, session, content });
    }

    /// Makes all writes durable and reports that to the replica. Then releases the messages that
    /// waited for them.
    pub(crate) fn sync(&mut self, shared: &mut Shared<R::Message>) {
        let node = self.number;
        if self.running.is_none() || self.disk.unsynced().is_empty() {
            return;
        }
        let writes: Vec<_> = self.disk.unsynced().iter().map(describe_write::<R>).collect();
        shared.output.print(Kind::Effect, format!("{node} syncs {}", writes.join(", ")));
        let appends = self.disk.sync();
        let released = std::mem::take(&mut self.held);
        self.step(shared, |replica, cx, effects| replica.durable(appends, cx, effects));
        for (to, message) in released {
            self.send(to, message, " (released)", shared);
        }
    }

    /// Ticks the replica if it wants that, and sends the heartbeats of its shard that are due.
    pub(crate) fn tick(&mut self, shared: &mut Shared<R::Message>) {
        if self.running.is_none() {
            return;
        }
        self.peers.tick(shared.now_us);
        self.step(shared, |replica, cx, effects| {
            if replica.wants_ticks(cx) {
                replica.tick(cx, effects);
            }
        });
        if R::HEARTBEATS {
            self.send_heartbeats(shared);
        }
    }

    fn send_heartbeats(&mut self, shared: &mut Shared<R::Message>) {
        let (from, session) = (self.number, self.peers.session());
        let heartbeats = self.peers.heartbeats(shared.now_us);
        let receivers: Vec<_> = heartbeats.iter().map(|(to, _)| *to).collect();
        if !receivers.is_empty() {
            let line = format!("{from} -> {} heartbeat", notation::nodes(&receivers));
            shared.output.print(Kind::Heartbeat, line);
        }
        for (to, heartbeat) in heartbeats {
            let content = Content::Heartbeat(heartbeat);
            shared.network.send(Packet { from, to: to.node.0, session, content });
        }
    }

    /// Receives `copies` copies of a packet.
    pub(crate) fn receive(
        &mut self,
        packet: Packet<R::Message>,
        copies: usize,
        shared: &mut Shared<R::Message>,
    ) {
        let Packet { from, session, content, .. } = packet;
        let (kind, heading) = match &content {
            Content::Message(message) => {
                let text = R::describe_message(message, &mut shared.aliases);
                (Kind::Effect, notation::heading(&text))
            }
            Content::Heartbeat(_) => (Kind::Heartbeat, "heartbeat".to_owned()),
        };
        let node = self.number;
        let received = format!("{node} <- {from} {heading}");
        if self.running.is_none() {
            shared.output.print(kind, format!("{received} (lost: {node} is down)"));
            return;
        }
        if self.peers.observe(address(from), session).is_none() {
            shared.output.print(kind, format!("{received} (dropped: {from} has restarted)"));
            return;
        }
        for _ in 0..copies {
            match &content {
                Content::Message(message) => {
                    shared.output.print(kind, received.clone());
                    let message = message.clone();
                    self.step(shared, |replica, cx, effects| {
                        replica.receive(address(from), message, cx, effects);
                    });
                }
                Content::Heartbeat(heartbeat) => self.receive_heartbeat(from, heartbeat, shared),
            }
        }
    }

    fn receive_heartbeat(
        &mut self,
        from: u16,
        heartbeat: &Heartbeat,
        shared: &mut Shared<R::Message>,
    ) {
        let received = format!("{} <- {from} heartbeat", self.number);
        let revocations = self.peers.receive(address(from), heartbeat, shared.now_us);
        if revocations.is_empty() {
            shared.output.print(Kind::Heartbeat, received.clone());
        }
        for revocation in revocations {
            let what = notation::revocation(revocation);
            shared.output.print(Kind::Effect, format!("{received} revokes {what}"));
            self.step(shared, |replica, cx, effects| {
                replica.handle_revocation(address(from), revocation, cx, effects);
            });
        }
        // The echo in the heartbeat may have renewed a lease.
        self.observe(&Effects::default(), shared);
    }

    /// Returns the state in one line.
    pub(crate) fn summary(&self) -> String {
        match &self.running {
            Some((replica, status)) => format!("{} {}", self.number, replica.summary(status)),
            None => format!("{} is down", self.number),
        }
    }
}
