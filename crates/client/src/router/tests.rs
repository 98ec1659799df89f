//! Tests of the routing core, with a cluster of three nodes that answers as each test decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use palisade_control::{Bootstrap, Change, NodeAddress};
use palisade_wire::{Commit, CommitRequest, LockClaim, Mode, NodeId, ReadKind, ShardId, TxnId};

use super::*;

const SECOND_US: u64 = 1_000_000;

/// A key of range 1, whose members are the nodes 0, 1 and 2 in this order.
const KEY: &str = "a";

/// A key of range 2, whose members are the nodes 1, 2 and 0.
const OTHER_KEY: &[u8] = b"\xf0";

struct Cluster {
    router: Router,
    now_us: u64,
    calls: u64,
    /// The shard to which each request was sent last.
    sent: BTreeMap<u64, PeerAddress>,
}

impl Cluster {
    /// Creates a client with session 100 that is connected to all nodes.
    fn new(mode: Mode) -> Self {
        Self::with_window(mode, FIRST_WINDOW)
    }

    fn with_window(mode: Mode, first_window: u32) -> Self {
        let nodes: Vec<_> = (0..3).map(NodeId).collect();
        let shape =
            Bootstrap { nodes: nodes.clone(), shards: 1, ranges_per_mode: 1, only: Some(mode) };
        let address =
            |node| NodeAddress { node, client: vec![([127, 0, 0, 1], 7000 + node.0).into()] };
        let mut session = 100;
        let mut cluster = Self {
            router: Router::new(RouterConfig {
                topology: Topology {
                    cluster_id: 1,
                    nodes: nodes.into_iter().map(address).collect(),
                    ranges: shape.range_map(),
                    now_ts: None,
                },
                session: SessionId(session),
                now_ts: Timestamp::from_physical_us(5 * SECOND_US),
                now_us: 0,
                first_window,
                random: fastrand::Rng::with_seed(7),
                fresh_session: Box::new(move || {
                    session += 1;
                    Some(SessionId(session))
                }),
            }),
            now_us: 0,
            calls: 0,
            sent: BTreeMap::new(),
        };
        for number in 0..3 {
            assert!(cluster.step(RouterInput::Connected(node(number))).is_empty());
        }
        cluster
    }

    fn step(&mut self, input: RouterInput) -> Vec<RouterEffect> {
        let mut effects = Vec::new();
        self.router.step(input, self.now_us, &mut effects);
        for effect in &effects {
            if let RouterEffect::Send { to, request } = effect {
                self.sent.insert(request.request_id, *to);
            }
        }
        effects
    }

    /// Starts a call with a time limit of one second.
    fn start(&mut self, call: Call) -> Vec<RouterEffect> {
        self.calls += 1;
        let (id, deadline_us) = (CallId(self.calls), self.now_us + SECOND_US);
        self.step(RouterInput::Start { id, call, deadline_us, timeout_us: SECOND_US })
    }

    fn answer(&mut self, request_id: u64, outcome: Outcome) -> Vec<RouterEffect> {
        let (from, response) = (self.sent.get(&request_id), Response { request_id, outcome });
        let from = from.copied().unwrap_or(node(0));
        self.step(RouterInput::Answer { from, response })
    }

    fn reject(&mut self, request_id: u64, rejection: Rejection) -> Vec<RouterEffect> {
        self.answer(request_id, Outcome::Rejected(rejection))
    }

    /// Rejects a request that is then sent again after a pause, and returns the next try.
    fn retried(&mut self, request_id: u64, rejection: Rejection) -> (PeerAddress, Request) {
        let effects = self.reject(request_id, rejection);
        assert!(effects.iter().all(is_refresh), "{effects:?}");
        sent(self.wait())
    }

    /// Waits until the next tick is due.
    fn wait(&mut self) -> Vec<RouterEffect> {
        self.now_us = self.router.next_due_us().expect("a call is pending");
        self.step(RouterInput::Tick)
    }

    /// Waits until the deadline of the call that has just been started, without an answer.
    fn expire(&mut self) -> Result<Outcome, ClientError> {
        self.now_us += SECOND_US;
        let mut effects = self.step(RouterInput::Tick);
        effects.retain(|effect| matches!(effect, RouterEffect::Complete { .. }));
        result(effects)
    }

