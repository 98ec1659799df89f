//! The invariants, checked after every turn of every shard: one per file.

mod chain_prefix;
mod durability;
mod election_safety;
mod external_consistency;
mod leader_completeness;
mod lease_exclusivity;
mod log_matching;
mod monotone;
mod observation;
mod own_term_commits;
mod pairs;
mod state_machine_safety;
mod transactions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use palisade_clock::Now;
use palisade_history::{Operation, TimestampedOperation};
use palisade_shard::{ReplicaView, Shard};
use palisade_wire::{NodeId, PeerAddress, RangeId};

use crate::Parameters;
use chain_prefix::ChainPrefix;
use durability::Durability;
use election_safety::ElectionSafety;
pub(crate) use external_consistency::ExternalConsistency;
use leader_completeness::LeaderCompleteness;
use lease_exclusivity::LeaseExclusivity;
use log_matching::LogMatching;
use monotone::Monotone;
use observation::{Committed, Log, Observation};
use own_term_commits::OwnTermCommits;
pub(crate) use pairs::Pairs;
use state_machine_safety::StateMachineSafety;
pub(crate) use transactions::{Seen, Transactions};

/// Covers operations of all kinds, over all ranges.
const FIT_TIMESTAMPS: &str = "every operation fits one timestamp, in real time";

/// An invariant that was violated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The name of the invariant.
    pub invariant: &'static str,
    /// The observation that contradicts it.
    pub detail: String,
}

#[derive(Debug)]
pub(crate) struct Invariants {
    seen: BTreeMap<RangeId, BTreeMap<PeerAddress, Observation>>,
    committed: BTreeMap<RangeId, Committed>,
    lost: BTreeSet<NodeId>,
    elections: ElectionSafety,
    leases: LeaseExclusivity,
    matching: LogMatching,
    state_machines: StateMachineSafety,
}

impl Invariants {
    pub(crate) fn new(_parameters: &Parameters) -> Self {
        Self {
            seen: BTreeMap::new(),
            committed: BTreeMap::new(),
            lost: BTreeSet::new(),
            elections: ElectionSafety::default(),
            leases: LeaseExclusivity::default(),
            matching: LogMatching::default(),
            state_machines: StateMachineSafety::default(),
        }
    }

    /// Checks every replica of a shard after a turn.
    pub(crate) fn after_turn(
        &mut self,
        at: PeerAddress,
        shard: &Shard,
        now: Now,
    ) -> Result<(), Violation> {
        for view in shard.views() {
            self.look_at(at, &view)?;
            if shard.is_leased(view.range(), now) {
                let exclusive = self.leases.check(view.range(), at, view.term());
                named(LeaseExclusivity::NAME, exclusive)?;
            }
        }
        Ok(())
    }

    /// Checks what a shard has replayed at its start, and compares later changes with it.
    pub(crate) fn after_start(&mut self, at: PeerAddress, shard: &Shard) -> Result<(), Violation> {
        for view in shard.views() {
            let range = view.range();
            let committed = self.committed.entry(range).or_default();
            let mut log = Log::new();
            log.refresh(&view, committed);
            let before = self.seen.entry(range).or_default();
            if let Some(known) = before.get_mut(&at) {
                named(Durability::NAME, Durability.check_restart(known, &log))?;
                known.log = log;
                known.durable_index = view.durable_index();
            }
        }
        Ok(())
    }

    /// Records that a node has crashed: its replicas keep the entries known to be durable.
    pub(crate) fn after_crash(&mut self, node: NodeId) {
        for replicas in self.seen.values_mut() {
            for (_, seen) in replicas.iter_mut().filter(|(at, _)| at.node == node) {
                seen.log.truncate(seen.durable_index);
                seen.is_running = false;
            }
        }
    }

    /// Records that a node has lost its logs: its observations are dropped, and [`Durability`]
    /// counts it as a holder of every entry.
    pub(crate) fn after_loss(&mut self, node: NodeId) {
        self.lost.insert(node);
        for replicas in self.seen.values_mut() {
            replicas.retain(|at, _| at.node != node);
        }
    }

    fn look_at(&mut self, at: PeerAddress, view: &ReplicaView<'_>) -> Result<(), Violation> {
        let range = view.range();
        let replicas = self.seen.entry(range).or_default();
        if replicas.get(&at).is_some_and(|before| !has_changed(before, view)) {
            return Ok(());
        }
        let mut before = replicas.remove(&at);
        let committed = self.committed.entry(range).or_default();
        let mut log = before.as_mut().map_or_else(Log::new, |b| std::mem::take(&mut b.log));
        let before = before.as_ref();
        let fresh = log.refresh(view, committed);
        let seen = Observation {
            at,
            range,
            mode: view.mode(),
            role: view.role(),
            term: view.term(),
            epoch: view.epoch(),
            is_ready: view.is_ready(),
            commit_index: view.commit_index(),
            applied_index: view.applied_index(),
            durable_index: view.durable_index(),
            digest: view.digest(),
            electorates: view.electorates(),
            log,
            fresh,
            is_running: true,
        };
        let from = before.filter(|before| before.is_running).map_or(0, |b| b.commit_index);
        let others = |peer: PeerAddress| replicas.get(&peer);
        let completeness = LeaderCompleteness.check(before, &seen, committed);
        named(Monotone::NAME, Monotone.check(before, &seen))?;
        named(OwnTermCommits::NAME, OwnTermCommits.check(before, &seen))?;
        named(ElectionSafety::NAME, self.elections.check(&seen))?;
        self.leases.note(&seen);
        named(LogMatching::NAME, self.matching.check(&seen))?;
        named(LeaderCompleteness::NAME, completeness)?;
        let durable = Durability.check(before, &seen, committed, &self.lost, others);
        named(Durability::NAME, durable)?;
        named(ChainPrefix::NAME, ChainPrefix.check(&seen, others))?;
        let safe = self.state_machines.check(from, &seen, committed);
        named(StateMachineSafety::NAME, safe)?;
        replicas.insert(at, seen);
        Ok(())
    }

    /// Checks the histories of the clients, when the run is over.
    pub(crate) fn at_end(
        &self,
        registers: &[Operation],
        all: &[TimestampedOperation],
    ) -> Result<(), Violation> {
        let linearizable = palisade_history::check(registers).map_err(|v| v.to_string());
        named("clients' histories are linearizable", linearizable.map(drop))?;
        let fit = palisade_history::check_timestamps(all).map_err(|v| v.to_string());
        named(FIT_TIMESTAMPS, fit.map(drop))
    }

    pub(crate) fn elections(&self) -> u64 {
        self.elections.elections()
    }
}

fn has_changed(before: &Observation, view: &ReplicaView<'_>) -> bool {
    let last = view.last_index();
    let last_term = |mark: Option<(u64, Option<u32>)>| mark.map(|(term, _)| term);
    !before.is_running
        || before.term != view.term()
        || before.role != view.role()
        || before.epoch != view.epoch()
        || before.is_ready != view.is_ready()
        || before.commit_index != view.commit_index()
        || before.applied_index != view.applied_index()
        || before.durable_index != view.durable_index()
        || before.log.last() != last
        || before.log.base() + 1 != view.first_index()
        || last_term(before.log.mark(last)) != view.entry(last).map(|entry| entry.term)
}

pub(crate) fn named(invariant: &'static str, checked: Result<(), String>) -> Result<(), Violation> {
    checked.map_err(|detail| Violation { invariant, detail })
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}
