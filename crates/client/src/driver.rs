//! Drives a client: feeds its [`Router`] with calls, answers and time, and carries out the effects.
//! Runs on its own thread or in the caller's.
//!
//! The tasks of a driver share one thread: the loop of [`run`], and one task for each connection.
//! Each of them steps the router directly, without a queue between them. The requests of a batch of
//! calls or answers leave in one write for each connection.
//!
//! Invariants:
//! - No borrow of the router is held across an await.
//! - The loop wakes for a tick at or before the time that [`Router::next_due_us`] returns.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use palisade_clock::Timestamp;
use palisade_control::Topology;
use palisade_wire::{Outcome, PeerAddress, Request, Response, SessionId};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{JoinSet, LocalSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    ClientError, InProcess,
    calls::{Call, CallId},
    connection::{Access, Connection, ConnectionEvent, fetch_topology},
    counters::Counters,
    entropy::fresh_session,
    in_process::Submit,
    router::{FIRST_WINDOW, Router, RouterConfig, RouterEffect, RouterInput},
};

/// Interval at which the oldest open snapshot is renewed at every shard. The shards keep its
/// versions for five times as long.
const RENEW_SNAPSHOTS: Duration = Duration::from_secs(1);

/// Calls or answers to take from a queue before the requests that they cause are sent.
const BATCH: usize = 256;

/// The time of a tick that no call needs, about 140 years from the start.
const NEVER_US: u64 = 1 << 52;

type Reply = oneshot::Sender<Result<Outcome, ClientError>>;

/// The cluster to connect to.
#[derive(Debug)]
pub(crate) enum Cluster {
    At(Vec<SocketAddr>),
    InProcess(InProcess),
}

/// A call, with its deadline and the sender for its result.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) call: Call,
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    pub(crate) reply: Reply,
}

/// Drives the calls of a client, until the last clone of the client is dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) cluster: Cluster,
    pub(crate) access: Access,
    /// Time limit of the search for a node that answers.
    pub(crate) timeout: Duration,
    /// The session of the first commits.
    pub(crate) session: SessionId,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) counters: Arc<Counters>,
    /// Receives `Ok` once the cluster is found, or the error.
    pub(crate) ready: oneshot::Sender<Result<(), ClientError>>,
}

impl Driver {
    /// Runs the driver. Must be polled within a [`LocalSet`].
    pub(crate) async fn drive(self) {
        let Self { cluster, access, timeout, session, commands, counters, ready } = self;
        let found = match cluster {
            Cluster::At(addresses) => {
                discover(&addresses, access, timeout).await.map(|topology| (topology, None))
            }
            Cluster::InProcess(InProcess { topology, submit, answers }) => {
                Ok((topology, Some((submit, answers))))
            }
        };
        // The caller may have dropped its future meanwhile.
        let _ = ready.send(found.as_ref().map(|_| ()).map_err(Clone::clone));
        let Ok((topology, in_process)) = found else { return };
        let (submit, answers) = in_process.unzip();
        let shared = Shared::new(&topology, session, counters, submit);
        // The connections end together with the client.
        let _connections = shared.clone().connect(&topology, access);
        match answers {
            None => run(shared, commands).await,
            Some(answers) => {
                let receiving = receive(shared.clone(), answers);
                futures_lite::future::or(run(shared, commands), receiving).await;
            }
        }
    }

    /// Starts a thread that runs [`Driver::drive`].
    pub(crate) fn spawn(self) -> Result<(), ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(
            |error| ClientError::Protocol(format!("no runtime for the client: {error}")),
        )?;
        thread::Builder::new()
            .name("palisade-client".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, self.drive()))
            .map(drop)
            .map_err(|error| ClientError::Protocol(format!("no thread for the client: {error}")))
    }
}