    /// Waits until the deadlines of all calls, and returns their results.
    fn expire_all(&mut self) -> BTreeMap<CallId, Result<Outcome, ClientError>> {
        self.now_us += SECOND_US;
        let effects = self.step(RouterInput::Tick).into_iter();
        let ended = effects.filter_map(|effect| match effect {
            RouterEffect::Complete { id, result } => Some((id, result)),
            _ => None,
        });
        ended.collect()
    }
}

fn node(number: u16) -> PeerAddress {
    PeerAddress { node: NodeId(number), shard: ShardId(0) }
}

fn get() -> Call {
    Call::Get { key: KEY.into(), mode: ReadMode::Latest }
}

fn put(key: impl Into<Bytes>) -> Call {
    Call::Commit { commit: Commit::new().put(key, "value"), locks: None }
}

fn committed() -> Outcome {
    Outcome::Committed { commit_ts: Timestamp::ZERO, waited_us: 0 }
}

fn deadline(reason: &'static str, outcome_unknown: bool) -> Result<Outcome, ClientError> {
    let after = Duration::from_micros(SECOND_US);
    Err(ClientError::Deadline { after, reason, outcome_unknown })
}

fn is_refresh(effect: &RouterEffect) -> bool {
    let RouterEffect::Send { request, .. } = effect else { return false };
    request.operation == Operation::RangeMap
}

/// Returns the only request among the effects, apart from one for the range map.
fn sent(mut effects: Vec<RouterEffect>) -> (PeerAddress, Request) {
    effects.retain(|effect| !is_refresh(effect));
    assert_eq!(effects.len(), 1, "{effects:?}");
    match effects.pop() {
        Some(RouterEffect::Send { to, request }) => (to, request),
        other => panic!("{other:?}"),
    }
}

/// Returns the only effect, which ends a call.
fn result(mut effects: Vec<RouterEffect>) -> Result<Outcome, ClientError> {
    assert_eq!(effects.len(), 1, "{effects:?}");
    match effects.pop() {
        Some(RouterEffect::Complete { result, .. }) => result,
        other => panic!("{other:?}"),
    }
}

fn commit_of(request: &Request) -> &CommitRequest {
    match &request.operation {
        Operation::Commit { request, .. } => request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn redirect_is_immediate_once_then_pauses() {
    let mut cluster = Cluster::new(Mode::Raft);
    let hint = |number| Rejection::NotServing { hint: Some(node(number)) };
    let (to, request) = sent(cluster.start(get()));
    assert_eq!(to, node(0));
    let (to, again) = sent(cluster.reject(request.request_id, hint(2)));
    assert_eq!((to, &again), (node(2), &request));
    let (to, _) = cluster.retried(request.request_id, hint(1));
    assert_eq!(to, node(1));
    assert!((1_000..=2_000).contains(&cluster.now_us), "{} us", cluster.now_us);
    assert_eq!(cluster.router.retries(), 2);
    // Other requests for the range go there too.
    assert_eq!(sent(cluster.start(put(KEY))).0, node(1));
}

#[test]
fn redirect_to_same_replica_pauses_first() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (_, request) = sent(cluster.start(get()));
    let hint = Rejection::NotServing { hint: Some(node(0)) };
    assert_eq!(cluster.retried(request.request_id, hint).0, node(0));
    assert_eq!(cluster.now_us, 1_000);
}

#[test]
fn backoff_grows_while_shard_is_overloaded() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (_, request) = sent(cluster.start(get()));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let before_us = cluster.now_us;
        let (to, again) = cluster.retried(request.request_id, Rejection::Overloaded);
        assert_eq!((to, &again.operation), (node(0), &request.operation));
        assert_eq!(u64::from(again.limit_us), SECOND_US - cluster.now_us);
        pauses.push(cluster.now_us - before_us);
    }
    let longest = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 50_000, 50_000];
    let mut pairs = pauses.iter().zip(longest);
    assert!(pairs.all(|(us, longest_us)| (longest_us / 2..=longest_us).contains(us)), "{pauses:?}");
}

