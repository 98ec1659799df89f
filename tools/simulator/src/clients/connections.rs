//! The connections of clients to shards: how they open and close.

use palisade_client::router::RouterInput;
use palisade_shard::ConnectionId;
use palisade_wire::{NodeId, PeerAddress};

use super::{ClientSend, Clients};
use crate::Violation;

impl Clients {
    /// Opens the connection of a client to a shard.
    pub(crate) fn connect(
        &mut self,
        now_us: u64,
        (client, to): (usize, PeerAddress),
        out: &mut Vec<ClientSend>,
    ) -> Result<ConnectionId, Violation> {
        self.connections_opened += 1;
        let connection = ConnectionId(self.connections_opened);
        self.connections.insert(connection, (client, to));
        self.clients[client].connections.insert(to, connection);
        self.step(client, RouterInput::Connected(to), now_us, out)?;
        Ok(connection)
    }

    /// Closes a connection. Returns its client and shard, or `None` if it is closed already.
    pub(crate) fn disconnect(
        &mut self,
        now_us: u64,
        connection: ConnectionId,
        out: &mut Vec<ClientSend>,
    ) -> Result<Option<(usize, PeerAddress)>, Violation> {
        let Some((client, to)) = self.connections.remove(&connection) else { return Ok(None) };
        self.clients[client].connections.remove(&to);
        self.step(client, RouterInput::Disconnected(to), now_us, out)?;
        Ok(Some((client, to)))
    }

    /// Returns the connections that the clients closed since the last call.
    pub(crate) fn take_closing(&mut self) -> Vec<ConnectionId> {
        std::mem::take(&mut self.closing)
    }

    /// Returns the open connections to a node.
    pub(crate) fn connections_to(&self, node: NodeId) -> Vec<ConnectionId> {
        let to_node = self.connections.iter().filter(|(_, (_, to))| to.node == node);
        to_node.map(|(connection, _)| *connection).collect()
    }

    /// Returns until when the client of a connection is suspended, with its clock.
    pub(crate) fn suspended_until_us(&self, connection: ConnectionId) -> u64 {
        let client = self.connections.get(&connection).map(|(client, _)| *client);
        client.map_or(0, |client| self.clients[client].suspended_until_us())
    }

    /// Returns the number of clients.
    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }
}
