//! How much a shard may still write as its log fills up.
//!
//! A full log must empty itself: checkpoints release its head, and they need log themselves. So
//! clients may use only the *room*: what can be appended such that the log can still rewrite the
//! whole state, even if the node crashes once in the middle of a checkpoint and has to begin it
//! again. Each kind of write stops at its own reserve:
//!
//! ```text
//! room 64 MiB          16 MiB              12 MiB                            0
//! ──────┼─────────────────┼───────────────────┼──────────────────────────────┤
//!   commits are slowed  commits are         entries of peers are
//!   to what checkpoints rejected with       dropped, deletes rejected
//!   keep up with        `LogFull`
//!
//! left                                                     4 MiB             0
//! ───────────────────────────────────────────────────────────┼───────────────┤
//!                                                 checkpoints wait,      a write that does
//!                                                 unless small       not fit ends the process
//! ```
//!
//! The bytes that the runtime keeps free for one turn count neither as room nor as left. Reads and
//! rollbacks are always served.
//!
//! # The room
//!
//! With a capacity of 100, a state of 20, and a log of 60 whose head is pinned by one group with a
//! state of 5: rewriting everything needs 20 of the 40 that are left, so the room is 20. But if
//! that group rewrites its state (5), and the next group is pinned at 50 from the end, then 100 −
//! 50 − 5 − 20 = 25 are left beyond a whole rewrite, and 35 before it: the room is 25.

use palisade_wal::Position;
use palisade_wire::Operation;

/// Reserve of a node's log in bytes. All other limits are fractions or multiples of it.
pub const LOG_RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// The room is granted to commits over at least this many ticks.
const LEAST_TICKS: u64 = 32;

/// The limits that follow from the reserve of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogReserve(pub(crate) u64);

impl LogReserve {
    /// Limit on the log that one turn appends, in bytes. In a node, it covers the inputs, of which
    /// small ones take about twice their size with their headers, one last input of two megabytes,
    /// one part of a checkpoint, and the protocols' own records.
    pub(crate) const fn turn_bytes(self) -> u64 {
        self.0 / 16 * 7
    }

    /// Checkpoint bytes after which a turn writes no more checkpoint parts.
    pub(crate) const fn checkpoint_turn_bytes(self) -> u64 {
        self.0 / 32
    }

    /// Below this much room, commits are slowed.
    const fn slow_bytes(self) -> u64 {
        4 * self.0
    }

    /// Below this much room, entries and snapshot parts from peers are dropped, like lost messages.
    const fn peer_bytes(self) -> u64 {
        self.0 / 4 * 3
    }

    /// Below this much free log, checkpoints wait if they take more than half of what is free: the
    /// lowest limit, because only they free log.
    const fn checkpoint_bytes(self) -> u64 {
        self.0 / 4
    }
}

/// The extent of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSpace {
    /// The first position that is kept.
    pub first: Position,
    /// The end of the last record.
    pub end: Position,
    /// Bytes that can be appended before the log is full: up to its limit, or less on a full disk.
    pub left_bytes: u64,
    /// The configured limit. `u64::MAX` if there is none.
    pub limit_bytes: u64,
}

/// What it takes to rewrite the state, in bytes of log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSize {
    /// All groups together.
    pub(crate) total_bytes: u64,
    /// The largest group, at least.
    pub(crate) largest_bytes: u64,
}

impl StateSize {
    /// Changes the size of one group.
    pub(crate) fn replace(&mut self, before_bytes: u64, after_bytes: u64) {
        self.total_bytes = self.total_bytes - before_bytes + after_bytes;
        self.largest_bytes = self.largest_bytes.max(after_bytes);
    }

    /// Returns what must stay free: a whole rewrite, and one checkpoint that a crash interrupts.
    pub(crate) fn needed_bytes(self) -> u64 {
        self.total_bytes + self.largest_bytes
    }
}

/// A part of the state that must be rewritten before the log can be released beyond a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rewrite {
    /// The log is kept from here on until this part is rewritten.
    pub(crate) from: Position,
    /// What is still to be written. `u64::MAX` if no rewrite releases the log from there on.
    pub(crate) bytes: u64,
}

/// Bytes that may still be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRoom {
    /// Bytes that can be appended before the log is full.
    left_bytes: u64,
    /// Bytes that can be appended such that the log can still rewrite the whole state.
    room_bytes: u64,
    /// Bytes of checkpoints that must be written until that much is free.
    rewrite_bytes: u64,
    /// How much more room there is after that than at once.
    gained_bytes: u64,
    /// By how much the state, counted up to four times, is too large to grow.
    excess_bytes: u64,
}