/// Requests the cluster's topology from the addresses in turn, until one answers, or all refuse.
async fn discover(
    addresses: &[SocketAddr],
    access: Access,
    limit: Duration,
) -> Result<Topology, ClientError> {
    let refused = Cell::new(None);
    let search = async {
        loop {
            let mut all_refuse = !addresses.is_empty();
            for address in addresses {
                match timeout(Duration::from_secs(1), fetch_topology(*address, access)).await {
                    Ok(Ok(topology)) => return Some(topology),
                    Ok(Err(Some(refusal))) => refused.set(Some(refusal)),
                    Ok(Err(None)) | Err(_) => all_refuse = false,
                }
            }
            if all_refuse {
                return None;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    if let Ok(Some(topology)) = timeout(limit, search).await {
        return Ok(topology);
    }
    if let Some(refusal) = refused.get() {
        return Err(ClientError::Refused(refusal));
    }
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    Err(ClientError::Unreachable { addresses: addresses.join(", ") })
}

/// Starts calls and ticks the router, until all clones of the client are dropped.
async fn run(shared: Rc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let mut renewals = interval(RENEW_SNAPSHOTS);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH);
    let mut tick = pin!(sleep(Duration::ZERO));
    loop {
        if let Some(at) = shared.rearm() {
            tick.as_mut().reset(at.into());
        }
        tokio::select! {
            taken = commands.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    return;
                }
                shared.process(batch.drain(..).map(|command| shared.start(command)));
            }
            () = &mut tick => shared.tick(),
            () = shared.earlier.notified() => {}
            () = shared.counters.snapshots.opened.notified() => shared.keep_versions(),
            _ = renewals.tick() => shared.keep_versions(),
        }
        shared.flush();
    }
}

/// Processes the answers of a shard in this process, until its sender is dropped.
async fn receive(shared: Rc<Shared>, mut answers: mpsc::Receiver<Response>) {
    let Some(from) = shared.links.keys().next().copied() else { return };
    let mut batch = Vec::with_capacity(BATCH);
    while answers.recv_many(&mut batch, BATCH).await > 0 {
        shared.process(batch.drain(..).map(|response| RouterInput::Answer { from, response }));
        shared.end_batch();
    }
}

/// The state that the tasks of a driver share.
struct Shared {
    core: RefCell<Core>,
    links: BTreeMap<PeerAddress, Link>,
    counters: Arc<Counters>,
    /// The zero of the router's time.
    epoch: Instant,
    /// The time at which the loop wakes for a tick. `None` if its timer has fired.
    wakes_us: Cell<Option<u64>>,
    /// Notified when a tick has become due before `wakes_us`.
    earlier: Notify,
}

struct Core {
    router: Router,
    /// Empty between steps; kept for its capacity.
    effects: Vec<RouterEffect>,
    replies: Replies,
}

/// The way to a shard.
enum Link {
    Socket(Rc<Connection>),
    InProcess(Submit),
}

impl Shared {
    /// Creates the state of a client whose shards are reached through sockets, or of which the only
    /// one is reached through `submit`.
    fn new(
        topology: &Topology,
        session: SessionId,
        counters: Arc<Counters>,
        mut submit: Option<Submit>,
    ) -> Rc<Self> {
        let own_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let router = Router::new(RouterConfig {
            topology: topology.clone(),
            session,
            now_ts: Timestamp::ZERO.saturating_add_us(micros(own_time)),
            now_us: 0,
            first_window: FIRST_WINDOW,
            random: fastrand::Rng::new(),
            fresh_session: Box::new(|| fresh_session().ok()),
        });
        let link = |at: &PeerAddress| match submit.take() {
            Some(submit) => (*at, Link::InProcess(submit)),
            None => (*at, Link::Socket(Rc::default())),
        };
        Rc::new(Self {
            links: router.shards().iter().map(link).collect(),
            core: RefCell::new(Core { router, effects: Vec::new(), replies: Replies::default() }),
            counters,
            epoch: Instant::now(),
            wakes_us: Cell::default(),
            earlier: Notify::new(),
        })
    }

    /// Connects to all shards. Returns the tasks of the connections.
    fn connect(self: Rc<Self>, topology: &Topology, access: Access) -> JoinSet<()> {
        let access = Access { cluster_id: Some(topology.cluster_id), ..access };
        let mut tasks = JoinSet::new();
        for (&at, link) in &self.links {
            let Link::Socket(connection) = link else {
                self.step(RouterInput::Connected(at));
                continue;
            };
            let address = topology.client_address(at).expect("the shards are those of it");
            let (connection, shared) = (connection.clone(), self.clone());
            tasks.spawn_local(async move {
                let report = |event| shared.handle(at, event);
                connection.keep_open(at, address, access, report).await;
            });
        }
        tasks
    }

    fn now_us(&self) -> u64 {
        micros(self.epoch.elapsed())
    }

    /// Stores the sender of a call, and returns the call as an input.
    fn start(&self, Command { call, deadline, timeout, reply }: Command) -> RouterInput {
        let id = self.core.borrow_mut().replies.add(reply);
        let deadline_us = micros(deadline.saturating_duration_since(self.epoch));
        RouterInput::Start { id, call, deadline_us, timeout_us: micros(timeout) }
    }

