//! Drives a client: its connections, and the requests in flight on them. Runs on its own thread or
//! in the caller's.
//!
//! The problem: a request may reach a follower or a dead node, and a connection may break after the
//! request was sent. If the client only returned an error, every caller would need a retry loop,
//! and would have to handle the case where the first try took effect. So a request keeps its
//! transaction id over all tries. It is sent to the replica that the last answer named, or else to
//! the members in turn, with growing pauses, until it is answered or its deadline passes.

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

/// Interval of the deadline checks.
const DEADLINE_CHECK: Duration = Duration::from_millis(10);

/// Interval at which the oldest open snapshot is renewed at every shard. The shards keep its
/// versions for five times as long.
const RENEW_SNAPSHOTS: Duration = Duration::from_secs(1);

/// Calls to take from the queue before their requests are sent.
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
    /// Returns true if the call may change data or the range map.
    fn is_change(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Control { .. })
    }
}

/// The consistency of a read.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// The latest value, strictly serializable over all keys.
    Latest,
    /// The latest value, linearizable for its key alone.
    LatestOfKey,
    /// The latest value, locked for a transaction.
    Locked(Locks),
    /// At a timestamp. With `anywhere`, the first try goes to a random replica.
    Past { kind: ReadKind, anywhere: bool },
}

/// The locks that a call of a transaction requests or relies on.
#[derive(Clone, Debug)]
pub(crate) struct Locks {
    /// The transaction.
    pub(crate) claim: LockClaim,
    /// True if a read takes exclusive locks.
    pub(crate) exclusive: bool,
    /// The first key of the transaction: its locks are in that key's range.
    pub(crate) anchor: Bytes,
}

/// The part of a scan that is still to be read.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) begin: Bytes,
    pub(crate) end: Option<Bytes>,
    pub(crate) backward: bool,
    pub(crate) max_rows: u32,
}

impl Span {
    /// Returns a forward span from `begin` to `end`, with pages of the largest size.
    pub(crate) fn new(begin: Bytes, end: Option<Bytes>) -> Self {
        Self { begin, end, backward: false, max_rows: MAX_PAGE_ROWS }
    }

    /// Returns true if the span can hold no key.
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| self.begin >= *end)
    }

    /// Splits the span at the key where a page ended: the part that the page covers, and the rest.
    pub(crate) fn split(self, resume: Bytes) -> (Self, Self) {
        let before = Self { end: Some(resume.clone()), ..self.clone() };
        let after = Self { begin: resume, ..self };
        if after.backward { (after, before) } else { (before, after) }
    }
}

/// Passes a request to a shard of this process. Returns whether the shard accepted it.
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
    /// Creates a cluster of one shard. `submit` passes a request to the shard, must not block, and
    /// returns whether the shard accepted the request. The shard sends its answers to `answers`.
    pub fn new(
        topology: Topology,
        submit: impl Fn(Request) -> bool + Send + 'static,
        answers: mpsc::Receiver<Response>,
    ) -> Self {
        Self { topology, submit: Submit(Box::new(submit)), answers }
    }
}

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
    pub(crate) reply: oneshot::Sender<Result<Outcome, ClientError>>,
}

/// Drives the calls of a client, until the last clone of the client is dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) cluster: Cluster,
    pub(crate) options: ClientOptions,
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
                // The caller may have dropped its future meanwhile.
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

/// Requests the cluster's topology from the addresses in turn, until one answers.
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

/// Processes the answers of a shard in this process, until its sender is dropped.
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
