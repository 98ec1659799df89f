//! What drives a client, on a thread of its own or in its caller's: connections, and the requests
//! under way on them.
//!
//! The problem: a request may meet a follower, a node that is gone, or a connection that breaks
//! after it was sent. The naive way, an error for the caller, makes every caller write the retry
//! loop, and get the one case wrong where the first try took effect. Here a request keeps its
//! transaction id over all tries, goes where the last answer pointed, or round the members if it
//! pointed nowhere, with growing pauses, until it is answered or its deadline passes.

mod connection;
mod router;
mod sessions;

use std::{
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use palisade_control::Topology;
use palisade_wire::{
    Commit, LockClaim, MAX_PAGE_ROWS, Outcome, PeerAddress, ReadKind, Request, Response, SessionId,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{ClientError, ClientOptions, client::Counters};
use router::Router;
pub(crate) use sessions::fresh_session;

/// How often deadlines are looked at.
const DEADLINE_CHECK: Duration = Duration::from_millis(10);

/// How often the oldest open snapshot is renewed at every shard: the shards keep what it sees for
/// five times as long.
const RENEW_SNAPSHOTS: Duration = Duration::from_secs(1);

/// Calls taken in before the connections get their turn.
const BATCH: usize = 256;

/// A call of the client.
#[derive(Debug)]
pub(crate) enum Call {
    Commit { commit: Commit, locks: Option<Locks> },
    Get { key: Bytes, how: How },
    Scan { span: Span, how: How },
    Rollback(Locks),
    Topology,
    Status { at: PeerAddress },
    Control { change: Bytes },
}

impl Call {
    /// Whether the call may change something.
    fn is_change(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Control { .. })
    }
}

/// What a read is to be like.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// Of the latest, in the order of all commits.
    Latest,
    /// Of the latest of one key.
    LatestOfKey,
    /// For a transaction.
    Locked(Locks),
    /// Of a moment: at the leader, or first at any replica.
    Past { kind: ReadKind, anywhere: bool },
}

/// What a call of a transaction has to do with locks.
#[derive(Clone, Debug)]
pub(crate) struct Locks {
    /// The transaction.
    pub(crate) claim: LockClaim,
    /// Whether a read locks exclusively.
    pub(crate) exclusive: bool,
    /// The first key that the transaction was about: its locks are in that range.
    pub(crate) anchor: Bytes,
}

/// What is left of a scan.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) begin: Bytes,
    pub(crate) end: Option<Bytes>,
    pub(crate) backward: bool,
    pub(crate) max_rows: u32,
}

impl Span {
    /// From the first key on, in the largest pages.
    pub(crate) fn new(begin: Bytes, end: Option<Bytes>) -> Self {
        Self { begin, end, backward: false, max_rows: MAX_PAGE_ROWS }
    }

    /// Whether no key is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| self.begin >= *end)
    }

    /// What a page that ended at a key has gone over, and what that leaves.
    pub(crate) fn split(self, resume: Bytes) -> (Self, Self) {
        let before = Self { end: Some(resume.clone()), ..self.clone() };
        let after = Self { begin: resume, ..self };
        if after.backward { (after, before) } else { (before, after) }
    }
}

/// Hands a request to a shard of this process; tells whether it was taken.
pub(crate) struct Submit(pub(crate) Box<dyn Fn(Request) -> bool + Send>);

impl fmt::Debug for Submit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Submit")
    }
}

/// A cluster that is one shard in this process.
#[derive(Debug)]
pub struct InProcess {
    topology: Topology,
    submit: Submit,
    answers: mpsc::Receiver<Response>,
}

impl InProcess {
    /// `submit` hands a request to the shard, which sends its answers to `answers`; it must not
    /// block, and returns whether the request was taken.
    pub fn new(
        topology: Topology,
        submit: impl Fn(Request) -> bool + Send + 'static,
        answers: mpsc::Receiver<Response>,
    ) -> Self {
        Self { topology, submit: Submit(Box::new(submit)), answers }
    }
}

/// Where the cluster is.
#[derive(Debug)]
pub(crate) enum Cluster {
    At(Vec<SocketAddr>),
    InProcess(InProcess),
}

/// A call with its deadline and whoever waits for it.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) call: Call,
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    pub(crate) reply: oneshot::Sender<Result<Outcome, ClientError>>,
}

/// What drives the calls of a client, until the last of its clones is dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) cluster: Cluster,
    pub(crate) options: ClientOptions,
    /// Names its first commits.
    pub(crate) session: SessionId,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) counters: Arc<Counters>,
    /// Is told once the cluster is found, or why it is not.
    pub(crate) ready: oneshot::Sender<Result<(), ClientError>>,
}

impl Driver {
    /// To be polled within a [`LocalSet`].
    pub(crate) async fn drive(self) {
        let Self { cluster, options, session, commands, counters, ready } = self;
        let found = match cluster {
            Cluster::At(addresses) => {
                discover(&addresses, options).await.map(|topology| (topology, None))
            }
            Cluster::InProcess(InProcess { topology, submit, answers }) => {
                Ok((topology, Some((submit, answers))))
            }
        };
        match found {
            Ok((topology, in_process)) => {
                // Whoever connected may have gone away meanwhile.
                let _ = ready.send(Ok(()));
                match in_process {
                    None => {
                        let router = Router::new(topology, session, counters, None);
                        router.clone().connect_all();
                        run(router, commands).await;
                    }
                    Some((submit, answers)) => {
                        let router = Router::new(topology, session, counters, Some(submit));
                        let hearing = hear(router.clone(), answers);
                        futures_lite::future::or(run(router, commands), hearing).await;
                    }
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    }

    /// Starts a thread that does.
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

/// Asks the addresses, one after the other, for the cluster's topology.
async fn discover(
    addresses: &[SocketAddr],
    options: ClientOptions,
) -> Result<Topology, ClientError> {
    let search = async {
        loop {
            for address in addresses {
                let asked = connection::fetch_topology(*address, options.cluster_id);
                if let Ok(Some(topology)) = timeout(Duration::from_secs(1), asked).await {
                    return topology;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(options.timeout, search).await.map_err(|_| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        ClientError::Unreachable { addresses: addresses.join(", ") }
    })
}

/// Takes in the answers of a shard in this process, until that is gone.
async fn hear(router: Rc<Router>, mut answers: mpsc::Receiver<Response>) {
    while let Some(response) = answers.recv().await {
        router.answer(response);
    }
}

async fn run(router: Rc<Router>, mut commands: mpsc::Receiver<Command>) {
    let mut deadlines = interval(DEADLINE_CHECK);
    deadlines.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewals = interval(RENEW_SNAPSHOTS);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let snapshots = router.snapshots();
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            taken = commands.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    return;
                }
                for command in batch.drain(..) {
                    router.start(command);
                }
                router.send_all();
            }
            _ = deadlines.tick() => router.expire(Instant::now()),
            () = snapshots.opened.notified() => router.keep_versions(),
            _ = renewals.tick() => router.keep_versions(),
        }
    }
}