#[test]
fn retry_moves_to_next_replica_if_not_serving() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (_, request) = sent(cluster.start(get()));
    let none = Rejection::NotServing { hint: None };
    let tried: Vec<_> = (0..3).map(|_| cluster.retried(request.request_id, none).0).collect();
    assert_eq!(tried, [node(1), node(2), node(0)]);
}

#[test]
fn deadline_error_states_whether_outcome_is_unknown() {
    let mut cluster = Cluster::new(Mode::Raft);
    let silent = "the shard did not answer";
    assert_eq!(sent(cluster.start(get())).0, node(0));
    assert_eq!(cluster.expire(), deadline(silent, false));
    assert_eq!(sent(cluster.start(put(KEY))).0, node(0));
    assert_eq!(cluster.expire(), deadline(silent, true));
    // A rejection states that the try had no effect.
    let causes = [
        (Rejection::LogFull, "the shard's log is full", false),
        (Rejection::Locked, "others hold the locks", false),
        (Rejection::Unknown, "leadership changed during the request", true),
    ];
    for (rejection, reason, outcome_unknown) in causes {
        let (_, request) = sent(cluster.start(put(KEY)));
        assert!(cluster.reject(request.request_id, rejection).iter().all(is_refresh));
        assert_eq!(cluster.expire(), deadline(reason, outcome_unknown));
        assert!(cluster.answer(request.request_id, committed()).is_empty());
    }
    // A later try without an answer may take effect.
    let (_, request) = sent(cluster.start(put(KEY)));
    cluster.retried(request.request_id, Rejection::LogFull);
    assert_eq!(cluster.expire(), deadline("the shard's log is full", true));
}

#[test]
fn deadline_already_passed_prevents_send() {
    let mut cluster = Cluster::new(Mode::Raft);
    cluster.now_us = SECOND_US;
    let (id, deadline_us, timeout_us) = (CallId(1), SECOND_US, SECOND_US);
    let call = put(KEY);
    let effects = cluster.step(RouterInput::Start { id, call, deadline_us, timeout_us });
    assert_eq!(result(effects), deadline("it was not sent in time", false));
}

/// The last call of a transaction that began long ago.
#[test]
fn commit_expiry_follows_deadline_not_timeout() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (id, deadline_us, timeout_us) = (CallId(1), SECOND_US, 60 * SECOND_US);
    let call = put(KEY);
    let effects = cluster.step(RouterInput::Start { id, call, deadline_us, timeout_us });
    let expires_ts = commit_of(&sent(effects).1).expires_ts;
    // The cluster's time is 5 s at the start, and the slack is 5 s.
    assert_eq!(expires_ts.physical_us(), (5 + 1 + 5) * SECOND_US);
}

#[test]
fn disconnect_makes_outcome_unknown_and_renews_session() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (to, request) = sent(cluster.start(put(KEY)));
    let effects = cluster.step(RouterInput::Disconnected(to));
    assert!(effects.iter().all(is_refresh), "{effects:?}");
    assert_eq!(cluster.router.retries(), 1);
    // The next try has the same name and expiry.
    let (to, again) = sent(cluster.wait());
    assert_eq!((to, &again.operation), (node(1), &request.operation));
    assert_eq!(commit_of(&request).txn.session, SessionId(100));
    // It is rejected without effect, but the first try may have taken effect.
    assert!(cluster.reject(request.request_id, Rejection::Draining).iter().all(is_refresh));
    let (_, other) = sent(cluster.start(put(KEY)));
    assert_eq!(commit_of(&other).txn.session, SessionId(101));
    assert_eq!(result(cluster.answer(other.request_id, committed())), Ok(committed()));
    assert_eq!(cluster.expire(), deadline("the node is shutting down", true));
}

#[test]
fn request_skips_disconnected_replica() {
    let mut cluster = Cluster::new(Mode::Raft);
    assert!(cluster.step(RouterInput::Disconnected(node(0))).is_empty());
    let effects = cluster.start(put(KEY));
    assert!(effects.iter().all(is_refresh), "{effects:?}");
    assert_eq!(sent(cluster.wait()).0, node(1));
    assert_eq!(cluster.router.retries(), 0);
    assert_eq!(result(cluster.start(Call::Status(node(0)))), Err(ClientError::NodeDown));
    assert_eq!(sent(cluster.start(Call::Status(node(1)))).0, node(1));
}

