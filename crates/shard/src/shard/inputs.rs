//! Takes the inputs of a turn, as far as its work allows.

use palisade_clock::Now;
use palisade_wire::{Outcome, Rejection, Response};

use super::Shard;
use crate::{
    inbox::{Inbox, Taken},
    turn::Input,
};

/// Limit on the inputs of one turn, in bytes. The last input may exceed it, by at most one frame of
/// the largest size.
pub(crate) const TURN_INPUT_BYTES: u64 = 1024 * 1024;

/// Part of [`TURN_INPUT_BYTES`] that messages may take, so that requests get a share.
const MESSAGE_BYTES: u64 = TURN_INPUT_BYTES / 4 * 3;

/// Committed entries at which no further messages are taken until some are applied.
const MAX_BACKLOG: usize = 4 * 1024;

/// Limit on the inquiries of one turn.
const INQUIRIES: usize = 64;

impl Shard {
    /// Processes the inputs of a turn. Those that a turn has no time for stay in the inbox.
    pub(crate) fn take_inputs(&mut self, inbox: &mut Inbox, now: Now) {
        inbox.begin_turn(now.monotonic_us);
        // Before the tick, which suspects peers without a recent heartbeat.
        while let Some(heartbeat) = inbox.next_heartbeat() {
            self.work.input(0);
            self.step(heartbeat, now);
        }
        while let Some(input) = inbox.next_urgent() {
            self.step(input, now);
        }
        let mut taken_bytes = 0;
        while taken_bytes < MESSAGE_BYTES
            && self.backlog < MAX_BACKLOG
            && self.work.is_left_for_messages()
            && let Some((message, bytes)) = inbox.next_message()
        {
            taken_bytes += bytes;
            self.work.input(bytes);
            self.step(message, now);
        }
        for (connection, request) in (0..INQUIRIES).map_while(|_| inbox.next_inquiry()) {
            // A status lists all replicas, and a range map all ranges.
            self.work.keys(self.replicas.len(), 0);
            self.step(Input::Request { connection, request }, now);
        }
        // While reads are owed, further requests wait in the inbox, where their age is limited.
        while !self.owes_reads
            && taken_bytes < TURN_INPUT_BYTES
            && self.work.is_left_for_requests()
            && let Some((taken, bytes)) = inbox.next_request(now.monotonic_us)
        {
            self.requests += 1;
            self.metrics.queue.record(now.monotonic_us.saturating_sub(taken.since_us));
            if taken.is_late {
                self.work.input(0);
                self.reject_late(&taken);
                continue;
            }
            taken_bytes += bytes;
            self.work.input(bytes);
            let Taken { connection, request, since_us, .. } = taken;
            self.client_request(connection, since_us, request, now);
        }
        self.inputs_wait = !inbox.is_empty();
    }

    /// Rejects a request that has waited for too long: the shard is overloaded.
    fn reject_late(&mut self, taken: &Taken) {
        let outcome = Outcome::Rejected(Rejection::Overloaded);
        let response = Response { request_id: taken.request.request_id, outcome };
        self.effects.replies.push((taken.connection, response));
    }
}
