//! The lock table of a leader: strict two-phase locking with wound-wait.
//!
//! The problem: transactions that read, think and write must not see each other half-way. The naive
//! way, locks that are waited for in the order of their coming, deadlocks as soon as two
//! transactions want each other's; and to look for cycles is work that grows with the waiting.
//!
//! Wound-wait (Rosenkrantz, Stearns, Lewis 1978): everybody has a priority, the time of its first
//! start, kept over retries. Who wants what a younger one holds takes it away ("wounds" it); who
//! wants what an older one holds, waits. So whoever waits, waits for somebody older, and there are
//! no cycles; and the oldest is never stopped, so everybody gets through in the end.
//!
//! A request asks for all its locks at once and gets all or none of them. It waits for conflicting
//! older requests, too: otherwise a stream of readers could keep a writer out for ever. Those who
//! wait form a chain, each looking at only one other ([`Obstacle`]), so that what ends wakes few.
//!
//! Locks live in the leader's memory and die with its leadership. A transaction shows the token
//! that it got with its first lock; without a table that knows it, its locks are lost.
//!
//! Left out: locks of prepared transactions, which can't be taken away.

use std::collections::{BTreeMap, VecDeque};

use palisade_clock::Timestamp;
use palisade_wire::{LockClaim, LockGrant, LockToken, TxnId};

use crate::{
    lock_request::{LockError, LockEvent, LockRequest, Priority},
    segments::{Hold, Segments, Span, conflict},
};

/// Transactions that may hold locks at a time.
const MAX_OWNERS: usize = 16 * 1024;

/// Requests that may wait at a time.
const MAX_WAITING: usize = 16 * 1024;

/// Locks that one transaction may ask for.
const MAX_LOCKS: usize = 16 * 1024;

/// Locks that are held or waited for, of all.
const MAX_LOCKS_OF_ALL: usize = 256 * 1024;

/// After so long without a request a transaction loses its locks: its client may be gone.
pub const IDLE_US: u64 = 5_000_000;

/// Who holds which locks, and who waits.
#[derive(Debug)]
pub struct LockTable {
    owners: BTreeMap<TxnId, Owner>,
    segments: Segments,
    waiting: BTreeMap<Place, Waiting>,
    /// Who looks at whom.
    behind: BTreeMap<Obstacle, Vec<Place>>,
    events: VecDeque<(u64, LockEvent)>,
    /// The term or epoch in which locks are given.
    term: u64,
    next_number: u64,
    /// Locks that are held or waited for.
    locks: usize,
    /// The time, when it was last told.
    now_us: u64,
}

/// The order of those who wait: by age, then by ticket.
type Place = (Priority, u64);

#[derive(Debug)]
struct Owner {
    token: LockToken,
    priority: Priority,
    locks: Vec<Span>,
    /// Tickets that wait.
    waiting: Vec<u64>,
    idle_since_us: u64,
}

#[derive(Debug)]
struct Waiting {
    request: LockRequest,
    behind: Obstacle,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    /// The locks of an older transaction.
    Owner(TxnId),
    /// The request of one.
    Ticket(u64),
}

impl LockTable {
    /// A table without locks. Tokens are numbered from `first_number` on, which should be drawn at
    /// random: a chain's head that restarts in its epoch must not take an earlier token for one of
    /// its own.
    pub fn new(first_number: u64) -> Self {
        Self {
            owners: BTreeMap::new(),
            segments: Segments::default(),
            waiting: BTreeMap::new(),
            behind: BTreeMap::new(),
            events: VecDeque::new(),
            term: 0,
            next_number: first_number,
            locks: 0,
            now_us: 0,
        }
    }

