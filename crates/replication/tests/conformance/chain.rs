//! Chain replication under the adversary.

use palisade_replication::{
    Context, Effects, Membership, Planted, RecoveredGroup, Revocation,
    chain::{Chain, Message, Setup, Timing},
};
use palisade_wire::{PeerAddress, RangeId};

use crate::{
    adversary::{Powers, run},
    group::Subject,
    seeds,
};

impl Subject for Chain {
    fn start(
        me: PeerAddress,
        members: &[PeerAddress],
        recovered: RecoveredGroup,
        random_seed: u64,
        _now_us: u64,
    ) -> Self {
        let membership = Membership { epoch: 1, members: members.to_vec() };
        let (range, planted) = (RangeId(1), Planted::default());
        let setup = Setup { range, me, membership, recovered, random_seed, planted };
        Self::new(setup, Timing::default()).expect("what was written can be read")
    }

    fn members(&self) -> Vec<PeerAddress> {
        self.membership().members.clone()
    }

    fn needed_copies(members: usize) -> usize {
        members
    }

    fn install(&mut self, membership: Membership, cx: Context<'_>, effects: &mut Effects<Message>) {
        self.install(membership, cx, effects);
    }

    fn revoked(&mut self, _: PeerAddress, _: Revocation, _: Context<'_>, _: &mut Effects<Message>) {
        unreachable!("chains have no leases");
    }

    fn is_ready(&self) -> bool {
        self.is_ready()
    }
}

fn run_adversary(size: u16, powers: Powers, count: u64) {
    for seed in seeds(count) {
        println!("seed {seed}, {size} members");
        run::<Chain>(size, powers, seed);
    }
}

#[test]
fn chain_of_one_commits_only_synced_entries() {
    run_adversary(1, Powers { crashes: true, removals: false }, 100);
}

#[test]
fn chain_of_three_agrees_on_lossy_network() {
    run_adversary(3, Powers { crashes: false, removals: false }, 150);
}

#[test]
fn chain_of_three_agrees_across_crashes() {
    run_adversary(3, Powers { crashes: true, removals: false }, 300);
}

#[test]
fn chain_of_three_agrees_across_crashes_and_removals() {
    run_adversary(3, Powers { crashes: true, removals: true }, 400);
}

#[test]
fn chain_of_five_agrees_across_crashes_and_removals() {
    run_adversary(5, Powers { crashes: true, removals: true }, 150);
}