#[test]
fn settled_below_is_first_pending_commit_of_range() {
    let mut cluster = Cluster::new(Mode::Raft);
    let settled = |request: &Request| {
        let CommitRequest { txn, settled_below, .. } = commit_of(request);
        (txn.sequence, *settled_below)
    };
    let (_, first) = sent(cluster.start(put(KEY)));
    let (_, second) = sent(cluster.start(put(KEY)));
    assert_eq!((settled(&first), settled(&second)), ((1, 1), (2, 1)));
    assert_eq!(result(cluster.answer(first.request_id, committed())), Ok(committed()));
    assert_eq!(settled(&sent(cluster.start(put(KEY))).1), (3, 2));
    assert_eq!(settled(&sent(cluster.start(put(OTHER_KEY))).1), (4, 4));
}

#[test]
fn range_map_refreshes_at_most_every_200_ms() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (_, request) = sent(cluster.start(get()));
    let mut refreshed = Vec::new();
    while cluster.now_us < 900_000 {
        let effects = cluster.reject(request.request_id, Rejection::NotHere);
        refreshed.extend(effects.iter().filter(|it| is_refresh(it)).map(|_| cluster.now_us));
        cluster.wait();
    }
    let gaps: Vec<_> = refreshed.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 3, "{gaps:?}");
    assert!(gaps.iter().all(|gap_us| (200_000..=250_000).contains(gap_us)), "{gaps:?}");
}

#[test]
fn range_map_is_adopted_without_pending_request() {
    let mut cluster = Cluster::new(Mode::Chain);
    let mut later = cluster.router.topology().clone();
    let change = Change::RemoveFromChain { range: RangeId(1), epoch: 1, node: NodeId(0) };
    later.ranges.apply(&change).unwrap();
    later.now_ts = Some(Timestamp::from_physical_us(77 * SECOND_US));
    assert!(cluster.answer(999, Outcome::RangeMap(later.to_bytes())).is_empty());
    assert_eq!(cluster.router.topology().ranges, later.ranges);
    let (to, request) = sent(cluster.start(put(KEY)));
    assert_eq!(to, node(1));
    let expires_us = commit_of(&request).expires_ts.physical_us();
    assert_eq!(expires_us, (77 + 1 + 5) * SECOND_US);
    let known = result(cluster.start(Call::Topology));
    assert_eq!(known, Ok(Outcome::RangeMap(cluster.router.topology().to_bytes())));
}

#[test]
fn read_of_collected_versions_tries_each_replica_once() {
    let mut cluster = Cluster::new(Mode::Raft);
    let kind = ReadKind::AsOf(Timestamp::ZERO);
    let mode = ReadMode::AtTimestamp { kind, anywhere: true };
    let (first, request) = sent(cluster.start(Call::Get { key: KEY.into(), mode }));
    let mut tried = BTreeSet::from([first]);
    for _ in 0..2 {
        tried.insert(sent(cluster.reject(request.request_id, Rejection::Collected)).0);
    }
    assert_eq!(tried.len(), 3);
    let refused = result(cluster.reject(request.request_id, Rejection::Collected));
    assert_eq!(refused, Err(ClientError::Rejected(Rejection::Collected)));
}

#[test]
fn timestamp_read_rejection_retries_at_sequencer() {
    let mut cluster = Cluster::new(Mode::Raft);
    let kind = ReadKind::AsOf(Timestamp::ZERO);
    for _ in 0..8 {
        let mode = ReadMode::AtTimestamp { kind, anywhere: true };
        let (_, request) = sent(cluster.start(Call::Get { key: KEY.into(), mode }));
        assert_eq!(cluster.retried(request.request_id, Rejection::Locked).0, node(0));
    }
}

#[test]
fn unsent_request_retries_elsewhere_without_effect() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (to, request) = sent(cluster.start(put(KEY)));
    let not_sent = RouterInput::NotSent { to, request_id: request.request_id };
    assert!(cluster.step(not_sent.clone()).iter().all(is_refresh));
    assert_eq!(cluster.router.next_due_us(), Some(1_000));
    assert_eq!(sent(cluster.wait()).0, node(1));
    assert!(cluster.step(not_sent).iter().all(is_refresh));
    assert_eq!(cluster.expire(), deadline("the shard accepts no request", false));
    assert_eq!(cluster.router.retries(), 0);
}