    fn handle(&self, at: PeerAddress, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Opened => self.step(RouterInput::Connected(at)),
            ConnectionEvent::Answers(answers) => {
                let answers = answers.into_iter();
                self.process(answers.map(|response| RouterInput::Answer { from: at, response }));
            }
            ConnectionEvent::Progressed => self.step(RouterInput::Progressed(at)),
            ConnectionEvent::Closed => self.step(RouterInput::Disconnected(at)),
        }
        self.end_batch();
    }

    /// Makes every shard keep the versions of the oldest open snapshot.
    fn keep_versions(&self) {
        if let Some(at_ts) = self.counters.snapshots.oldest() {
            self.step(RouterInput::KeepVersions(at_ts));
        }
    }

    fn step(&self, input: RouterInput) {
        self.step_at(input, self.now_us());
    }

    /// Steps the router with inputs that came at the same time.
    fn process(&self, inputs: impl Iterator<Item = RouterInput>) {
        let now_us = self.now_us();
        inputs.for_each(|input| self.step_at(input, now_us));
    }

    fn tick(&self) {
        self.wakes_us.set(None);
        self.step(RouterInput::Tick);
    }

    /// Steps the router and carries out the effects. Requests wait for [`Shared::flush`].
    fn step_at(&self, input: RouterInput, now_us: u64) {
        let mut core = self.core.borrow_mut();
        let Core { router, effects, replies } = &mut *core;
        router.step(input, now_us, effects);
        let mut failed = Vec::new();
        while !effects.is_empty() {
            for effect in effects.drain(..) {
                match effect {
                    RouterEffect::Send { to, request } => failed.extend(self.push(to, request)),
                    RouterEffect::Reconnect(at) => failed.extend(self.close(at)),
                    RouterEffect::Complete { id, result } => replies.complete(id, result),
                }
            }
            failed.drain(..).for_each(|input| router.step(input, now_us, effects));
        }
    }

    /// Passes a request to its shard. Returns the input for the router if that is not possible now.
    fn push(&self, to: PeerAddress, request: Request) -> Option<RouterInput> {
        let request_id = request.request_id;
        let is_accepted = match self.links.get(&to) {
            Some(Link::Socket(connection)) => connection.push(&request),
            Some(Link::InProcess(submit)) => submit(request),
            None => false,
        };
        (!is_accepted).then_some(RouterInput::NotSent { to, request_id })
    }

    /// Closes the connection to a shard, and returns the input for the router. A shard of this
    /// process has no connection that could be broken.
    fn close(&self, at: PeerAddress) -> Option<RouterInput> {
        let Some(Link::Socket(connection)) = self.links.get(&at) else { return None };
        connection.close();
        Some(RouterInput::Disconnected(at))
    }

    /// Starts writing the requests that were pushed, and publishes the number of retries.
    fn flush(&self) {
        for link in self.links.values() {
            if let Link::Socket(connection) = link {
                connection.flush();
            }
        }
        self.counters.retries.store(self.core.borrow().router.retries(), Ordering::Relaxed);
    }

    /// Ends a batch of answers, which may have made a tick due before the loop wakes.
    fn end_batch(&self) {
        self.flush();
        if !self.is_armed(self.due_us()) {
            self.earlier.notify_one();
        }
    }

    /// Returns the time to which the loop must set its timer, unless it is set already. Most calls
    /// end long before their deadline, so a timer that is too early stays as it is.
    fn rearm(&self) -> Option<Instant> {
        let due_us = self.due_us();
        if self.is_armed(due_us) {
            return None;
        }
        self.wakes_us.set(Some(due_us));
        Some(self.epoch + Duration::from_micros(due_us))
    }

    fn due_us(&self) -> u64 {
        self.core.borrow().router.next_due_us().unwrap_or(NEVER_US)
    }

    fn is_armed(&self, due_us: u64) -> bool {
        self.wakes_us.get().is_some_and(|wakes_us| wakes_us <= due_us)
    }
}

/// The senders for the results of calls. The id of a call is the place of its sender.
#[derive(Default)]
struct Replies {
    senders: Vec<Option<Reply>>,
    free: Vec<u64>,
}

impl Replies {
    fn add(&mut self, reply: Reply) -> CallId {
        if let Some(place) = self.free.pop() {
            self.senders[place as usize] = Some(reply);
            return CallId(place);
        }
        self.senders.push(Some(reply));
        CallId(self.senders.len() as u64 - 1)
    }

    fn complete(&mut self, CallId(place): CallId, result: Result<Outcome, ClientError>) {
        let reply = self.senders[place as usize].take().expect("a call completes once");
        self.free.push(place);
        // The caller may have dropped its future meanwhile.
        let _ = reply.send(result);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
