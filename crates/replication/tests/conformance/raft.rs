//! Raft under the adversary.

use palisade_replication::{
    Effects, Membership, RecoveredGroup,
    raft::{Message, Raft, Timing},
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
        let membership = Membership { epoch: 1, members: members.to_vec() };
        Self::new(RangeId(1), me, membership, recovered, Timing::default(), random_seed, now_us)
            .expect("what was written can be read")
    }

    fn membership(&self) -> &Membership {
        self.membership()
    }

    fn needed_copies(members: usize) -> usize {
        members / 2 + 1
    }

    fn install(&mut self, _: Membership, _: &mut Effects<Message>) {
        unreachable!("the members of a Raft group don't change by epochs");
    }
}

fn torment(size: u16, crashes: bool, count: u64) {
    for seed in seeds(count) {
        println!("seed {seed}, {size} replicas");
        run::<Raft>(size, Powers { crashes, removals: false }, seed);
    }
}

#[test]
fn one_replica_commits_only_what_it_synced() {
    torment(1, true, 100);
}

#[test]
fn three_replicas_agree_over_a_bad_network() {
    torment(3, false, 150);
}

#[test]
fn three_replicas_agree_over_crashes() {
    torment(3, true, 300);
}

#[test]
fn five_replicas_agree_over_crashes() {
    torment(5, true, 150);
}