#[test]
fn next_tick_is_at_earliest_pause_or_probe() {
    let mut cluster = Cluster::new(Mode::Raft);
    assert_eq!(cluster.router.next_due_us(), None);
    let (_, early) = sent(cluster.start(get()));
    assert_eq!(cluster.router.next_due_us(), Some(200_000));
    cluster.now_us = 300;
    let (_, late) = sent(cluster.start(get()));
    assert!(cluster.reject(late.request_id, Rejection::Overloaded).is_empty());
    assert_eq!(cluster.router.next_due_us(), Some(1_300));
    assert!(cluster.step(RouterInput::Tick).is_empty(), "nothing is due yet");
    assert_eq!(sent(cluster.wait()).1.request_id, late.request_id);
    assert_eq!(cluster.router.next_due_us(), Some(200_300));
    assert_eq!(result(cluster.answer(early.request_id, committed())), Ok(committed()));
    assert_eq!(cluster.router.next_due_us(), Some(201_300));
    assert_eq!(result(cluster.answer(late.request_id, committed())), Ok(committed()));
    assert_eq!(cluster.router.next_due_us(), None);
}

#[test]
fn expired_commit_gets_later_expiry_if_never_executed() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (to, request) = sent(cluster.start(put(KEY)));
    let effects = cluster.reject(request.request_id, Rejection::Expired);
    assert!(effects.len() == 1 && is_refresh(&effects[0]), "{effects:?}");
    let mut later = cluster.router.topology().clone();
    later.now_ts = Some(Timestamp::from_physical_us(50 * SECOND_US));
    cluster.answer(999, Outcome::RangeMap(later.to_bytes()));
    let (_, again) = sent(cluster.wait());
    assert_eq!(commit_of(&again).txn, commit_of(&request).txn);
    assert!(commit_of(&again).expires_ts > commit_of(&request).expires_ts);
    // After a broken connection, the first try may have taken effect before it expired.
    cluster.step(RouterInput::Disconnected(to));
    let (_, again) = sent(cluster.wait());
    let refused = result(cluster.reject(again.request_id, Rejection::Expired));
    assert_eq!(refused, Err(ClientError::Rejected(Rejection::Expired)));
}

#[test]
fn control_change_invalid_after_lost_reply_is_unknown() {
    let mut cluster = Cluster::new(Mode::Raft);
    let change = || Call::Control(Bytes::from_static(b"change"));
    let rejected = |rejection| Err(ClientError::Rejected(rejection));
    let (_, request) = sent(cluster.start(change()));
    let refused = result(cluster.reject(request.request_id, Rejection::InvalidChange));
    assert_eq!(refused, rejected(Rejection::InvalidChange));
    let (_, request) = sent(cluster.start(change()));
    cluster.retried(request.request_id, Rejection::Unknown);
    let refused = result(cluster.reject(request.request_id, Rejection::InvalidChange));
    assert_eq!(refused, rejected(Rejection::Unknown));
}

#[test]
fn commit_lifetime_rejection_after_lost_reply_is_unknown() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (to, _) = sent(cluster.start(put(KEY)));
    cluster.step(RouterInput::Disconnected(to));
    let (_, again) = sent(cluster.wait());
    let refused = result(cluster.reject(again.request_id, Rejection::LifetimeTooLong));
    assert_eq!(refused, Err(ClientError::Rejected(Rejection::Unknown)));
}

#[test]
fn commit_across_ranges_is_rejected() {
    let mut cluster = Cluster::new(Mode::Raft);
    let commit = Commit::new().put(KEY, "value").put(OTHER_KEY, "value");
    let refused = result(cluster.start(Call::Commit { commit, locks: None }));
    assert_eq!(refused, Err(ClientError::SeveralRanges));
}

#[test]
fn chain_tail_serves_single_key_reads() {
    let mut cluster = Cluster::new(Mode::Chain);
    assert_eq!(sent(cluster.start(get())).0, node(0));
    let mode = ReadMode::LatestOfKey;
    assert_eq!(sent(cluster.start(Call::Get { key: KEY.into(), mode })).0, node(2));
}

