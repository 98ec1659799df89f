//! The links of a chain: attaching, fetching, forwarding, and reporting commits.

use palisade_wire::PeerAddress;

use super::{Body, Chain, Message};
use crate::{After, Effects, Entry};

/// Limit of the entries in one message, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The link to a successor that has attached.
#[derive(Debug)]
pub(super) struct Downstream {
    /// The link that the successor drew. Every `Forward` carries it.
    link: u64,
    /// Index of the next entry to send.
    next_index: u64,
    /// The stable index last sent; `None` before the first one.
    told_stable: Option<u64>,
}

/// The report of a successor that attaches.
#[derive(Clone, Copy)]
pub(super) struct Attached {
    pub(super) link: u64,
    pub(super) last_index: u64,
    pub(super) last_term: u64,
    pub(super) commit_index: u64,
}

impl Chain {
    pub(super) fn probe(&mut self, effects: &mut Effects<Message>) {
        if let Some(successor) = self.successor() {
            let probe = self.message(Body::Probe { session: self.session });
            effects.send(successor, probe, After::Appends);
        }
    }

    pub(super) fn ask_for_probe(&mut self, effects: &mut Effects<Message>) {
        if let Some(predecessor) = self.predecessor() {
            effects.send(predecessor, self.message(Body::Hello), After::Appends);
        }
    }

    /// Probes the successor if the commit index stalls, because messages may have been lost.
    pub(super) fn probe_if_stalled(&mut self, now_us: u64, effects: &mut Effects<Message>) {
        let moved = self.commit_index != self.stall_commit;
        if moved || self.commit_index == self.log.last_index() {
            self.stall_commit = self.commit_index;
            self.stall_due_us = now_us + self.timing.stall_us;
        } else if now_us >= self.stall_due_us && self.downstream.is_some() {
            self.stall_due_us = now_us + self.timing.stall_us;
            self.probe(effects);
        }
    }

    /// Reports to the predecessor where this log ends.
    pub(super) fn attach(&mut self, session: u64, effects: &mut Effects<Message>) {
        let Some(predecessor) = self.predecessor() else { return };
        let link = match self.link {
            Some((of_session, link)) if of_session == session => link,
            _ => self.random.u64(..),
        };
        self.link = Some((session, link));
        let body = Body::Attach {
            session,
            link,
            last_index: self.log.last_index(),
            last_term: self.log.last_term(),
            commit_index: self.commit_index,
        };
        effects.send(predecessor, self.message(body), After::Appends);
    }

    /// Handles the successor's report of where its log ends.
    pub(super) fn attached(&mut self, attached: Attached, effects: &mut Effects<Message>) {
        let Attached { link, last_index, last_term, commit_index } = attached;
        if last_index > self.log.last_index() {
            if self.downstream.is_none() {
                let body =
                    Body::Fetch { session: self.session, from_index: self.log.last_index() + 1 };
                if let Some(successor) = self.successor() {
                    effects.send(successor, self.message(body), After::Nothing);
                }
            }
            return;
        }
        // Logs of one chain agree wherever both have entries. If they differ, the successor holds
        // entries of an epoch whose members all lost them. It then stays unattached, and `is_ready`
        // stays false here.
        if self.log.term_at(last_index) != Some(last_term) {
            return;
        }
        let first = self.downstream.is_none();
        self.downstream = Some(Downstream { link, next_index: last_index + 1, told_stable: None });
        self.commit_to(commit_index.clamp(self.commit_index, self.log.last_index()), effects);
        if first {
            self.ask_for_probe(effects);
        }
    }

    pub(super) fn answer_fetch(
        &mut self,
        to: PeerAddress,
        session: u64,
        from_index: u64,
        effects: &mut Effects<Message>,
    ) {
        let entries = self.log.slice(from_index, MAX_MESSAGE_BYTES);
        effects.send(to, self.message(Body::Fetched { session, entries }), After::Nothing);
    }

    /// Appends the entries that the successor held beyond this log, and probes it again.
    pub(super) fn fetched(
        &mut self,
        entries: Vec<Entry>,
        now_us: u64,
        effects: &mut Effects<Message>,
    ) {
        for entry in entries {
            if entry.index == self.log.last_index() + 1 && entry.term >= self.log.last_term() {
                self.log.append(entry, now_us, effects);
            }
        }
        self.probe(effects);
    }

