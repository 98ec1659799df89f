//! A replica's snapshots: taken of its own state, sent to replicas that lag, and received.
//!
//! A *checkpoint* is a snapshot of a replica's own state in its own log. It replaces the entries
//! that it covers. A checkpoint is due once the log has grown by a configured size and by the size
//! of the last checkpoint, so at most half of what is written is checkpoints. It is also taken on
//! demand, to free the head of the log.
//!
//! A snapshot for another replica is read while it is sent. A few parts are in flight at a time,
//! and are resent if no acknowledgement arrives. The receiver writes each part to its log on
//! arrival, and installs the snapshot with the last one.

use std::collections::{BTreeMap, VecDeque};

use palisade_clock::Timestamp;
use palisade_replication::SnapshotPart;
use palisade_wire::{PeerAddress, RangeId, WireError};

use crate::{
    messages::SnapshotMessage,
    snapshot_state::{Built, StateBuilder, StateReader},
    state_machine::StateMachine,
};

/// Unacknowledged parts in flight to one replica.
const WINDOW_PARTS: usize = 4;

/// Interval after which unacknowledged parts are resent, in microseconds.
const RESEND_US: u64 = 200_000;

/// A receiver abandons a transfer after this long without a part, in microseconds. The sender has
/// abandoned it by then.
const RECEIVE_US: u64 = RESEND_US * (MAX_RESENDS as u64 + 1);

/// Resends without progress after which a transfer is abandoned.
const MAX_RESENDS: u32 = 10;

/// The other replica of a transfer, and the number of its stream.
type Transfer = (PeerAddress, u64);

/// Transfers and the checkpoint that are in progress. Usually none, so the type is kept small.
#[derive(Debug)]
pub(crate) struct Snapshots {
    outgoing: BTreeMap<PeerAddress, Sending>,
    incoming: Option<Box<Receiving>>,
    checkpoint: Option<Box<SnapshotInProgress>>,
    next_stream: u64,
    range: RangeId,
}

/// A snapshot that is being read from the state.
#[derive(Debug)]
pub(crate) struct SnapshotInProgress {
    index: u64,
    term: u64,
    next_part: u32,
    reader: StateReader,
    finished: bool,
}

#[derive(Debug)]
struct Sending {
    stream: u64,
    snapshot: SnapshotInProgress,
    /// Parts that are sent and not acknowledged.
    in_flight: VecDeque<SnapshotPart>,
    resend_due_us: u64,
    resends: u32,
}

#[derive(Debug)]
struct Receiving {
    from: PeerAddress,
    stream: u64,
    next_part: u32,
    builder: StateBuilder,
    /// When the last part arrived, on the monotonic clock.
    last_us: u64,
}

/// How a replica handles a part that it received.
pub(crate) enum Arrived {
    /// Ignore it: an earlier part is missing.
    Ignored,
    /// Acknowledge it with this message: it is stored already, or not needed.
    Known(SnapshotMessage),
    /// Write it, then acknowledge it with this message. The last part yields the whole state.
    Next(SnapshotMessage, Option<Box<Built>>),
}

impl SnapshotInProgress {
    /// Starts reading a snapshot. `head` is its part 0, the protocol's own.
    pub(crate) fn new(head: &SnapshotPart, reader: StateReader) -> Self {
        let SnapshotPart { index, term, .. } = *head;
        Self { index, term, next_part: 1, reader, finished: false }
    }

    fn next(&mut self, state: &StateMachine) -> SnapshotPart {
        let (payload, last) = self.reader.next_part(state);
        let part = self.next_part;
        self.next_part += 1;
        self.finished = last;
        SnapshotPart { index: self.index, term: self.term, part, last, payload }
    }
}

impl Snapshots {
    /// Creates an empty set. Stream numbers start at `first_stream`, which is drawn at random, so
    /// that a receiver does not mistake a stream for one of an earlier start.
    pub(crate) fn new(range: RangeId, first_stream: u64) -> Self {
        Self {
            range,
            outgoing: BTreeMap::new(),
            incoming: None,
            checkpoint: None,
            next_stream: first_stream,
        }
    }