/// Whether commits may write values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// They may.
    Accepted,
    /// Not until entries are applied, which count as if each added to the state.
    Later,
    /// The state is too large.
    Refused,
}

impl Default for LogRoom {
    /// Returns the room of a log without a limit.
    fn default() -> Self {
        let (left_bytes, room_bytes) = (u64::MAX, u64::MAX);
        Self { left_bytes, room_bytes, rewrite_bytes: 0, gained_bytes: 0, excess_bytes: 0 }
    }
}

impl LogRoom {
    /// Returns the room if nothing is rewritten first.
    pub(crate) fn at_once(space: LogSpace, state: StateSize, reserve: LogReserve) -> Self {
        let left_bytes = space.left_bytes.saturating_sub(reserve.turn_bytes());
        // The log holds the state, and as much is for new writes until it is rewritten.
        let usable_bytes = space.limit_bytes.saturating_sub(reserve.0 + reserve.turn_bytes());
        let grown_bytes = state.needed_bytes().saturating_add(2 * state.total_bytes);
        Self {
            left_bytes,
            room_bytes: left_bytes.saturating_sub(state.needed_bytes()),
            rewrite_bytes: 0,
            gained_bytes: 0,
            excess_bytes: grown_bytes.saturating_add(1).saturating_sub(usable_bytes),
        }
    }

    /// Returns the room if the best beginning of the log is released first, by rewriting what is
    /// kept there. `rewrites` are all parts of the state.
    pub(crate) fn after_rewrites(
        space: LogSpace,
        state: StateSize,
        mut rewrites: Vec<Rewrite>,
        reserve: LogReserve,
    ) -> Self {
        let at_once = Self::at_once(space, state, reserve);
        let capacity_bytes = (space.end - space.first).saturating_add(at_once.left_bytes);
        rewrites.sort_unstable();
        let mut best = at_once;
        let mut rewritten_bytes = 0u64;
        let mut froms = rewrites.iter().skip(1).map(|rewrite| rewrite.from);
        for Rewrite { bytes, .. } in &rewrites {
            rewritten_bytes = rewritten_bytes.saturating_add(*bytes);
            // Once all parts up to this one are rewritten, the log begins at the next one.
            let kept_bytes = space.end - froms.next().unwrap_or(space.end).min(space.end);
            let before_bytes = at_once.left_bytes.saturating_sub(rewritten_bytes);
            let before_bytes = before_bytes.saturating_sub(state.largest_bytes);
            let after_bytes = capacity_bytes
                .saturating_sub(kept_bytes)
                .saturating_sub(rewritten_bytes)
                .saturating_sub(state.needed_bytes());
            let room_bytes = before_bytes.min(after_bytes);
            if room_bytes > best.room_bytes {
                let gained_bytes = room_bytes - at_once.room_bytes;
                best = Self { room_bytes, rewrite_bytes: rewritten_bytes, gained_bytes, ..best };
            }
        }
        best
    }

    /// Returns the room after `bytes` were appended, which may have grown the state as well.
    pub(crate) fn without(self, bytes: u64) -> Self {
        Self {
            left_bytes: self.left_bytes.saturating_sub(bytes),
            room_bytes: self.room_bytes.saturating_sub(bytes.saturating_mul(2)),
            ..self
        }
    }

    /// Returns the bytes that can be appended before the log is full.
    pub fn left_bytes(self) -> u64 {
        self.left_bytes
    }

    /// Returns true if rewriting what is kept at the beginning of the log makes much room.
    pub(crate) fn gains_by_rewrite(self, reserve: LogReserve) -> bool {
        self.gained_bytes > reserve.0 / 2
    }

    /// Returns true if commits are slowed.
    pub(crate) fn is_slow(self, reserve: LogReserve) -> bool {
        self.room_bytes < reserve.slow_bytes()
    }

    /// Returns how many bytes commits may write until the next tick: as much as leaves room until
    /// the rewrite is done. `None` if there is no limit.
    pub(crate) fn allowance_bytes(self, reserve: LogReserve) -> Option<u64> {
        if !self.is_slow(reserve) {
            return None;
        }
        // Halved, because each byte may also grow the state.
        let spare_bytes = self.room_bytes.saturating_sub(reserve.0) / 2;
        let ticks = self.rewrite_bytes.div_ceil(reserve.checkpoint_turn_bytes().max(1));
        let ticks = ticks.max(LEAST_TICKS);
        Some(spare_bytes / ticks)
    }