    /// Handles entries and a stable index from the predecessor.
    pub(super) fn accept(
        &mut self,
        (previous_index, previous_term): (u64, u64),
        stable_index: u64,
        entries: Vec<Entry>,
        now_us: u64,
        effects: &mut Effects<Message>,
    ) {
        if self.log.term_at(previous_index) != Some(previous_term) {
            if previous_index > self.log.last_index() {
                // A message was lost.
                self.ask_for_probe(effects);
            }
            return;
        }
        let first_index = self.log.first_index();
        for entry in entries.into_iter().filter(|entry| entry.index >= first_index) {
            match self.log.term_at(entry.index) {
                // The entry was sent again.
                Some(term) => {
                    assert_eq!(
                        term, entry.term,
                        "{}: the chain forked at index {}",
                        self.name, entry.index
                    );
                }
                None if entry.index == self.log.last_index() + 1
                    && entry.term >= self.log.last_term() =>
                {
                    self.log.append(entry, now_us, effects);
                }
                // No correct member sends entries with a gap or a falling epoch: the message is
                // corrupt.
                None => return,
            }
        }
        self.upstream_stable = Some(stable_index.max(self.upstream_stable.unwrap_or(0)));
        self.advance_commit(effects);
    }

    /// Sends the successor the entries that it lacks, and the stable index if it has changed.
    pub(super) fn send_entries(&mut self, effects: &mut Effects<Message>) {
        // A member that is not fed does not know what is stable upstream.
        if !self.is_head() && !self.is_fed() {
            return;
        }
        let stable_index = self.stable_index();
        let epoch = self.membership.epoch;
        let (Some(successor), Some(link)) = (self.successor(), &mut self.downstream) else {
            return;
        };
        // A late `Attach` may name an index that was dropped since. Only committed entries are
        // dropped, and the successor holds those.
        link.next_index = link.next_index.max(self.log.first_index());
        loop {
            let entries = self.log.slice(link.next_index, MAX_MESSAGE_BYTES);
            if entries.is_empty() && link.told_stable == Some(stable_index) {
                return;
            }
            let previous_index = link.next_index - 1;
            let previous_term =
                self.log.term_at(previous_index).expect("what was sent before is in the log");
            link.next_index += entries.len() as u64;
            link.told_stable = Some(stable_index);
            let body = Body::Forward {
                link: link.link,
                previous_index,
                previous_term,
                stable_index,
                entries,
            };
            effects.send(successor, Message { epoch, body }, After::Nothing);
        }
    }

    /// Sends the predecessor a commit index that has changed.
    pub(super) fn report_commit(&mut self, effects: &mut Effects<Message>) {
        if self.commit_index == self.reported_commit {
            return;
        }
        if let Some(predecessor) = self.predecessor() {
            let body = Body::Committed { index: self.commit_index };
            effects.send(predecessor, self.message(body), After::Nothing);
        }
        self.reported_commit = self.commit_index;
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::{NodeId, PeerAddress, RangeId, ShardId};

    use super::{
        super::{Setup, Timing},
        *,
    };
    use crate::{
        Context, Membership, PeerTiming, Peers, Planted, Protocol, RecoveredGroup, SnapshotPart,
    };

    fn at(node: u16) -> PeerAddress {
        PeerAddress { node: NodeId(node), shard: ShardId(0) }
    }

    /// Covers seed 1630 of the simulator: a checkpoint was written in the turn of a late `Attach`.
    #[test]
    fn attach_below_truncated_head_is_ignored() {
        let membership = Membership { epoch: 1, members: vec![at(0), at(1)] };
        let setup = Setup {
            range: RangeId(1),
            me: at(0),
            membership,
            recovered: RecoveredGroup::default(),
            random_seed: 1,
            planted: Planted::default(),
        };
        let mut head = Chain::new(setup, Timing::default()).unwrap();
        let peers = Peers::new(PeerTiming::default(), 1, [at(1)], 1);
        let cx = Context { now_us: 1, peers: &peers };
        let effects = &mut Effects::default();
        let attach = |last_index| Attached {
            link: last_index,
            last_index,
            last_term: u64::from(last_index > 0),
            commit_index: last_index,
        };
        head.attached(attach(0), effects);
        for _ in 0..4 {
            head.propose(bytes::Bytes::from_static(b"x"), cx, effects).unwrap();
        }
        head.flush(0, cx, effects);
        head.durable(4, cx, effects);
        head.attached(attach(4), effects);
        assert_eq!(head.commit_index(), 4);
        head.attached(attach(1), effects);
        let mut part = head.snapshot_head(head.commit_index);
        for (number, last) in [(0, false), (1, true)] {
            part = SnapshotPart { part: number, last, ..part };
            head.write_snapshot(part.clone(), 0, cx, effects);
        }
        assert_eq!(head.first_index(), 5);
        effects.sends.clear();
        head.flush(4, cx, effects);
        let forwarded = effects.sends.iter().find_map(|send| match &send.message.body {
            Body::Forward { previous_index, .. } => Some(*previous_index),
            _ => None,
        });
        assert_eq!(forwarded, Some(4));
    }
}
