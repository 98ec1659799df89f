//! Who must come before whom.

use std::collections::VecDeque;

use super::{Order, Transaction};
use crate::Outcome;

/// Transactions from which a shortest cycle is looked for.
const MAX_STARTS: usize = 64;

/// Transactions that took effect, and after them moments, each the end of one.
pub(super) struct Graph {
    transactions: usize,
    happened: usize,
    /// Of each, who must come after it, and why.
    after: Vec<Vec<(usize, Order)>>,
}

impl Graph {
    /// The order of real time alone.
    pub(super) fn new(history: &[Transaction], happened: impl Fn(usize) -> bool) -> Self {
        let all = (0..history.len()).filter(|at| happened(*at));
        // Of one time, starts come first: who started as another ended did not start after it.
        let mut events: Vec<_> = all
            .flat_map(|at| [(history[at].start_ns, false, at), (history[at].end_ns, true, at)])
            // Of one that did not answer nobody knows when it ended.
            .filter(|(_, ends, at)| !ends || history[*at].outcome == Outcome::Ok)
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

    /// How many transactions took effect.
    pub(super) fn len(&self) -> usize {
        self.happened
    }

    pub(super) fn add(&mut self, before: usize, after: usize, order: Order) {
        if before != after {
            self.after[before].push((after, order));
        }
    }

    /// A cycle, if there is one: transactions, each with why it must come before the next.
    pub(super) fn cycle(&self) -> Option<Vec<(usize, Order)>> {
        let on_cycles = self.trim();
        let starts = (0..self.transactions).filter(|at| on_cycles[*at]).take(MAX_STARTS);
        starts.filter_map(|start| self.back_to(start, &on_cycles)).min_by_key(Vec::len)
    }

    /// Who is left when, again and again, whoever has nobody before it, or nobody after it, is taken
    /// away: those on cycles, and between two of them.
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

    /// The shortest way from a transaction back to itself.
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
            // Moments say no more than that the one before them ended before the one after started.
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
