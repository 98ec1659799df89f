//! The lock table of a leader: strict two-phase locking with wound-wait.
//!
//! The problem: an interactive transaction must not see the partial effects of another one. The
//! naive way, locks that are granted in the order of the requests, deadlocks when two transactions
//! want each other's locks. The cost of a search for cycles grows with the number of waiting
//! requests.
//!
//! Wound-wait (Rosenkrantz, Stearns, Lewis 1978): each transaction has a priority, the time of its
//! first start, which it keeps over retries. A request waits if an older transaction holds a
//! conflicting lock. Otherwise the younger holders lose all their locks: they are "wounded". Waits
//! lead only from younger to older, so there are no cycles. The oldest transaction is never blocked
//! or wounded by others, so every transaction gets its locks in the end.
//!
//! A request is granted all of its locks at once, or none. It also waits for conflicting older
//! requests, or a stream of readers could keep a writer out for ever. Each waiting request is
//! queued behind exactly one [`Obstacle`], so the end of an obstacle wakes few requests.
//!
//! Locks live in the leader's memory and end with its leadership. A transaction presents the token
//! that came with its first lock. If the leader's table does not know the token, the locks are
//! lost.
//!
//! Left out: locks of prepared transactions, which cannot be wounded.

use std::collections::{BTreeMap, VecDeque};

use palisade_clock::Timestamp;
use palisade_wire::{LockClaim, LockGrant, LockToken, TxnId};

use crate::{
    lock_request::{LockError, LockEvent, LockRequest, Priority},
    lock_spans::{Hold, LockSpans, Span, conflict},
};

/// Limit on registered transactions.
const MAX_OWNERS: usize = 16 * 1024;

/// Limit on waiting requests.
const MAX_WAITING: usize = 16 * 1024;

/// Limit on the locks of one transaction: those it holds, and those of a new request.
const MAX_LOCKS: usize = 16 * 1024;

/// Limit on the locks of all transactions, held or waited for.
const MAX_LOCKS_OF_ALL: usize = 256 * 1024;

/// A transaction without a request for this long, in microseconds, loses its locks. Its client may
/// be dead.
pub const IDLE_US: u64 = 5_000_000;

/// The locks of a range: their owners, and the requests that wait.
#[derive(Debug)]
pub struct LockTable {
    owners: BTreeMap<TxnId, Owner>,
    spans: LockSpans,
    waiting: BTreeMap<Place, Waiting>,
    /// The requests that wait behind each obstacle.
    behind: BTreeMap<Obstacle, Vec<Place>>,
    events: VecDeque<(u64, LockEvent)>,
    /// The term or epoch in which locks are granted.
    term: u64,
    next_number: u64,
    /// The number of locks held or waited for.
    locks: usize,
    /// The time of the last call of `enter` or `expire`.
    now_us: u64,
}

/// The order of waiting requests: by age, then by ticket.
type Place = (Priority, u64);

#[derive(Debug)]
struct Owner {
    token: LockToken,
    priority: Priority,
    locks: Vec<Span>,
    /// Tickets of its waiting requests that keep their locks.
    waiting: Vec<u64>,
    idle_since_us: u64,
}

#[derive(Debug)]
struct Waiting {
    request: LockRequest,
    behind: Obstacle,
}

/// The one thing that a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// The locks of an older transaction.
    Owner(TxnId),
    /// An older waiting request.
    Ticket(u64),
}

impl LockTable {
    /// Creates a table without locks. Tokens are numbered from `first_number` on, which should be
    /// random: a chain's head that restarts within its epoch must not accept a token from before.
    pub fn new(first_number: u64) -> Self {
        Self {
            owners: BTreeMap::new(),
            spans: LockSpans::default(),
            waiting: BTreeMap::new(),
            behind: BTreeMap::new(),
            events: VecDeque::new(),
            term: 0,
            next_number: first_number,
            locks: 0,
            now_us: 0,
        }
    }

