//! The graph of transactions that must come before other transactions.

use std::collections::VecDeque;

use super::transaction::{Order, Transaction};
use crate::Completion;

/// Maximum number of transactions from which the search for a shortest cycle starts.
const MAX_STARTS: usize = 64;

/// The nodes are all transactions of the history, then the moments: one for each known end.
pub(super) struct Graph {
    transactions: usize,
    happened: usize,
    /// For each node, the nodes that must come after it, and why.
    after: Vec<Vec<(usize, Order)>>,
}

impl Graph {
    /// Creates the graph with its real-time edges.
    pub(super) fn new(history: &[Transaction], happened: impl Fn(usize) -> bool) -> Self {
        let all = (0..history.len()).filter(|at| happened(*at));
        // At equal times, starts sort before ends: a transaction that starts at the time at which
        // another ends does not come after it.
        let mut events: Vec<_> = all
            .flat_map(|at| [(history[at].start_ns, false, at), (history[at].end_ns, true, at)])
            // The end of a transaction of unknown outcome is not known.
            .filter(|(_, ends, at)| !ends || history[*at].outcome == Completion::Ok)
            .collect();
        events.sort_unstable();
        let starts = events.iter().filter(|(_, ends, _)| !ends).count();
        let (transactions, after) = (history.len(), vec![Vec::new(); history.len()]);
        let mut graph = Self { transactions, happened: starts, after };
        for (_, ends, at) in events {
            let last_moment = graph.after.len() - 1;
            let has_moment = last_moment >= transactions;
            if !ends {
                if has_moment {
                    graph.add(last_moment, at, Order::RealTime);
                }
                continue;
            }
            graph.after.push(Vec::new());
            if has_moment {
                graph.add(last_moment, last_moment + 1, Order::RealTime);
            }
            let moment = graph.after.len() - 1;
            graph.add(at, moment, Order::RealTime);
        }
        graph
    }

    /// Returns the number of transactions that took effect.
    pub(super) fn len(&self) -> usize {
        self.happened
    }

    pub(super) fn add(&mut self, before: usize, after: usize, order: Order) {
        if before != after {
            self.after[before].push((after, order));
        }
    }

    /// Returns a cycle, or `None` if there is none. Each transaction has the reason why it must
    /// come before the next. The cycle is the shortest of those through the first `MAX_STARTS`
    /// transactions that `trim` keeps, if one of them is on a cycle.
    pub(super) fn cycle(&self) -> Option<Vec<(usize, Order)>> {
        let kept = self.trim();
        let certain = self.on_a_cycle(&kept)?;
        let starts = (0..self.transactions).filter(|at| kept[*at]).take(MAX_STARTS);
        let starts = starts.chain([certain]);
        starts.filter_map(|start| self.back_to(start, &kept)).min_by_key(Vec::len)
    }

    /// Returns a transaction on a cycle, or `None` if no node is kept. Every kept node has a kept
    /// successor, so a walk along successors reaches a node a second time.
    fn on_a_cycle(&self, kept: &[bool]) -> Option<usize> {
        let mut at = kept.iter().position(|kept| *kept)?;
        let next = |at: usize| {
            let after = self.after[at].iter().map(|(next, _)| *next).find(|next| kept[*next]);
            after.expect("a kept node has a kept successor")
        };
        let mut seen = vec![false; kept.len()];
        while !std::mem::replace(&mut seen[at], true) {
            at = next(at);
        }
        while at >= self.transactions {
            at = next(at);
        }
        Some(at)
    }

    /// Repeatedly removes nodes without predecessors or without successors. Each node that remains
    /// lies on a cycle, or on a path between two cycles.
    fn trim(&self) -> Vec<bool> {
        let mut before = vec![Vec::new(); self.after.len()];
        for (at, after) in self.after.iter().enumerate() {
            after.iter().for_each(|(other, _)| before[*other].push(at));
        }
        let mut left = vec![true; self.after.len()];
        let mut counts = [
            before.iter().map(Vec::len).collect::<Vec<_>>(),
            self.after.iter().map(Vec::len).collect::<Vec<_>>(),
        ];
        let mut done: Vec<_> =
            (0..left.len()).filter(|at| counts.iter().any(|count| count[*at] == 0)).collect();
        while let Some(at) = done.pop() {
            if !std::mem::replace(&mut left[at], false) {
                continue;
            }
            let after = self.after[at].iter().map(|(other, _)| (0, *other));
            let before = before[at].iter().map(|other| (1, *other));
            for (side, other) in after.chain(before) {
                counts[side][other] -= 1;
                if counts[side][other] == 0 {
                    done.push(other);
                }
            }
        }
        left
    }

    /// Returns the shortest cycle through a transaction, without the moments on it.
    fn back_to(&self, start: usize, on_cycles: &[bool]) -> Option<Vec<(usize, Order)>> {
        let mut came_from: Vec<Option<(usize, Order)>> = vec![None; self.after.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for (next, order) in &self.after[at] {
                if on_cycles[*next] && came_from[*next].is_none() {
                    came_from[*next] = Some((at, *order));
                    queue.push_back(*next);
                }
            }
            if came_from[start].is_some() {
                break;
            }
        }
        let mut cycle = Vec::new();
        let mut at = start;
        loop {
            let (from, order) = came_from[at]?;
            // Skip moments: the transaction before them already has the reason `RealTime`.
            if from < self.transactions {
                cycle.push((from, order));
            }
            at = from;
            if at == start {
                break;
            }
        }
        cycle.reverse();
        Some(cycle)
    }
}