    /// Returns true if a snapshot is being sent to another replica.
    pub(crate) fn is_sending(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Returns true if a snapshot is being received. No checkpoint begins meanwhile: the log holds
    /// the parts of one snapshot at a time, and the received one replaces the state.
    pub(crate) fn is_receiving(&self) -> bool {
        self.incoming.is_some()
    }

    pub(crate) fn is_taking_checkpoint(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// Returns the lowest timestamp that a snapshot is read at: versions visible there must be
    /// kept. [`Timestamp::MAX`] if no snapshot is being read.
    pub(crate) fn protected_ts(&self) -> Timestamp {
        let outgoing = self.outgoing.values().map(|outgoing| &outgoing.snapshot);
        let all = outgoing.chain(self.checkpoint.as_deref());
        let all = all.map(|snapshot| snapshot.reader.protected_ts());
        all.min().unwrap_or(Timestamp::MAX)
    }

    /// Starts a checkpoint.
    ///
    /// # Panics
    ///
    /// If a snapshot is being received: the log holds the parts of one snapshot at a time.
    pub(crate) fn begin_checkpoint(&mut self, snapshot: SnapshotInProgress) {
        assert!(self.incoming.is_none(), "a checkpoint begins while a snapshot arrives");
        self.checkpoint = Some(Box::new(snapshot));
    }

    /// Returns the next part of the checkpoint, or `None` if none is being taken.
    pub(crate) fn next_of_checkpoint(&mut self, state: &StateMachine) -> Option<SnapshotPart> {
        let snapshot = self.checkpoint.as_mut()?;
        let part = snapshot.next(state);
        if part.last {
            self.checkpoint = None;
        }
        Some(part)
    }

    /// Returns true if no snapshot is being sent to the replica.
    pub(crate) fn can_send_to(&self, to: PeerAddress) -> bool {
        !self.outgoing.contains_key(&to)
    }

    /// Starts sending a snapshot and returns its first message.
    pub(crate) fn send_to(
        &mut self,
        to: PeerAddress,
        head: SnapshotPart,
        snapshot: SnapshotInProgress,
        now_us: u64,
    ) -> SnapshotMessage {
        self.next_stream = self.next_stream.wrapping_add(1);
        let stream = self.next_stream;
        let in_flight = VecDeque::from([head.clone()]);
        let resend_due_us = now_us + RESEND_US;
        let outgoing = Sending { stream, snapshot, in_flight, resend_due_us, resends: 0 };
        self.outgoing.insert(to, outgoing);
        SnapshotMessage::Part { stream, part: head }
    }

    /// Handles the acknowledgement of the first `parts` parts. Returns the next parts to send.
    pub(crate) fn confirmed(
        &mut self,
        transfer: Transfer,
        parts: u32,
        state: &StateMachine,
        now_us: u64,
    ) -> Vec<SnapshotMessage> {
        let mut next = Vec::new();
        let (to, stream) = transfer;
        let outgoing = self.outgoing.get_mut(&to).filter(|outgoing| outgoing.stream == stream);
        let Some(outgoing) = outgoing else { return next };
        while outgoing.in_flight.pop_front_if(|part| part.part < parts).is_some() {
            outgoing.resends = 0;
            outgoing.resend_due_us = now_us + RESEND_US;
        }
        while outgoing.in_flight.len() < WINDOW_PARTS && !outgoing.snapshot.finished {
            let part = outgoing.snapshot.next(state);
            outgoing.in_flight.push_back(part.clone());
            next.push(SnapshotMessage::Part { stream, part });
        }
        next
    }

    /// Ends a transfer that its receiver has installed, or does not need. Returns the index up to
    /// which the snapshot reaches; `None` for an unknown transfer.
    pub(crate) fn installed(&mut self, transfer: Transfer) -> Option<u64> {
        let (to, stream) = transfer;
        self.outgoing.get(&to).filter(|outgoing| outgoing.stream == stream)?;
        Some(self.outgoing.remove(&to)?.snapshot.index)
    }

    /// Returns parts to resend, and drops transfers that made no progress for too long.
    pub(crate) fn tick(&mut self, now_us: u64) -> Vec<(PeerAddress, SnapshotMessage)> {
        let mut again = Vec::new();
        let is_late = |incoming: &Receiving| incoming.last_us + RECEIVE_US <= now_us;
        if self.incoming.as_deref().is_some_and(is_late) {
            self.incoming = None;
        }
        self.outgoing.retain(|to, outgoing| {
            if now_us < outgoing.resend_due_us {
                return true;
            }
            outgoing.resend_due_us = now_us + RESEND_US;
            outgoing.resends += 1;
            let stream = outgoing.stream;
            let parts = outgoing.in_flight.iter().cloned();
            again.extend(parts.map(|part| (*to, SnapshotMessage::Part { stream, part })));
            outgoing.resends < MAX_RESENDS
        });
        again
    }

    /// Handles a received part, at a replica that has committed all entries up to `commit_index`.
    pub(crate) fn arrived(
        &mut self,
        transfer: Transfer,
        part: &SnapshotPart,
        commit_index: u64,
        now_us: u64,
    ) -> Result<Arrived, WireError> {
        let (from, stream) = transfer;
        let received = |parts, done| SnapshotMessage::Received { stream, parts, done };
        if part.index <= commit_index {
            return Ok(Arrived::Known(received(0, true)));
        }
        let known = self.incoming.as_ref().is_some_and(|i| i.from == from && i.stream == stream);
        if !known {
            // The log holds the parts of one snapshot at a time. The sender repeats part 0 until
            // the checkpoint is complete.
            if part.part != 0 || self.checkpoint.is_some() {
                return Ok(Arrived::Ignored);
            }
            let builder = StateBuilder::new(self.range);
            self.incoming =
                Some(Box::new(Receiving { from, stream, next_part: 0, builder, last_us: now_us }));
        }
        let incoming = self.incoming.as_mut().expect("it is there, or was made just now");
        if part.part < incoming.next_part {
            return Ok(Arrived::Known(received(incoming.next_part, false)));
        }
        if part.part > incoming.next_part {
            return Ok(Arrived::Ignored);
        }
        if part.part > 0 {
            incoming.builder.push(part.payload.clone())?;
        }
        incoming.next_part += 1;
        incoming.last_us = now_us;
        let answer = received(incoming.next_part, part.last);
        let whole = if part.last { self.incoming.take() } else { None };
        let whole = whole.map(|incoming| incoming.builder.finish()).transpose()?;
        if whole.is_some() {
            // The state is replaced, so snapshots of the old state end.
            self.checkpoint = None;
            self.outgoing.clear();
        }
        Ok(Arrived::Next(answer, whole.map(Box::new)))
    }
}
