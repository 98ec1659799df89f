//! The random adversary, and the recovery after it.

use palisade_replication::Membership;

use crate::group::{Group, Subject};

/// Maximum number of messages in flight; beyond it the oldest are lost.
const MAX_NETWORK: usize = 400;

/// The faults that the adversary may inject beyond losing and reordering messages.
#[derive(Clone, Copy)]
pub(crate) struct Powers {
    pub(crate) crashes: bool,
    /// Removes members that are down, epoch by epoch.
    pub(crate) removals: bool,
}

/// Injects faults into a group, heals it, and requires progress. Returns the reads served.
pub(crate) fn run<P: Subject>(size: u16, powers: Powers, seed: u64) -> u64
where
    P::Message: Clone,
{
    let mut group = Group::<P>::new(size, seed);
    let mut operator = Operator::new(size);
    let steps = group.random.usize(200..2_000);
    // Elections need long pauses. Full pipelines need short ones.
    let max_pause_us = [10_000, 100_000, 1_000_000][group.random.usize(0..3)];
    let loss_percent = group.random.u32(0..30);
    // Half of the runs let the group come up first, so that deeper states are reached as well.
    if group.random.bool() {
        group.settle(100_000);
    }
    for _ in 0..steps {
        let at = group.random.usize(0..usize::from(size));
        match group.random.u32(0..1_000) {
            0..3 => group.isolate_some(),
            3..6 => group.isolated.clear(),
            6..450 => deliver_any(&mut group, loss_percent),
            450..600 => group.sync_some(at),
            600..750 => {
                group.now_us += group.random.u64(0..max_pause_us);
                group.tick(at);
            }
            750..900 => drop(group.propose(at)),
            900..980 => group.read(at),
            980..995 if powers.crashes => {
                if group.members[at].running.is_some() {
                    group.crash(at);
                } else if operator.may_restart(at) {
                    group.restart(at);
                }
            }
            995.. if powers.removals => operator.act(&mut group),
            _ => {}
        }
    }
    heal(&mut group, &mut operator);
    group.reads_served
}

fn deliver_any<P: Subject>(group: &mut Group<P>, loss_percent: u32)
where
    P::Message: Clone,
{
    if group.network.is_empty() {
        return;
    }
    while group.network.len() > MAX_NETWORK {
        group.network.remove(0);
    }
    let message = group.random.usize(0..group.network.len());
    match group.random.u32(0..100) {
        percent if percent < loss_percent => drop(group.network.swap_remove(message)),
        percent if percent > 90 => {
            let again = group.network[message].clone();
            group.network.push(again);
            group.deliver(message);
        }
        _ => group.deliver(message),
    }
}

/// Restarts every replica and ends all faults. A new entry must then be committed at every
/// remaining member.
fn heal<P: Subject>(group: &mut Group<P>, operator: &mut Operator)
where
    P::Message: Clone,
{
    group.isolated.clear();
    operator.finish(group);
    for at in 0..group.members.len() {
        if group.members[at].running.is_none() {
            group.restart(at);
        }
    }
    let left_alone = |group: &Group<P>| {
        let members = (0..group.members.len()).filter(|at| operator.is_member(*at));
        let mut running = members.map(|at| group.members[at].running.as_ref());
        running
            .find_map(|replica| replica.filter(|replica| !replica.is_ready()))
            .map(|replica| format!("{replica:?}"))
    };
    // An election on slow disks takes longer.
    for _ in 0..15 {
        group.settle(1_000_000);
        if left_alone(group).is_none() {
            break;
        }
    }
    group.settle(1_000_000);
    let alone = left_alone(group);
    assert!(alone.is_none(), "a member is left alone: {alone:?}");
    let before = group.committed();
    let taken = (0..group.members.len()).filter(|at| group.propose(*at).is_none()).count();
    assert_eq!(taken, 1, "a healed group has one replica that orders writes");
    group.settle(1_000_000);
    assert!(group.committed() > before, "a healed group commits nothing");
    for at in 0..group.members.len() {
        if operator.is_member(at) {
            assert_eq!(group.applied(at), group.committed(), "member {at} does not catch up");
        }
        group.read(at);
    }
    let served = group.reads_served;
    group.settle(1_000_000);
    assert!(group.reads_served >= served, "reads are counted");
    assert!(group.reads_served > 0, "a healed group serves no read");
}

/// Removes members that are down, and keeps them down until the others are in the new epoch.
struct Operator {
    epoch: u64,
    members: Vec<usize>,
    /// Members that have yet to enter the current epoch.
    pending: Vec<usize>,
    /// Members that must stay down until no member is pending.
    fenced: Vec<usize>,
}

impl Operator {
    fn new(size: u16) -> Self {
        let members = (0..usize::from(size)).collect();
        Self { epoch: 1, members, pending: Vec::new(), fenced: Vec::new() }
    }

    fn is_member(&self, at: usize) -> bool {
        self.members.contains(&at)
    }

    fn may_restart(&self, at: usize) -> bool {
        !self.fenced.contains(&at)
    }

    fn membership<P: Subject>(&self, group: &Group<P>) -> Membership {
        let members = self.members.iter().map(|at| group.members[*at].address).collect();
        Membership { epoch: self.epoch, members }
    }

    fn act<P: Subject>(&mut self, group: &mut Group<P>)
    where
        P::Message: Clone,
    {
        if !self.pending.is_empty() {
            self.install_one(group);
            return;
        }
        let victim = self.members[group.random.usize(0..self.members.len())];
        let down = group.members[victim].running.is_none();
        let others_up =
            self.members.iter().all(|at| *at == victim || group.members[*at].running.is_some());
        if self.members.len() > 1 && down && others_up {
            self.members.retain(|at| *at != victim);
            self.epoch += 1;
            self.pending.clone_from(&self.members);
            self.fenced.push(victim);
        }
    }

    fn install_one<P: Subject>(&mut self, group: &mut Group<P>)
    where
        P::Message: Clone,
    {
        let at = *self.pending.last().expect("an operation is pending");
        if group.members[at].running.is_some() {
            let membership = self.membership(group);
            group.install(at, membership);
            // The epoch counts once it is durable at the member.
            group.sync_all(at);
            self.pending.pop();
        }
        if self.pending.is_empty() {
            self.fenced.clear();
        }
    }

    fn finish<P: Subject>(&mut self, group: &mut Group<P>)
    where
        P::Message: Clone,
    {
        while let Some(at) = self.pending.last() {
            if group.members[*at].running.is_none() {
                group.restart(*at);
            }
            self.install_one(group);
        }
    }
}
