//! Chain replication in scripts.
//!
//! Its own commands:
//! - `new MEMBERS`: creates a chain in epoch 1. The first member is the head;
//! - `install EPOCH MEMBERS [NODES]`: enters a later epoch with other members, at these nodes or at
//!   all members.

use bytes::Bytes;
use palisade_replication::{
    Context, Effects, Membership, Planted, RecoveredGroup, Revocation,
    chain::{Chain, Message, Setup, Timing},
};
use palisade_wire::{PeerAddress, RangeId, Role};

use crate::{
    harness::{Cluster, Mode},
    node::Replica,
    notation::{self, Aliases, address, parse_nodes},
};

pub(crate) struct Status {
    /// The role, after "linking" until the links to the neighbours are up.
    role: String,
    epoch: u64,
}

impl Replica for Chain {
    type Group = Membership;
    type Status = Status;
    const HEARTBEATS: bool = false;

    fn start(
        group: Membership,
        me: PeerAddress,
        recovered: RecoveredGroup,
        session: u64,
        _now_us: u64,
    ) -> Self {
        // No two starts draw the same numbers, so late messages of an earlier start are ignored.
        let random_seed = u64::from(me.node.0) * 1_000 + session;
        let (range, membership, planted) = (RangeId(1), group, Planted::default());
        let setup = Setup { range, me, membership, recovered, random_seed, planted };
        Self::new(setup, Timing::default()).expect("it can read its own writes")
    }

    fn status(&self, _: Option<&Status>, _: &Effects<Message>, _: Context<'_>) -> Status {
        let role = self.role();
        let name = notation::role(role);
        let is_linking = role != Role::Removed && !self.is_ready();
        let role = if is_linking { format!("linking {name}") } else { name.to_owned() };
        Status { role, epoch: self.membership().epoch }
    }

    fn changes(before: &Status, now: &Status) -> Vec<String> {
        let mut changes = Vec::new();
        if now.role != before.role {
            changes.push(format!("{} -> {}", before.role, now.role));
        }
        if now.epoch != before.epoch {
            changes.push(format!("epoch {} -> {}", before.epoch, now.epoch));
        }
        if changes.is_empty() { Vec::new() } else { vec![changes.join(", ")] }
    }

    fn summary(&self, status: &Status) -> String {
        let entries = (self.first_index()..=self.last_index()).filter_map(|at| self.entry(at));
        let log = notation::log(entries, self.durable_index());
        let Status { role, epoch } = status;
        format!("{role} epoch={epoch} commit={} log={log}", self.commit_index())
    }

    fn describe_message(message: &Message, aliases: &mut Aliases) -> String {
        notation::chain_message(message, aliases)
    }

    fn describe_state(term: u64, payload: &Bytes) -> String {
        notation::chain_state(term, payload)
    }

    fn handle_revocation(
        &mut self,
        _: PeerAddress,
        _: Revocation,
        _: Context<'_>,
        _: &mut Effects<Message>,
    ) {
        unreachable!("chains have no leases");
    }
}

impl Mode for Chain {
    fn command(cluster: &mut Cluster<Self>, words: &[&str]) -> bool {
        match words {
            ["new", members] => {
                let nodes = parse_nodes(members);
                cluster.create(membership(1, &nodes), &nodes);
            }
            ["install", epoch, members] => install(cluster, epoch, members, members),
            ["install", epoch, members, at] => install(cluster, epoch, members, at),
            _ => return false,
        }
        true
    }
}

fn membership(epoch: u64, members: &[u16]) -> Membership {
    Membership { epoch, members: members.iter().copied().map(address).collect() }
}

fn install(cluster: &mut Cluster<Chain>, epoch: &str, members: &str, at: &str) {
    let epoch = epoch.parse().expect("the number of an epoch");
    let members = membership(epoch, &parse_nodes(members));
    for at in parse_nodes(at) {
        let members = members.clone();
        cluster.request(at, "the epoch", |chain, cx, effects| {
            chain.install(members, cx, effects);
            Ok(())
        });
    }
}