    /// Whether nobody holds or wants anything.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.waiting.is_empty() && self.events.is_empty()
    }

    /// Lets a transaction in that shows no token, at `fresh_ts` unless it began before; or checks
    /// the token that it shows.
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

    /// Whether a transaction has all the locks that it was ever granted.
    pub fn is_held(&self, txn: TxnId, token: LockToken) -> bool {
        self.owners.get(&txn).is_some_and(|owner| owner.token == token)
    }

    /// Asks for locks. Returns whether they are granted at once, which is to be acted upon first;
    /// otherwise an event will tell. Either way there may be events of others.
    pub fn request(&mut self, mut request: LockRequest) -> Result<bool, LockError> {
        request.wants.sort_unstable_by(|(one, _), (other, _)| one.begin.cmp(&other.begin));
        if request.keeps {
            let owner = self.owners.get(&request.priority.txn);
            let owner = owner.expect("whoever keeps locks has entered");
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

    /// Takes everything from a transaction: what it holds, and what it waits for.
    pub fn release(&mut self, txn: TxnId) {
        let mut gone = VecDeque::new();
        self.remove(txn, &mut gone);
        self.wake(gone);
    }

    /// How requests that had to wait have ended, one after the other. Each must be acted upon
    /// before the next request.
    pub fn next_event(&mut self) -> Option<(u64, LockEvent)> {
        self.events.pop_front()
    }

    /// Gives locks in a term or epoch from now on.
    pub fn begin_term(&mut self, term: u64) {
        assert!(self.is_empty(), "locks of term {} are held when term {term} begins", self.term);
        self.term = term;
    }

    /// Forgets all locks and requests. No event tells of it.
    pub fn end_term(&mut self) {
        *self = Self::new(self.next_number);
    }

    /// Ends what has waited or been idle for too long.
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

    /// Something older that a request must wait for, if there is any.
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

    /// Who holds what a request can't share with them; some several times.
    fn conflicting(&self, request: &LockRequest) -> impl Iterator<Item = TxnId> {
        let LockRequest { priority, keeps, wants, .. } = request;
        wants.iter().flat_map(move |(span, strength)| {
            let holders = self.segments.holders(span);
            let others = holders.filter(move |hold| {
                let same = *keeps && hold.owner == priority.txn;
                !same && hold.strength.conflicts(*strength)
            });
            others.map(|hold| hold.owner)
        })
    }

    /// All that is in the way of a request is younger, and yields.
    fn grant(&mut self, request: &LockRequest, gone: &mut VecDeque<Obstacle>) {
        for txn in self.conflicting(request).collect::<Vec<_>>() {
            self.remove(txn, gone);
        }
        if request.keeps {
            let txn = request.priority.txn;
            for (span, strength) in &request.wants {
                self.segments.hold(span, Hold { owner: txn, strength: *strength });
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

    /// A request waits no longer.
    fn leave(&mut self, place: Place, gone: &mut VecDeque<Obstacle>) {
        let (priority, ticket) = place;
        let waiting = self.waiting.remove(&place).expect("the place of somebody who waits");
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
            self.segments.release(span, txn);
        }
        self.locks -= owner.locks.len();
        for ticket in owner.waiting {
            self.leave((owner.priority, ticket), gone);
            self.events.push_back((ticket, LockEvent::Wounded));
        }
        gone.push_back(Obstacle::Owner(txn));
    }

    /// Looks again at those who stood behind what is gone, the oldest first.
    fn wake(&mut self, mut gone: VecDeque<Obstacle>) {
        while let Some(obstacle) = gone.pop_front() {
            let mut places = self.behind.remove(&obstacle).unwrap_or_default();
            places.sort_unstable();
            for place in places {
                // Somebody before it may have wounded it.
                let Some(mut waiting) = self.waiting.remove(&place) else { continue };
                match self.older_obstacle(&waiting.request) {
                    Some(behind) => {
                        self.behind.entry(behind).or_default().push(place);
                        waiting.behind = behind;
                        self.waiting.insert(place, waiting);
                    }
                    None => {
                        // Its locks come before those of whoever stood behind those that yield.
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
    use crate::segments::Strength::{self, Exclusive, Shared};

    fn txn(number: u64) -> TxnId {
        TxnId { session: SessionId(number), sequence: 1 }
    }

    fn ts(us: u64) -> Timestamp {
        Timestamp::from_physical_us(us)
    }

    fn token(number: u64) -> LockToken {
        LockToken { term: 0, number }
    }

    /// A table whose transactions start at their numbers, and whose tickets count up.
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
    fn readers_share_and_a_younger_writer_waits_for_them() {
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
    fn an_older_one_takes_locks_away_from_a_younger() {
        let mut desk = Desk::new();
        assert!(desk.lock(5, b"k", Exclusive).1);
        assert!(desk.lock(1, b"other", Exclusive).1);
        let (waits, granted) = desk.lock(5, b"other", Shared);
        assert!(!granted);
        assert!(desk.lock(2, b"k", Shared).1);
        assert_eq!(desk.events(), [(waits, LockEvent::Wounded)]);
        assert!(!desk.holds(5) && !desk.table.is_held(txn(5), token(70)));
        // Its token is worth nothing; without one it begins anew.
        let claim = LockClaim { token: Some(token(70)), ..Desk::claim(5) };
        assert_eq!(desk.table.enter(claim, ts(9), 0), Err(LockError::Lost));
        let claim = LockClaim { start_ts: Some(ts(5)), ..Desk::claim(5) };
        let again = desk.table.enter(claim, ts(9), 0).unwrap();
        assert_eq!((again.start_ts, again.token), (ts(5), token(73)));
    }

    #[test]
    fn a_token_holds_in_the_term_that_gave_it_only() {
        let mut desk = Desk::new();
        desk.table.begin_term(3);
        let before = desk.table.enter(Desk::claim(1), ts(1), 0).unwrap();
        desk.table.end_term();
        desk.table.begin_term(4);
        let claim = Desk::claim(1).granted(before);
        assert_eq!(desk.table.enter(claim, ts(9), 0), Err(LockError::Lost));
        // The same number in another term names other locks.
        let after = desk.table.enter(Desk::claim(1), ts(1), 0).unwrap();
        let token = LockToken { term: 3, ..after.token };
        assert!(!desk.table.is_held(txn(1), token) && desk.table.is_held(txn(1), after.token));
    }

    #[test]
    fn of_two_who_want_to_write_what_both_read_the_older_does() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Shared).1 && desk.lock(2, b"k", Shared).1);
        let (younger, granted) = desk.lock(2, b"k", Exclusive);
        assert!(!granted && desk.lock(1, b"k", Exclusive).1);
        assert_eq!(desk.events(), [(younger, LockEvent::Wounded)]);
    }

    #[test]
    fn a_span_keeps_phantoms_out_and_keys_beside_it_free() {
        let mut desk = Desk::new();
        let span = Span { begin: "b".into(), end: Some("d".into()) };
        assert!(desk.ask(1, true, vec![(span, Shared)]).1);
        for (key, free) in [("a", true), ("b", false), ("bb", false), ("d", true)] {
            assert_eq!(desk.ask(9, false, vec![(Span::key(key.as_bytes()), Exclusive)]).1, free);
        }
        assert!(desk.lock(2, b"c", Shared).1);
        // Everything from a key on.
        assert!(!desk.ask(3, true, vec![(Span { begin: "c".into(), end: None }, Exclusive)]).1);
        assert!(desk.ask(0, true, vec![(Span { begin: "c".into(), end: None }, Exclusive)]).1);
        assert!(!desk.holds(1) && !desk.holds(2));
    }

    #[test]
    fn a_reader_does_not_overtake_an_older_writer_that_waits() {
        let mut desk = Desk::new();
        assert!(desk.lock(1, b"k", Shared).1);
        let (writer, _) = desk.ask(2, false, vec![(Span::key(b"k"), Exclusive)]);
        let (reader, granted) = desk.lock(3, b"k", Shared);
        assert!(!granted);
        desk.table.release(txn(1));
        // The writer keeps nothing: the reader has its lock as soon as the writer had its turn.
        assert_eq!(desk.events(), [(writer, LockEvent::Granted), (reader, LockEvent::Granted)]);
    }

    #[test]
    fn who_waited_too_long_has_no_lock_and_who_is_idle_loses_all() {
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
        assert!(desk.table.is_empty() && desk.table.segments.is_empty());
    }

    #[test]
    fn who_waited_long_is_not_idle_sooner() {
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

    /// Against a list of what was granted: nobody conflicts, nobody is forgotten, the oldest is
    /// never wounded, and when all have ended nothing is left.
    #[test]
    fn any_order_of_requests_is_free_of_conflicts_deadlocks_and_lost_wakes() {
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
            assert!(desk.table.is_empty() && desk.table.segments.is_empty(), "seed {seed}");
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
            let mut holders = table.segments.holders(span);
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
                        "{place:?} stands behind nobody"
                    );
                }
            }
        }
    }
}