    /// Returns true if there are no transactions, no waiting requests and no events.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.waiting.is_empty() && self.events.is_empty()
    }

    /// Registers a transaction, or checks the token of a registered one and restarts its idle time.
    /// A new transaction's priority is the `start_ts` of its claim, or `fresh_ts` if it has none.
    ///
    /// # Errors
    ///
    /// - [`LockError::Lost`] if the claim has a token that the table does not know. Not retryable.
    /// - [`LockError::Full`] if too many transactions are registered. Retryable.
    pub fn enter(
        &mut self,
        claim: LockClaim,
        fresh_ts: Timestamp,
        now_us: u64,
    ) -> Result<LockGrant, LockError> {
        let LockClaim { owner: txn, start_ts, token } = claim;
        self.now_us = now_us;
        if let Some(owner) = self.owners.get_mut(&txn) {
            if token.is_some_and(|token| token != owner.token) {
                return Err(LockError::Lost);
            }
            owner.idle_since_us = now_us;
            return Ok(LockGrant { start_ts: owner.priority.start_ts, token: owner.token });
        }
        if token.is_some() {
            return Err(LockError::Lost);
        }
        if self.owners.len() >= MAX_OWNERS {
            return Err(LockError::Full);
        }
        let start_ts = start_ts.unwrap_or(fresh_ts);
        let token = LockToken { term: self.term, number: self.next_number };
        self.next_number = self.next_number.wrapping_add(1);
        let owner = Owner {
            token,
            priority: Priority { start_ts, txn },
            locks: Vec::new(),
            waiting: Vec::new(),
            idle_since_us: now_us,
        };
        self.owners.insert(txn, owner);
        Ok(LockGrant { start_ts, token })
    }

    /// Returns true if a transaction still has all the locks that it was granted under `token`.
    pub fn is_held(&self, txn: TxnId, token: LockToken) -> bool {
        self.owners.get(&txn).is_some_and(|owner| owner.token == token)
    }

    /// Requests locks. Returns true if they are granted at once; the caller acts on that before it
    /// takes events. Returns false if the request waits; an event then reports its end. In both
    /// cases there may be events of other requests.
    ///
    /// # Errors
    ///
    /// [`LockError::Full`] if the transaction or the table has too many locks, or if too many
    /// requests wait. Retryable.
    ///
    /// # Panics
    ///
    /// If the request keeps its locks and its transaction is not registered or has another
    /// priority.
    pub fn request(&mut self, mut request: LockRequest) -> Result<bool, LockError> {
        request.wants.sort_unstable_by(|(one, _), (other, _)| one.begin.cmp(&other.begin));
        if request.keeps {
            let owner = self.owners.get(&request.priority.txn);
            let owner = owner.expect("an owner of locks is registered");
            assert_eq!(
                owner.priority, request.priority,
                "a priority changes only with a new start"
            );
            if owner.locks.len() + request.wants.len() > MAX_LOCKS {
                return Err(LockError::Full);
            }
        }
        if self.locks + request.wants.len() > MAX_LOCKS_OF_ALL {
            return Err(LockError::Full);
        }
        match self.older_obstacle(&request) {
            None => {
                let mut gone = VecDeque::new();
                self.grant(&request, &mut gone);
                self.wake(gone);
                Ok(true)
            }
            Some(_) if self.waiting.len() >= MAX_WAITING => Err(LockError::Full),
            Some(obstacle) => {
                self.wait(request, obstacle);
                Ok(false)
            }
        }
    }

    /// Releases all locks of a transaction. Its waiting requests end as [`LockEvent::Wounded`].
    pub fn release(&mut self, txn: TxnId) {
        let mut gone = VecDeque::new();
        self.remove(txn, &mut gone);
        self.wake(gone);
    }

    /// Takes the next event: the ticket of a request that had to wait, and how it ended. The caller
    /// must act on all events before the next request.
    pub fn next_event(&mut self) -> Option<(u64, LockEvent)> {
        self.events.pop_front()
    }

    /// Grants locks in this term or epoch from now on.
    ///
    /// # Panics
    ///
    /// If the table is not empty.
    pub fn begin_term(&mut self, term: u64) {
        assert!(self.is_empty(), "locks of term {} are held when term {term} begins", self.term);
        self.term = term;
    }

    /// Drops all locks and requests, without events.
    pub fn end_term(&mut self) {
        *self = Self::new(self.next_number);
    }

    /// Ends waiting requests whose deadline has passed, and transactions that were idle for
    /// [`IDLE_US`]. `now_us` is the monotonic clock in microseconds.
    pub fn expire(&mut self, now_us: u64) {
        self.now_us = now_us;
        let late = self.waiting.iter().filter(|(_, waiting)| waiting.request.deadline_us <= now_us);
        let mut gone = VecDeque::new();
        for place in late.map(|(place, _)| *place).collect::<Vec<_>>() {
            self.leave(place, &mut gone);
            self.events.push_back((place.1, LockEvent::TimedOut));
        }
        let is_idle =
            |owner: &Owner| owner.waiting.is_empty() && owner.idle_since_us + IDLE_US <= now_us;
        let idle = self.owners.iter().filter(|(_, owner)| is_idle(owner));
        for txn in idle.map(|(txn, _)| *txn).collect::<Vec<_>>() {
            self.remove(txn, &mut gone);
        }
        self.wake(gone);
    }

    /// Returns an older request or an older owner that a request must wait for, if there is one.
    fn older_obstacle(&self, request: &LockRequest) -> Option<Obstacle> {
        let LockRequest { ticket, priority, keeps, wants, .. } = request;
        let older = self.waiting.range(..(*priority, *ticket)).rev();
        for ((other, ticket), waiting) in older {
            let same = *keeps && waiting.request.keeps && other.txn == priority.txn;
            if !same && conflict(wants, &waiting.request.wants) {
                return Some(Obstacle::Ticket(*ticket));
            }
        }
        let mut holders = self.conflicting(request);
        holders.find(|txn| self.owners[txn].priority < *priority).map(Obstacle::Owner)
    }

    /// Returns the owners of locks that conflict with a request. An owner may be returned several
    /// times.
    fn conflicting(&self, request: &LockRequest) -> impl Iterator<Item = TxnId> {
        let LockRequest { priority, keeps, wants, .. } = request;
        wants.iter().flat_map(move |(span, strength)| {
            let holders = self.spans.holders(span);
            let others = holders.filter(move |hold| {
                let same = *keeps && hold.owner == priority.txn;
                !same && hold.strength.conflicts(*strength)
            });
            others.map(|hold| hold.owner)
        })
    }

    /// Grants a request that has no older obstacle. Wounds the younger owners that conflict with
    /// it.
    fn grant(&mut self, request: &LockRequest, gone: &mut VecDeque<Obstacle>) {
        for txn in self.conflicting(request).collect::<Vec<_>>() {
            self.remove(txn, gone);
        }
        if request.keeps {
            let txn = request.priority.txn;
            for (span, strength) in &request.wants {
                self.spans.hold(span, Hold { owner: txn, strength: *strength });
            }
            let locks = request.wants.iter().map(|(span, _)| span.clone());
            self.owners.get_mut(&txn).expect("it keeps locks").locks.extend(locks);
            self.locks += request.wants.len();
        }
    }

    fn wait(&mut self, request: LockRequest, behind: Obstacle) {
        let place = (request.priority, request.ticket);
        if request.keeps {
            let owner = self.owners.get_mut(&request.priority.txn).expect("it keeps locks");
            owner.waiting.push(request.ticket);
        }
        self.behind.entry(behind).or_default().push(place);
        self.locks += request.wants.len();
        let before = self.waiting.insert(place, Waiting { request, behind });
        assert!(before.is_none(), "{place:?} waits twice");
    }

    /// Removes a request that waits.
    fn leave(&mut self, place: Place, gone: &mut VecDeque<Obstacle>) {
        let (priority, ticket) = place;
        let waiting = self.waiting.remove(&place).expect("the place belongs to a waiter");
        let behind = waiting.behind;
        self.locks -= waiting.request.wants.len();
        if let Some(others) = self.behind.get_mut(&behind) {
            others.retain(|other| *other != place);
            if others.is_empty() {
                self.behind.remove(&behind);
            }
        }
        if let Some(owner) = self.owners.get_mut(&priority.txn) {
            owner.waiting.retain(|other| *other != ticket);
            owner.idle_since_us = self.now_us;
        }
        gone.push_back(Obstacle::Ticket(ticket));
    }

    fn remove(&mut self, txn: TxnId, gone: &mut VecDeque<Obstacle>) {
        let Some(owner) = self.owners.remove(&txn) else { return };
        for span in &owner.locks {
            self.spans.release(span, txn);
        }
        self.locks -= owner.locks.len();
        for ticket in owner.waiting {
            self.leave((owner.priority, ticket), gone);
            self.events.push_back((ticket, LockEvent::Wounded));
        }
        gone.push_back(Obstacle::Owner(txn));
    }

    /// Reconsiders the requests that waited behind the obstacles in `gone`, the oldest first.
    fn wake(&mut self, mut gone: VecDeque<Obstacle>) {
        while let Some(obstacle) = gone.pop_front() {
            let mut places = self.behind.remove(&obstacle).unwrap_or_default();
            places.sort_unstable();
            for place in places {
                // A request granted earlier in this loop may have wounded this one.
                let Some(mut waiting) = self.waiting.remove(&place) else { continue };
                match self.older_obstacle(&waiting.request) {
                    Some(behind) => {
                        self.behind.entry(behind).or_default().push(place);
                        waiting.behind = behind;
                        self.waiting.insert(place, waiting);
                    }
                    None => {
                        // Granted before the requests behind the owners that it wounds are
                        // reconsidered.
                        self.locks -= waiting.request.wants.len();
                        self.grant(&waiting.request, &mut gone);
                        if let Some(owner) = self.owners.get_mut(&place.0.txn) {
                            owner.waiting.retain(|other| *other != place.1);
                            owner.idle_since_us = self.now_us;
                        }
                        self.events.push_back((place.1, LockEvent::Granted));
                        gone.push_back(Obstacle::Ticket(place.1));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use palisade_wire::SessionId;

    use super::*;
    use crate::lock_spans::Strength::{self, Exclusive, Shared};

    fn txn(number: u64) -> TxnId {
        TxnId { session: SessionId(number), sequence: 1 }
    }

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    fn token(number: u64) -> LockToken {
        LockToken { term: 0, number }
    }

    /// A lock table with transactions that start at their numbers, and tickets that count up.
    struct Desk {
        table: LockTable,
        tickets: u64,
        now_us: u64,
    }

    impl Desk {
        fn new() -> Self {
            Self { table: LockTable::new(70), tickets: 0, now_us: 0 }
        }

        fn claim(number: u64) -> LockClaim {
            LockClaim { owner: txn(number), start_ts: None, token: None }
        }

        fn ask(&mut self, number: u64, keeps: bool, wants: Vec<(Span, Strength)>) -> (u64, bool) {
            let mut priority = Priority { start_ts: ts(number), txn: txn(number) };
            if keeps {
                let grant = self.table.enter(Self::claim(number), ts(number), self.now_us).unwrap();
                priority.start_ts = grant.start_ts;
            }
            self.tickets += 1;
            let (ticket, deadline_us) = (self.tickets, self.now_us + 1_000);
            let request = LockRequest { ticket, priority, keeps, wants, deadline_us };
            (ticket, self.table.request(request).unwrap())
        }

        fn lock(&mut self, number: u64, key: &[u8], strength: Strength) -> (u64, bool) {
            self.ask(number, true, vec![(Span::key(key), strength)])
        }

        fn events(&mut self) -> Vec<(u64, LockEvent)> {
            std::iter::from_fn(|| self.table.next_event()).collect()
        }

        fn holds(&self, number: u64) -> bool {
            self.table.owners.contains_key(&txn(number))
        }
    }

    #[test]
    fn shared_locks_coexist_and_block_younger_writer() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Shared).1 && desk.lock(2, b"k", Shared).1);
        let (ticket, granted) = desk.lock(3, b"k", Exclusive);
        assert!(!granted && desk.lock(3, b"other", Exclusive).1);
        desk.table.release(txn(1));
        assert_eq!(desk.events(), []);
        desk.table.release(txn(2));
        assert_eq!(desk.events(), [(ticket, LockEvent::Granted)]);
    }

    #[test]
    fn older_transaction_wounds_younger_holder() {
        let mut desk = Desk::new();
        assert!(desk.lock(5, b"k", Exclusive).1);
        assert!(desk.lock(1, b"other", Exclusive).1);
        let (waits, granted) = desk.lock(5, b"other", Shared);
        assert!(!granted);
        assert!(desk.lock(2, b"k", Shared).1);
        assert_eq!(desk.events(), [(waits, LockEvent::Wounded)]);
        assert!(!desk.holds(5) && !desk.table.is_held(txn(5), token(70)));
        // Its old token is refused. Without a token it registers again, and gets a new one.
        let claim = LockClaim { token: Some(token(70)), ..Desk::claim(5) };
        assert_eq!(desk.table.enter(claim, ts(9), 0), Err(LockError::Lost));
        let claim = LockClaim { start_ts: Some(ts(5)), ..Desk::claim(5) };
        let again = desk.table.enter(claim, ts(9), 0).unwrap();
        assert_eq!((again.start_ts, again.token), (ts(5), token(73)));
    }

    #[test]
    fn token_is_valid_only_in_its_term() {
        let mut desk = Desk::new();
        desk.table.begin_term(3);
        let before = desk.table.enter(Desk::claim(1), ts(1), 0).unwrap();
        desk.table.end_term();
        desk.table.begin_term(4);
        let claim = Desk::claim(1).granted(before);
        assert_eq!(desk.table.enter(claim, ts(9), 0), Err(LockError::Lost));
        // A token with the same number and another term is not valid.
        let after = desk.table.enter(Desk::claim(1), ts(1), 0).unwrap();
        let token = LockToken { term: 3, ..after.token };
        assert!(!desk.table.is_held(txn(1), token) && desk.table.is_held(txn(1), after.token));
    }

    /// Two readers of a key that both upgrade to a write do not deadlock: the younger is wounded.
    #[test]
    fn upgrade_conflict_wounds_younger_reader() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Shared).1 && desk.lock(2, b"k", Shared).1);
        let (younger, granted) = desk.lock(2, b"k", Exclusive);
        assert!(!granted && desk.lock(1, b"k", Exclusive).1);
        assert_eq!(desk.events(), [(younger, LockEvent::Wounded)]);
    }

    #[test]
    fn span_lock_blocks_phantoms_but_not_adjacent_keys() {
        let mut desk = Desk::new();
        let span = Span { begin: "b".into(), end: Some("d".into()) };
        assert!(desk.ask(1, true, vec![(span, Shared)]).1);
        for (key, free) in [("a", true), ("b", false), ("bb", false), ("d", true)] {
            assert_eq!(desk.ask(9, false, vec![(Span::key(key.as_bytes()), Exclusive)]).1, free);
        }
        assert!(desk.lock(2, b"c", Shared).1);
        // A span without an end.
        assert!(!desk.ask(3, true, vec![(Span { begin: "c".into(), end: None }, Exclusive)]).1);
        assert!(desk.ask(0, true, vec![(Span { begin: "c".into(), end: None }, Exclusive)]).1);
        assert!(!desk.holds(1) && !desk.holds(2));
    }

    #[test]
    fn reader_does_not_overtake_older_waiting_writer() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Shared).1);
        let (writer, _) = desk.ask(2, false, vec![(Span::key(b"k"), Exclusive)]);
        let (reader, granted) = desk.lock(3, b"k", Shared);
        assert!(!granted);
        desk.table.release(txn(1));
        // The writer keeps no locks, so the reader is granted right after it.
        assert_eq!(desk.events(), [(writer, LockEvent::Granted), (reader, LockEvent::Granted)]);
    }

    #[test]
    fn wait_timeout_denies_lock_and_idle_timeout_releases_all() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Exclusive).1);
        assert!(desk.lock(2, b"own", Exclusive).1);
        let (ticket, _) = desk.lock(2, b"k", Exclusive);
        desk.table.expire(999);
        assert_eq!(desk.events(), []);
        desk.table.expire(1_000);
        assert_eq!(desk.events(), [(ticket, LockEvent::TimedOut)]);
        desk.table.release(txn(1));
        assert!(desk.events().is_empty() && desk.lock(3, b"k", Exclusive).1);
        assert!(desk.holds(2));
        desk.table.expire(IDLE_US + 999);
        assert!(desk.holds(2) && !desk.holds(3));
        desk.table.expire(IDLE_US + 1_000);
        assert!(desk.table.is_empty() && desk.table.spans.is_empty());
    }

    /// The idle time restarts when a request stops waiting.
    #[test]
    fn idle_time_restarts_when_wait_ends() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Exclusive).1);
        let (ticket, _) = desk.lock(2, b"k", Exclusive);
        desk.table.expire(900);
        desk.table.release(txn(1));
        assert_eq!(desk.events(), [(ticket, LockEvent::Granted)]);
        desk.table.expire(IDLE_US + 899);
        assert!(desk.holds(2));
        desk.table.expire(IDLE_US + 900);
        assert!(!desk.holds(2));
    }

    /// Compares the table with a list of all grants. No grants conflict, no request is forgotten,
    /// the oldest transaction is never wounded, and a table whose transactions have ended is empty.
    #[test]
    fn random_requests_cause_no_conflict_deadlock_or_lost_wake() {
        for seed in 0..400 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut desk = Desk::new();
            let mut granted: Vec<(u64, Span, Strength)> = Vec::new();
            let mut asked = BTreeMap::new();
            let owners = random.u64(2..12);
            for _ in 0..200 {
                let number = random.u64(0..owners);
                let oldest = desk.table.owners.values().map(|owner| owner.priority).min();
                let released = random.u8(0..5) == 0;
                if released {
                    desk.table.release(txn(number));
                } else if random.u8(0..20) == 0 {
                    desk.now_us += random.u64(0..2_000);
                    desk.table.expire(desk.now_us);
                } else {
                    let keeps = random.u8(0..4) > 0;
                    let number = if keeps { number } else { random.u64(0..20) + 100 };
                    let wants: Vec<_> =
                        (0..random.usize(1..4)).map(|_| draw_want(&mut random)).collect();
                    let (ticket, at_once) = desk.ask(number, keeps, wants.clone());
                    if at_once && keeps {
                        granted.extend(wants.into_iter().map(|(span, s)| (number, span, s)));
                    } else if !at_once {
                        asked.insert(ticket, (number, keeps, wants));
                    }
                }
                for (ticket, event) in desk.events() {
                    let (number, keeps, wants): (_, _, Vec<_>) =
                        asked.remove(&ticket).expect("it waited");
                    if event == LockEvent::Granted && keeps {
                        granted.extend(wants.into_iter().map(|(span, s)| (number, span, s)));
                    }
                }
                granted.retain(|(number, ..)| desk.holds(*number));
                check(&desk.table, &granted, asked.len());
                if let Some(oldest) = oldest.filter(|_| !released && desk.now_us < IDLE_US) {
                    let now = desk.table.owners.values().map(|owner| owner.priority).min();
                    assert!(now.is_some_and(|now| now <= oldest), "seed {seed}: {oldest:?}");
                }
            }
            for number in 0..owners {
                desk.table.release(txn(number));
            }
            desk.events();
            assert!(desk.table.is_empty() && desk.table.spans.is_empty(), "seed {seed}");
            assert!(desk.table.behind.is_empty() && desk.table.waiting.is_empty(), "seed {seed}");
        }
    }

    fn draw_want(random: &mut fastrand::Rng) -> (Span, Strength) {
        let strength = if random.bool() { Shared } else { Exclusive };
        let (one, other) = (random.u8(0..8), random.u8(0..8));
        let key = |at: u8| bytes::Bytes::copy_from_slice(&[at]);
        let span = match random.u8(0..4) {
            0 if one < other => Span { begin: key(one), end: Some(key(other)) },
            1 => Span { begin: key(one), end: None },
            _ => Span::key(&[one]),
        };
        (span, strength)
    }

    fn check(table: &LockTable, granted: &[(u64, Span, Strength)], waiting: usize) {
        for (at, (one, span, strength)) in granted.iter().enumerate() {
            for (other, with, held) in &granted[..at] {
                let (this, that) = ((span.clone(), *strength), (with.clone(), *held));
                let both = one != other && conflict(&[this], &[that]);
                assert!(!both, "{one} and {other} both have {span:?}");
            }
            let mut holders = table.spans.holders(span);
            assert!(holders.any(|hold| hold.owner == txn(*one) && hold.strength >= *strength));
        }
        assert_eq!(table.waiting.len(), waiting);
        let wanted = table.waiting.values().map(|waiting| waiting.request.wants.len());
        assert_eq!(table.locks, granted.len() + wanted.sum::<usize>());
        for (place, Waiting { request, behind }) in &table.waiting {
            assert!(table.older_obstacle(request).is_some(), "{request:?} waits for nothing");
            assert!(table.behind[behind].contains(place));
            match behind {
                Obstacle::Owner(txn) => assert!(table.owners[txn].priority < request.priority),
                Obstacle::Ticket(ticket) => {
                    let mut before = table.waiting.range(..place).map(|((_, ticket), _)| ticket);
                    assert!(
                        before.any(|before| before == ticket),
                        "{place:?} waits behind no owner"
                    );
                }
            }
        }
    }
}
