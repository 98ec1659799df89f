//! The faults that the checks of a run must catch, each with a seed that does.
//!
//! The tests replay each seed. A change of the simulator or of the shard may turn a seed into
//! another run: `palisade sim --planted all`, of a build with the feature `planted-faults`,
//! searches the seeds again.

use palisade_replication::{Planted, ProtocolFault};
use palisade_shard::TestFault;
use palisade_wire::Mode;

use crate::{Failure, FaultKind, Parameters, Trace, simulate};

/// Every planted fault must be caught within this many seeds.
pub const MAX_SEEDS: u64 = 2_000;

/// A fault that is planted in a run, to prove that a check can fail.
#[derive(Clone, Copy, Debug)]
pub struct PlantedFault {
    /// Names the fault.
    pub name: &'static str,
    /// Part of the name of the invariant that must be violated; empty for any.
    pub invariant: &'static str,
    /// A seed whose run violates the invariant.
    pub seed: u64,
    plant: fn(&mut Parameters),
}

impl PlantedFault {
    /// Returns true if a failure violates the invariant.
    pub fn is_caught(&self, failure: &Failure) -> bool {
        failure.violation.invariant.contains(self.invariant)
    }

    /// Runs a seed with the fault. Returns the failure, or `None` if the run passes all checks.
    pub fn run(&self, seed: u64) -> Option<Box<Failure>> {
        let mut parameters = Parameters::draw(seed);
        (self.plant)(&mut parameters);
        simulate(&parameters, Trace::Off).err()
    }

    /// Returns the first seed that violates the invariant, with its failure, or `None` if none of
    /// [`MAX_SEEDS`] does.
    pub fn search(&self) -> Option<(u64, Box<Failure>)> {
        let caught = |seed| self.run(seed).filter(|failure| self.is_caught(failure));
        (0..MAX_SEEDS).find_map(|seed| Some((seed, caught(seed)?)))
    }
}

/// Part of the name of the invariant `external_consistency`.
const ORDER: &str = "commits are ordered";

const LEASES: &str = "a lease excludes later leaders";
const TRANSACTIONS: &str = "transactions are strictly";

fn protocol(parameters: &mut Parameters, fault: ProtocolFault) {
    plant(parameters, TestFault::Protocol(fault));
}

fn plant(parameters: &mut Parameters, fault: TestFault) {
    parameters.planted = Planted::new(fault);
}

const fn fault(
    name: &'static str,
    invariant: &'static str,
    seed: u64,
    plant: fn(&mut Parameters),
) -> PlantedFault {
    PlantedFault { name, invariant, seed, plant }
}

