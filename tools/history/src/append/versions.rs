//! The versions of each key, as the reads show them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    transaction::{Order, Step, Transaction},
    violation::AppendViolation,
};
use crate::Completion;

/// The writer of each element, and the longest list that was read of each key.
pub(super) struct Versions<'a> {
    history: &'a [Transaction],
    /// Maps key and element to the index of the transaction that appended it.
    writers: BTreeMap<(u32, u64), usize>,
    /// The longest list that was read of each key, and the index of its reader.
    longest: BTreeMap<u32, (&'a [u64], usize)>,
    /// For each transaction, whether it took effect.
    happened: Vec<bool>,
}

impl<'a> Versions<'a> {
    /// Gathers the versions, and checks that every read agrees with them.
    pub(super) fn of(history: &'a [Transaction]) -> Result<Self, AppendViolation> {
        let boxed = |at: usize| Box::new(history[at].clone());
        let mut writers = BTreeMap::new();
        let mut longest: BTreeMap<u32, (&[u64], usize)> = BTreeMap::new();
        for (at, transaction) in history.iter().enumerate() {
            for (key, element) in transaction.appends() {
                if let Some(first) = writers.insert((key, element), at) {
                    let (first, second) = (boxed(first), boxed(at));
                    return Err(AppendViolation::AppendedTwice { key, element, first, second });
                }
            }
            for (_, key, list) in transaction.reads() {
                let of_key = longest.entry(key).or_insert((list, at));
                if list.len() > of_key.0.len() {
                    *of_key = (list, at);
                }
            }
        }
        let mut happened: Vec<_> =
            history.iter().map(|transaction| transaction.outcome == Completion::Ok).collect();
        for (key, (list, reader)) in &longest {
            let (key, mut seen) = (*key, BTreeSet::new());
            for element in *list {
                let writer = writers.get(&(key, *element)).copied();
                let again = !seen.insert(element);
                let Some(writer) = writer.filter(|_| !again) else {
                    let (element, reader) = (*element, boxed(*reader));
                    return Err(AppendViolation::Unexplained { key, element, reader });
                };
                if history[writer].outcome == Completion::Fail {
                    let (reader, writer) = (boxed(*reader), boxed(writer));
                    return Err(AppendViolation::FailedSeen { key, reader, writer });
                }
                happened[writer] = true;
            }
        }
        let versions = Self { history, writers, longest, happened };
        for at in 0..history.len() {
            versions.check_reads(at)?;
        }
        Ok(versions)
    }

    /// Returns true if the transaction certainly took effect.
    pub(super) fn happened(&self, at: usize) -> bool {
        self.happened[at]
    }

    fn check_reads(&self, at: usize) -> Result<(), AppendViolation> {
        let boxed = |at: usize| Box::new(self.history[at].clone());
        for (step, key, list) in self.history[at].reads() {
            let (longest, one) = self.longest[&key];
            if !longest.starts_with(list) {
                let (one, other) = (boxed(one), boxed(at));
                return Err(AppendViolation::Diverged { key, one, other });
            }
            let own = self.own_before(at, step, key);
            if !list.ends_with(&own) {
                return Err(AppendViolation::OwnUnseen(boxed(at), key));
            }
            let Some(last) = list[..list.len() - own.len()].last() else { continue };
            let writer = self.writers[&(key, *last)];
            if writer == at {
                return Err(AppendViolation::OwnUnseen(boxed(at), key));
            }
            let of_writer = self.history[writer].appends().filter(|(of, _)| *of == key);
            if of_writer.last() != Some((key, *last)) {
                let (reader, writer) = (boxed(at), boxed(writer));
                return Err(AppendViolation::HalfSeen { key, reader, writer });
            }
        }
        Ok(())
    }

    /// Returns the elements that a transaction had appended to `key` before its step `step`.
    fn own_before(&self, at: usize, step: usize, key: u32) -> Vec<u64> {
        let before = self.history[at].steps[..step].iter();
        let own = before.filter_map(|step| match step {
            Step::Append { key: of, element } if *of == key => Some(*element),
            _ => None,
        });
        own.collect()
    }

    /// Calls `add` for each `ww`, `wr` and `rw` edge: the first transaction must precede the
    /// second.
    pub(super) fn visit(&self, mut add: impl FnMut(usize, usize, Order)) {
        let lists = self.longest.iter();
        let read: BTreeSet<_> = lists
            .flat_map(|(key, (list, _))| list.iter().map(|element| (*key, *element)))
            .collect();
        let mut unread: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (of, writer) in &self.writers {
            if !read.contains(of) && self.happened[*writer] {
                unread.entry(of.0).or_default().push(*writer);
            }
        }
        let none = Vec::new();
        for (key, (list, _)) in &self.longest {
            let writer = |element: u64| self.writers[&(*key, element)];
            for pair in list.windows(2) {
                add(writer(pair[0]), writer(pair[1]), Order::Appended(*key));
            }
            for later in unread.get(key).unwrap_or(&none) {
                if let Some(last) = list.last() {
                    add(writer(*last), *later, Order::Appended(*key));
                }
            }
        }
        for (at, transaction) in self.history.iter().enumerate() {
            for (step, key, list) in transaction.reads() {
                let seen = list.len() - self.own_before(at, step, key).len();
                if let Some(last) = seen.checked_sub(1) {
                    add(self.writers[&(key, list[last])], at, Order::Read(key));
                }
                let (longest, _) = self.longest[&key];
                match longest.get(list.len()) {
                    Some(next) => add(at, self.writers[&(key, *next)], Order::Unseen(key)),
                    None => {
                        for later in unread.get(&key).unwrap_or(&none) {
                            add(at, *later, Order::Unseen(key));
                        }
                    }
                }
            }
        }
    }
}
