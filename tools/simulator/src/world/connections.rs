//! The connections of the clients: when they open and break, and what they carry.

use palisade_shard::ConnectionId;
use palisade_wire::PeerAddress;

use super::{Event, World, through_codec};
use crate::{
    Violation,
    clients::{ClientSend, Clients},
    network::ClientLink,
};

impl World {
    /// Makes every client connect to every shard.
    pub(super) fn connect_clients(&mut self) {
        for client in 0..self.clients.count() {
            let shards = self.nodes.iter().flat_map(|node| &node.shards);
            for to in shards.map(|slot| slot.at).collect::<Vec<_>>() {
                let due_us = self.network.connect_delay_us();
                self.schedule(due_us, Event::Connect { client, to });
            }
        }
        self.wake_clients();
    }

    /// Lets the clients act, sends what they send, and stores the first violation.
    pub(super) fn with_clients<T>(
        &mut self,
        act: impl FnOnce(&mut Clients, u64, &mut Vec<ClientSend>) -> Result<T, Violation>,
    ) -> Option<T> {
        let mut sends = Vec::new();
        let acted = act(&mut self.clients, self.now_us, &mut sends);
        self.send_requests(sends);
        for connection in self.clients.take_closing() {
            self.schedule(self.now_us, Event::Broken { connection });
        }
        self.wake_clients();
        acted.map_err(|violation| self.violation.get_or_insert(violation)).ok()
    }

    /// Returns true if the client of a connection is not suspended. Otherwise, an event for it is
    /// scheduled again.
    pub(super) fn is_awake(
        &mut self,
        connection: ConnectionId,
        event: impl FnOnce() -> Event,
    ) -> bool {
        let until_us = self.clients.suspended_until_us(connection);
        let is_awake = until_us <= self.now_us;
        if !is_awake {
            let later_us = until_us + self.schedule.u64(1..300);
            self.schedule(later_us, event());
        }
        is_awake
    }

    /// Opens the connection of a client to a shard, or tries again later.
    pub(super) fn connect(&mut self, client: usize, to: PeerAddress) {
        let node = &self.nodes[usize::from(to.node.0)];
        let answers = node.running && node.paused_until_us <= self.now_us;
        if answers && self.network.can_connect(to.node) {
            let opened = self.with_clients(|clients, now_us, sends| {
                clients.connect(now_us, (client, to), sends)
            });
            self.record.line(self.now_us, || format!("client {client} reaches {to}: {opened:?}"));
        } else {
            let due_us = self.now_us + self.network.connect_delay_us();
            self.schedule(due_us, Event::Connect { client, to });
        }
    }

    pub(super) fn disconnect(&mut self, connection: ConnectionId) {
        let closed = self
            .with_clients(|clients, now_us, sends| clients.disconnect(now_us, connection, sends));
        if let Some((client, to)) = closed.flatten() {
            self.record.line(self.now_us, || format!("{connection:?} breaks"));
            let due_us = self.now_us + self.network.connect_delay_us();
            self.schedule(due_us, Event::Connect { client, to });
        }
    }

    /// Makes a client notice later that a connection is broken.
    pub(super) fn break_later(&mut self, connection: ConnectionId) {
        let due_us = self.now_us + self.network.break_delay_us();
        self.schedule(due_us, Event::Broken { connection });
    }

    pub(super) fn wake_clients(&mut self) {
        let due_us = self.clients.next_due_us().map(|due_us| due_us.max(self.now_us));
        if let Some(due_us) = due_us.filter(|due_us| *due_us < self.client_wake_us) {
            self.client_wake_us = due_us;
            self.schedule(due_us, Event::WakeClients);
        }
    }

    /// Sends requests of clients, the operator, probes or scripts.
    pub(crate) fn send_requests(&mut self, sends: Vec<ClientSend>) {
        for ClientSend { to, connection, request, breaks } in sends {
            self.record.line(self.now_us, || format!("{connection:?} asks {to}: {request:?}"));
            let request = Box::new(through_codec(&request));
            match self.network.client_delay_us(to.node, ClientLink::Requests) {
                Some(us) => {
                    self.schedule(self.now_us + us, Event::Request { to, connection, request });
                }
                None => self.break_later(connection),
            }
            if breaks {
                let due_us = self.now_us + self.network.early_break_delay_us();
                self.schedule(due_us, Event::Broken { connection });
            }
        }
    }
}