/// All faults that the checks must catch.
pub const PLANTED_FAULTS: &[PlantedFault] = &[
    fault("count-learners", "", 2, |p| protocol(p, ProtocolFault::CountLearners)),
    fault("unsynced-vote", "", 2, |p| protocol(p, ProtocolFault::UnsyncedVote)),
    fault("unsynced-confirmation", "", 0, |p| protocol(p, ProtocolFault::UnsyncedConfirmation)),
    fault("commit-by-counting", "", 0, |p| protocol(p, ProtocolFault::CommitByCounting)),
    fault("endless-lease", "", 2, |p| protocol(p, ProtocolFault::EndlessLease)),
    fault("break-promises", "", 2, |p| protocol(p, ProtocolFault::BreakPromises)),
    fault("early-reads", "", 25, |p| protocol(p, ProtocolFault::EarlyReads)),
    fault("no-joint-consensus", "", 344, |p| protocol(p, ProtocolFault::NoJointConsensus)),
    fault("incomplete-leader", "", 2, |p| protocol(p, ProtocolFault::IncompleteLeader)),
    fault("eager-tail", "", 0, |p| protocol(p, ProtocolFault::EagerTail)),
    // Nodes are silenced for about as long as a promise lasts, with long delays and turns. In other
    // runs, a promise that is broken by a few milliseconds is rarely seen.
    fault("stand-unlooked", LEASES, 171, |p| {
        protocol(p, ProtocolFault::StandUnlooked);
        p.nodes = 3;
        p.only = Some(Mode::Raft);
        p.faults = vec![FaultKind::Silence];
        p.fault_interval_us = 700_000;
        p.delay_us = 25_000;
        p.turn_us = 40_000;
    }),
    fault("forget-votes", "", 2, |p| plant(p, TestFault::ForgetVotes)),
    fault("forget-outcomes", "", 5, |p| plant(p, TestFault::ForgetOutcomes)),
    // The node that loses its logs must hold what another one missed.
    fault("trust-empty-log", "", 96, |p| {
        plant(p, TestFault::TrustEmptyLog);
        p.nodes = 3;
        p.faults = vec![FaultKind::Wipe, FaultKind::Partition];
    }),
    fault("stale-reads", "", 0, |p| plant(p, TestFault::StaleReads)),
    fault("forget-on-restart", "", 0, |p| plant(p, TestFault::ForgetOnRestart { entries: 1 })),
    // Snapshot reads detect a short commit wait too, under the name of another invariant.
    fault("no-commit-wait", ORDER, 1, |p| {
        plant(p, TestFault::NoCommitWait);
        p.snapshot_percent = 0;
    }),
    // Half of the wait would be enough only if clocks were right to within half of their bound.
    fault("half-commit-wait", ORDER, 8, |p| {
        plant(p, TestFault::HalfCommitWait);
        p.snapshot_percent = 0;
    }),
    fault("ignore-conditions", "commits of several keys", 8, |p| {
        plant(p, TestFault::IgnoreConditions);
    }),
    fault("ignore-locks", TRANSACTIONS, 1, |p| plant(p, TestFault::IgnoreLocks)),
    fault("trust-lost-locks", TRANSACTIONS, 2, |p| plant(p, TestFault::TrustLostLocks)),
    fault("early-locked-reads", TRANSACTIONS, 4, |p| plant(p, TestFault::EarlyLockedReads)),
    fault("hasty-snapshots", TRANSACTIONS, 4, |p| plant(p, TestFault::HastySnapshots)),
    fault("eager-safe-time", TRANSACTIONS, 2, |p| plant(p, TestFault::EagerSafeTime)),
    fault("ignore-pending-writes-raft", "", 21, |p| {
        plant(p, TestFault::IgnorePendingWrites);
        p.only = Some(Mode::Raft);
    }),
    fault("ignore-pending-writes-chain", "", 2, |p| {
        plant(p, TestFault::IgnorePendingWrites);
        p.only = Some(Mode::Chain);
    }),
    fault("run-expired", "", 0, |p| plant(p, TestFault::RunExpired)),
    fault("forget-forwarded", "", 508, |p| plant(p, TestFault::ForgetForwarded)),
    // Shards crash while requests that they passed on wait for a response.
    fault("reuse-forward-ids", "", 177, |p| {
        plant(p, TestFault::ReuseForwardIds);
        p.faults = vec![FaultKind::Crash, FaultKind::CutClients];
    }),
    // Nodes pause often, and clients retry at another replica soon.
    fault("unconfirmed-aborts", "", 15, |p| {
        plant(p, TestFault::UnconfirmedAborts);
        p.nodes = 3;
        p.only = Some(Mode::Raft);
        p.faults = vec![FaultKind::Pause];
        p.fault_us = 180_000_000;
        p.fault_interval_us = 800_000;
        p.fault_length_us = 500_000;
        (p.loss, p.duplication) = (0, 2_000);
        p.callers = 12;
        p.transaction_percent = 80;
    }),
    fault("clock-beyond-its-bound", ORDER, 3, |p| {
        p.clock_lie_us = 50_000;
        p.snapshot_percent = 0;
    }),
    // If the thread is stopped between the monotonic and the wall clock, the turn has an old
    // monotonic reading, and a lease that has ended seems to hold.
    fault("monotonic-clock-first", "", 0, |p| {
        p.monotonic_first = true;
        p.nodes = 3;
        p.only = Some(Mode::Raft);
        p.faults = vec![FaultKind::Pause];
        p.stopped_turns = 256;
        p.snapshot_percent = 30;
    }),
    fault("trust-damage", "", 7, |p| p.trust_damage = true),
    fault("cut-early", "", 2, |p| p.cut_early = true),
    // `docs/assumptions.md` excludes this case. The simulator shows which invariant breaks.
    fault("suspended-clocks", "", 0, |p| {
        p.suspends = true;
        p.faults = vec![FaultKind::Pause];
    }),
];