    /// Returns true if a client's operation is accepted at all.
    pub(crate) fn accepts(self, operation: &Operation, reserve: LogReserve) -> bool {
        match operation {
            Operation::Get { .. } | Operation::Scan { .. } | Operation::Rollback { .. } => true,
            // Only deletes make the state smaller.
            Operation::Commit { request, .. } if !request.commit.writes_values() => {
                self.room_bytes >= reserve.peer_bytes()
            }
            _ => self.room_bytes >= reserve.0,
        }
    }

    /// Returns true if writes that peers request are accepted.
    pub(crate) fn accepts_peers(self, reserve: LogReserve) -> bool {
        self.room_bytes >= reserve.peer_bytes()
    }

    /// Returns true if a checkpoint may be written of which `bytes` are left.
    pub(crate) fn accepts_checkpoint(self, bytes: u64, reserve: LogReserve) -> bool {
        self.left_bytes >= reserve.checkpoint_bytes() || bytes <= self.left_bytes / 2
    }

    /// Returns whether the state may grow, of which `unapplied_bytes` are entries.
    pub(crate) fn growth(self, unapplied_bytes: impl FnOnce() -> u64) -> Growth {
        if self.excess_bytes == 0 {
            Growth::Accepted
        } else if self.excess_bytes <= unapplied_bytes().saturating_mul(3) {
            Growth::Later
        } else {
            Growth::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVE: LogReserve = LogReserve(0);

    fn space(kept: u64, left_bytes: u64) -> LogSpace {
        LogSpace { first: 1_000, end: 1_000 + kept, left_bytes, limit_bytes: kept + left_bytes }
    }

    fn rewrite(from: Position, bytes: u64) -> Rewrite {
        Rewrite { from: 1_000 + from, bytes }
    }

    fn state(total_bytes: u64) -> StateSize {
        StateSize { total_bytes, largest_bytes: 0 }
    }

    fn room(space: LogSpace, state_bytes: u64, rewrites: &[Rewrite]) -> (u64, u64) {
        let size = state(state_bytes);
        let room = LogRoom::after_rewrites(space, size, rewrites.to_vec(), RESERVE);
        (room.room_bytes, room.rewrite_bytes)
    }

    #[test]
    fn room_leaves_space_to_rewrite_whole_state() {
        assert_eq!(LogRoom::at_once(space(60, 40), state(20), RESERVE).room_bytes, 20);
        assert_eq!(LogRoom::at_once(space(60, 10), state(20), RESERVE).room_bytes, 0);
        let interrupted = StateSize { largest_bytes: 15, ..state(20) };
        assert_eq!(LogRoom::at_once(space(60, 40), interrupted, RESERVE).room_bytes, 5);
    }

    #[test]
    fn state_of_one_group_grows_up_to_a_quarter_of_the_limit() {
        let grows = |total_bytes, largest_bytes| {
            let size = StateSize { total_bytes, largest_bytes };
            LogRoom::at_once(space(500, 500), size, RESERVE).growth(|| 0) == Growth::Accepted
        };
        assert!(grows(249, 249) && !grows(250, 250));
        assert!(grows(320, 30) && !grows(333, 30));
    }

    #[test]
    fn room_counts_what_a_small_rewrite_releases() {
        // The example of the module: the second group is pinned at 50 from the end.
        let parts = [rewrite(0, 5), rewrite(10, 15)];
        assert_eq!(room(space(60, 40), 20, &parts), (25, 5));
        // A large group at the head: it is cheaper to rewrite everything at once.
        assert_eq!(room(space(60, 40), 20, &[rewrite(0, 20), rewrite(59, 0)]), (20, 0));
    }

    #[test]
    fn room_of_rewrite_in_progress_counts_what_is_left_of_it() {
        // 15 of 20 are written. The rest fits, and then 45 are kept of the log.
        let parts = [rewrite(0, 5), rewrite(25, 20)];
        assert_eq!(room(space(60, 20), 20, &parts), (15, 5));
    }

    #[test]
    fn allowance_lasts_until_rewrite_is_done() {
        let reserve = LogReserve(32_000);
        let room = LogRoom { left_bytes: 200_000, rewrite_bytes: 50_000, ..LogRoom::default() };
        let slow = LogRoom { room_bytes: 52_000, ..room };
        assert_eq!(slow.allowance_bytes(reserve), Some(200));
        assert_eq!(LogRoom { rewrite_bytes: 0, ..slow }.allowance_bytes(reserve), Some(312));
        assert_eq!(LogRoom { room_bytes: 32_000, ..room }.allowance_bytes(reserve), Some(0));
        assert_eq!(LogRoom { room_bytes: 128_000, ..room }.allowance_bytes(reserve), None);
    }
}