#[test]
fn keep_versions_is_sent_to_all_connected_shards() {
    let mut cluster = Cluster::new(Mode::Raft);
    let at_ts = Timestamp::from_physical_us(9);
    cluster.step(RouterInput::Disconnected(node(1)));
    let effects = cluster.step(RouterInput::KeepVersions(at_ts));
    let kept = effects.iter().map(|effect| match effect {
        RouterEffect::Send { to, request } => {
            assert_eq!(request.operation, Operation::KeepVersions { at_ts });
            *to
        }
        _ => panic!("{effect:?}"),
    });
    assert_eq!(kept.collect::<Vec<_>>(), [node(0), node(2)]);
}

#[test]
fn silent_shard_is_probed_and_its_requests_go_elsewhere() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (to, request) = sent(cluster.start(put(KEY)));
    assert_eq!(to, node(0));
    let probe = cluster.wait();
    assert_eq!(probe.len(), 1, "{probe:?}");
    assert_eq!(cluster.wait(), [RouterEffect::Reconnect(node(0))]);
    cluster.step(RouterInput::Disconnected(node(0)));
    let (to, again) = sent(cluster.wait());
    assert_eq!((to, again.operation), (node(1), request.operation));
    assert_eq!(cluster.expire(), deadline("the connection broke", true));
}

#[test]
fn shard_that_answers_anything_keeps_its_requests() {
    let mut cluster = Cluster::new(Mode::Raft);
    let (_, request) = sent(cluster.start(get()));
    for _ in 0..2 {
        let probe = cluster.wait().pop();
        let Some(RouterEffect::Send { request: probe, .. }) = probe else { panic!("no probe") };
        assert!(cluster.reject(probe.request_id, Rejection::Collected).is_empty());
    }
    assert_eq!(result(cluster.answer(request.request_id, committed())), Ok(committed()));
    assert_eq!(cluster.router.next_due_us(), None);
}

/// Returns the ids of the requests that are sent, and of the calls that end.
fn ids(effects: &[RouterEffect]) -> (Vec<u64>, Vec<u64>) {
    let (mut sent, mut ended) = (Vec::new(), Vec::new());
    for effect in effects {
        match effect {
            RouterEffect::Send { request, .. } => sent.push(request.request_id),
            RouterEffect::Complete { id, .. } => ended.push(id.0),
            RouterEffect::Reconnect(_) => {}
        }
    }
    (sent, ended)
}

#[test]
fn requests_beyond_the_window_are_held_back() {
    let mut cluster = Cluster::with_window(Mode::Raft, 4);
    for id in 1..=4 {
        assert_eq!(ids(&cluster.start(get())).0, [id]);
    }
    cluster.now_us += 1_000;
    assert!(cluster.start(get()).is_empty() && cluster.start(get()).is_empty());
    assert_eq!(ids(&cluster.answer(3, committed())), (vec![5], vec![3]));
    // A transaction with locks does not wait: others wait for it.
    let owner = TxnId { session: SessionId(1), sequence: 1 };
    let claim = LockClaim { owner, start_ts: None, token: None };
    let locks = Locks { claim, exclusive: true, anchor: KEY.into() };
    assert_eq!(ids(&cluster.start(Call::Rollback(locks))).0, [7]);
    // The window of another shard is its own.
    assert_eq!(ids(&cluster.start(put(OTHER_KEY))).0, [8]);
    // A request that is held back was not sent, so the outcome of its call is known.
    assert!(cluster.start(put(KEY)).is_empty());
    let ended = cluster.expire_all();
    assert_eq!(ended.get(&CallId(9)), Some(&deadline("the shard is overloaded", false)));
    assert_eq!(ended.len(), 8);
    // Requests that have ended make room: a range that answers nothing is tried again.
    assert_eq!(ids(&cluster.start(get())).0.len(), 1);
}

