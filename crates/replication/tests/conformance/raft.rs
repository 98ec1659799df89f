//! Raft under the adversary.

use palisade_replication::{
    Context, Effects, Members, Membership, Planted, RecoveredGroup, Revocation,
    raft::{Message, Raft, Setup, Timing},
};
use palisade_wire::{PeerAddress, RangeId};

use crate::{
    adversary::{Powers, run},
    group::Subject,
    seeds,
};

impl Subject for Raft {
    fn start(
        me: PeerAddress,
        members: &[PeerAddress],
        recovered: RecoveredGroup,
        random_seed: u64,
        now_us: u64,
    ) -> Self {
        let setup = Setup {
            range: RangeId(1),
            me,
            members: Members::of(members.to_vec()),
            recovered,
            random_seed,
            planted: Planted::default(),
        };
        Self::new(setup, Timing::default(), now_us).expect("what was written can be read")
    }

    fn members(&self) -> Vec<PeerAddress> {
        self.members().all()
    }

    fn needed_copies(members: usize) -> usize {
        members / 2 + 1
    }

    fn install(&mut self, _: Membership, _: Context<'_>, _: &mut Effects<Message>) {
        unreachable!("the members of a Raft group don't change by epochs");
    }

    fn revoked(
        &mut self,
        from: PeerAddress,
        revocation: Revocation,
        cx: Context<'_>,
        effects: &mut Effects<Message>,
    ) {
        self.revoked(from, revocation, cx, effects);
    }

    fn is_ready(&self) -> bool {
        self.leader().is_some()
    }
}

fn run_adversary(size: u16, crashes: bool, count: u64) {
    for seed in seeds(count) {
        println!("seed {seed}, {size} replicas");
        run::<Raft>(size, Powers { crashes, removals: false }, seed);
    }
}

#[test]
fn raft_group_of_one_commits_only_synced_entries() {
    run_adversary(1, true, 100);
}

#[test]
fn raft_group_of_three_agrees_on_lossy_network() {
    run_adversary(3, false, 150);
}

#[test]
fn raft_group_of_three_agrees_across_crashes() {
    run_adversary(3, true, 300);
}

#[test]
fn raft_group_of_five_agrees_across_crashes() {
    run_adversary(5, true, 150);
}