#[test]
fn newest_call_is_sent_first_once_calls_wait_for_long() {
    let mut cluster = Cluster::with_window(Mode::Raft, 4);
    for _ in 1..=7 {
        cluster.start(get());
        cluster.now_us += 10_000;
    }
    assert_eq!(ids(&cluster.answer(1, committed())).0, [5]);
    cluster.now_us += 100_000;
    assert_eq!(ids(&cluster.answer(2, committed())).0, [7]);
    assert_eq!(ids(&cluster.answer(3, committed())).0, [6]);
}

#[test]
fn held_back_requests_leave_a_broken_connection() {
    let mut cluster = Cluster::with_window(Mode::Raft, 4);
    (1..=6).for_each(|_| drop(cluster.start(get())));
    let effects = cluster.step(RouterInput::Disconnected(node(0)));
    let mut sent: BTreeSet<_> = ids(&effects).0.into_iter().filter(|id| *id <= 6).collect();
    assert_eq!(sent, [5, 6].into(), "they did not fail");
    while sent.len() < 4 {
        sent.extend(ids(&cluster.wait()).0.into_iter().filter(|id| *id <= 6));
    }
    while let Some(id) = sent.pop_first() {
        assert_eq!(cluster.sent[&id], node(1));
        sent.extend(ids(&cluster.answer(id, committed())).0);
    }
    assert!((1..=6).all(|id| cluster.sent[&id] == node(1)));
}

#[test]
fn calls_of_a_client_are_limited_by_bytes() {
    let mut cluster = Cluster::new(Mode::Raft);
    let large = || Call::Commit { commit: Commit::new().put(KEY, vec![0; 4 << 20]), locks: None };
    let refused = (1..=99).find(|_| {
        let effects = cluster.start(large());
        effects.iter().any(|effect| matches!(effect, RouterEffect::Complete { .. }))
    });
    assert_eq!(refused, Some(65), "256 MiB");
    assert_eq!(result(cluster.start(get())), Err(ClientError::TooManyCalls));
    cluster.answer(1, committed());
    assert!(ids(&cluster.start(get())).1.is_empty());
}

#[test]
fn rollback_ends_the_reads_that_take_locks() {
    let owner = |sequence| TxnId { session: SessionId(1), sequence };
    let locks = |sequence| {
        let claim = LockClaim { owner: owner(sequence), start_ts: None, token: None };
        Locks { claim, exclusive: true, anchor: KEY.into() }
    };
    let read = |sequence| Call::Get { key: KEY.into(), mode: ReadMode::Locked(locks(sequence)) };
    let mut cluster = Cluster::with_window(Mode::Raft, 2);
    assert_eq!(ids(&cluster.start(read(1))).0, [1]);
    assert_eq!(ids(&cluster.start(read(2))).0, [2]);
    assert!(cluster.start(read(1)).is_empty(), "it is held back");
    // Both end, and the other transaction goes on.
    assert_eq!(ids(&cluster.start(Call::Rollback(locks(1)))), (vec![4], vec![1, 3]));
    assert_eq!(ids(&cluster.answer(2, committed())).1, [2]);
    assert_eq!(ids(&cluster.answer(4, committed())).1, [4]);
    let effects = cluster.step(RouterInput::Disconnected(node(0)));
    assert!(effects.iter().all(is_refresh), "a read is sent again: {effects:?}");
    assert!(cluster.answer(1, committed()).is_empty());
}

#[test]
fn request_is_forwarded_if_its_replica_is_not_connected() {
    let mut cluster = Cluster::new(Mode::Raft);
    cluster.step(RouterInput::Disconnected(node(0)));
    cluster.step(RouterInput::Disconnected(node(2)));
    cluster.start(get());
    let mut forwarded = Vec::new();
    for _ in 0..6 {
        for effect in cluster.wait() {
            let RouterEffect::Send { to, request } = effect else { continue };
            if matches!(request.operation, Operation::Get { .. }) {
                assert_eq!(to, node(1), "the only one that is connected");
                forwarded.push(request.may_forward);
                let hint = Some(node(0));
                cluster.reject(request.request_id, Rejection::NotServing { hint });
            }
        }
    }
    // At first the member is asked who leads. Then it must pass the request on.
    assert!(
        !forwarded[0] && forwarded[1..].iter().any(|is_forwarded| *is_forwarded),
        "{forwarded:?}"
    );
}
