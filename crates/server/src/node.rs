//! A node from start to end: threads, listeners, drain.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener as Probe, TcpStream},
    panic, process,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use glommio::{
    CpuSet, ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares, net::TcpListener,
};
use palisade_clock::{Interval, KernelClock, Timestamp};
use palisade_shard::{
    Input, ReplayError, Replayed, SNAPSHOT_PART_BYTES, Shard, ShardConfig, ShardError,
};
use palisade_sync::{Receiver, Sender, Watermark, mailbox};
use palisade_wal::{DataDir, DataDirError, Log, Owner, WalError};
use palisade_wire::{PeerAddress, ShardId};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};
use thiserror::Error;

use crate::{
    Config, FaultConfig,
    clients::{accept, serve_client},
    core::{Core, ShardCommand},
    log_progress::LogProgress,
    log_sync::sync_log,
    outbound::Outbound,
    peers::{dial_peer, serve_peer},
};

/// Between two ticks of a shard.
const TICK: Duration = Duration::from_millis(10);

/// The same while all replicas are idle, and only heartbeats are sent.
const QUIET_TICK: Duration = Duration::from_millis(50);

/// How long a drain may take before the node stops all the same.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The preempt timer of a shard's executor, far out of reach on purpose.
///
/// An executor of glommio 0.9.0 that loses its core for longer than its preempt timer, just before
/// it would run what is runnable, runs nothing, takes that for having nothing to run, and sleeps
/// until some event wakes it. When everything that could wake it has happened already, that is for
/// ever: seen at a start, and under load on a machine with fewer cores than threads. Tasks of a
/// latency class have their completions in a ring that interrupts long runs by itself, and no task
/// here runs long, so nothing is lost without the timer.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);

/// Memory that each executor registers for its ring, in bytes: the log does not go through it.
const RING_MEMORY_BYTES: usize = 1 << 20;

/// How long a port may take to become free.
const PORT_TIMEOUT: Duration = Duration::from_secs(3);

const MAILBOX_CAPACITY: usize = 1024;

/// Why a node did not start. Nothing was served.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory can't be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log can't be used.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log's records make no sense.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The shard can't start with what its log holds, or with this configuration.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The clock is behind what this node has seen: it was set back, or was ahead before.
    #[error(
        "this node's clock shows {behind_ms} ms less than the last timestamp in its log, {last_ts}: it \
         was set back, or was ahead before; every commit would wait as long. Set the clock, or wait"
    )]
    ClockBehind {
        /// How far behind, in milliseconds.
        behind_ms: u64,
        /// What is in the log.
        last_ts: Timestamp,
    },
    /// An address can't be listened on.
    #[error("cannot listen on {address}: {source}; stop what uses the port, or configure another")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The executor did not start.
    #[error("the executor of a shard cannot start: {0}; `ulimit -l` may be too low for io_uring")]
    Executor(String),
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT, and then drains it. `started` is
/// called once every shard serves.
pub fn run(config: Config, started: impl FnOnce()) -> Result<(), StartError> {
    let config = Arc::new(config);
    // Before the panic hook and any thread: every reason not to start.
    let Config { cluster_id, node, shards, .. } = *config;
    let owner = Owner { cluster_id, node: node.0, shards };
    let data_dir = Arc::new(DataDir::open(&config.data_dir, owner)?);
    for shard in 0..config.shards {
        for address in listen_addresses(&config, ShardId(shard)) {
            check_free(address).map_err(|source| StartError::Listen { address, source })?;
        }
    }
    abort_on_panic();
    let mut signals = Signals::new(TERM_SIGNALS).expect("signals can be caught");

    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..config.shards).map(|_| mailbox::<ShardCommand>(MAILBOX_CAPACITY)).unzip();
    let verdict = Arc::new(Watermark::default());
    let mut shards = Vec::new();
    for (shard, receiver) in receivers.into_iter().enumerate() {
        let shard = ShardId(u16::try_from(shard).expect("the config allows fewer"));
        let mut siblings = senders.clone();
        siblings.remove(usize::from(shard.0));
        let opened = Arc::new(Watermark::default());
        let drained = Arc::new(Watermark::default());
        let thread = spawn_shard(ShardThread {
            config: config.clone(),
            data_dir: data_dir.clone(),
            shard,
            siblings,
            commands: receiver,
            opened: opened.clone(),
            verdict: verdict.clone(),
            drained: drained.clone(),
        })?;
        shards.push(RunningShard { thread, opened, drained });
    }
    for shard in &mut shards {
        while !shard.opened.wait_for(1, Duration::from_millis(100)) {
            if shard.drained.get() > 0 {
                break;
            }
        }
    }
    let all_opened = shards.iter().all(|shard| shard.opened.get() > 0);
    verdict.advance(if all_opened { SERVE } else { GIVE_UP });
    if all_opened {
        started();
        let signal = signals.forever().next();
        tracing::info!("signal {signal:?}: draining");
    }
    for sender in &senders {
        // A full or closed mailbox belongs to a shard that is beyond draining.
        let _ = sender.try_send(ShardCommand::Drain);
    }
    finish(shards)
}

/// Tries whether an executor can start on this machine, or tells why not.
pub fn probe_executor() -> Result<(), StartError> {
    LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(PREEMPT_TIMER)
        .io_memory(RING_MEMORY_BYTES)
        .spawn(|| async {})
        .and_then(|executor| executor.join())
        .map_err(|error| StartError::Executor(error.to_string()))
}

/// All shards have opened: each may write to its log, and serve.
const SERVE: u64 = 1;

/// A shard could not open: the others end and leave their logs as they are.
const GIVE_UP: u64 = 2;

/// Between two looks of a shard that has opened at whether the others have.
const VERDICT_PAUSE: Duration = Duration::from_millis(1);

struct RunningShard {
    thread: ExecutorJoinHandle<Result<(), StartError>>,
    /// 1 once the shard's log and its listeners are open.
    opened: Arc<Watermark>,
    /// 1 once it has ended.
    drained: Arc<Watermark>,
}

fn finish(shards: Vec<RunningShard>) -> Result<(), StartError> {
    for shard in &shards {
        if !shard.drained.wait_for(1, DRAIN_TIMEOUT) {
            tracing::warn!("a shard did not drain in {DRAIN_TIMEOUT:?}: stopping all the same");
            process::exit(0);
        }
    }
    for shard in shards {
        shard.thread.join().map_err(|error| StartError::Executor(error.to_string()))??;
    }
    Ok(())
}

/// Fails if an address is listened on. The executor's listeners share their port with whoever else
/// asks for it, and would lose connections to the other.
///
/// The listeners of a process that has just ended go away with its rings, which the kernel takes
/// down in the background: so a taken port gets a moment to become free.
fn check_free(address: SocketAddr) -> io::Result<()> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    loop {
        match find_listener(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn find_listener(address: SocketAddr) -> io::Result<()> {
    match Probe::bind(address) {
        Ok(_) => Ok(()),
        // Connections of an earlier life of this node hold on to the port for a minute; only
        // somebody who listens is in the way.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match TcpStream::connect_timeout(&address, PORT_TIMEOUT) {
                Ok(_) => Err(error),
                Err(_) => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}

/// Fails if the log holds what lies further ahead than a peer's message may: then this clock is
/// wrong, now or before, by more than it is trusted. Timestamps would not go back all the same, but
/// what is committed would not have passed for as long, and nobody would be told of it.
fn check_clock(wall: Interval, last_ts: Timestamp, max_offset_us: u64) -> Result<(), StartError> {
    let behind_us = wall.beyond_us(last_ts);
    if behind_us > max_offset_us {
        return Err(StartError::ClockBehind { behind_ms: behind_us / 1_000, last_ts });
    }
    Ok(())
}

/// A panic in a task would kill its executor while the others go on without it.
fn abort_on_panic() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        default(info);
        process::abort();
    }));
}

fn listen_addresses(config: &Config, shard: ShardId) -> [SocketAddr; 2] {
    let own = config.own();
    let address = |port: u16| SocketAddr::new(own.host, port + shard.0);
    [address(own.client_port), address(own.peer_port)]
}

struct ShardThread {
    config: Arc<Config>,
    data_dir: Arc<DataDir>,
    shard: ShardId,
    siblings: Vec<Sender<ShardCommand>>,
    commands: Receiver<ShardCommand>,
    opened: Arc<Watermark>,
    /// [`SERVE`] or [`GIVE_UP`], once all shards have opened or one has not.
    verdict: Arc<Watermark>,
    drained: Arc<Watermark>,
}

fn spawn_shard(
    start: ShardThread,
) -> Result<ExecutorJoinHandle<Result<(), StartError>>, StartError> {
    // A shard on a core of its own may be pinned; where nodes share cores the kernel knows better.
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let placement = match CpuSet::online() {
        Ok(_) if usize::from(start.config.shards) == cores && start.config.nodes.len() == 1 => {
            Placement::Fixed(usize::from(start.shard.0))
        }
        _ => Placement::Unbound,
    };
    LocalExecutorBuilder::new(placement)
        .name(&format!("palisade-{}", start.shard.0))
        .preempt_timer(PREEMPT_TIMER)
        .io_memory(RING_MEMORY_BYTES)
        .spawn(move || async move {
            let drained = start.drained.clone();
            let result = run_shard(start).await;
            drained.advance(1);
            result
        })
        .map_err(|error| StartError::Executor(error.to_string()))
}

async fn run_shard(start: ShardThread) -> Result<(), StartError> {
    let ShardThread { config, data_dir, shard, siblings, mut commands, opened, verdict, .. } =
        start;
    let at = PeerAddress { node: config.node, shard };
    let clock = KernelClock::new(config.clock.source.into(), config.clock.bound_us);

    let mut replayed = Replayed::default();
    let log_dir = data_dir.log_dir(shard.0);
    let progress = LogProgress::new(at);
    let log =
        Log::open(&log_dir, config.log_options(shard), &|done| progress.tell(done), |record| {
            replayed.visit(record);
        })?;
    let groups = replayed.finish(config.fault())?;
    let now = clock.now();
    let shard_config = ShardConfig {
        at,
        cluster_id: config.cluster_id,
        nodes: config.client_addresses(),
        ranges: config.bootstrap().range_map(),
        shape: Some(config.bootstrap()),
        max_offset_us: config.clock.max_offset_us,
        random_seed: now.wall.latest_us ^ (u64::from(at.node.0) << 32) ^ (u64::from(shard.0) << 48),
        checkpoint_bytes: config.log.checkpoint_bytes,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        max_message_bytes: palisade_replication::raft::DEFAULT_MESSAGE_BYTES,
        fault: config.fault(),
    };
    let peers: BTreeMap<PeerAddress, Rc<Outbound>> = config
        .nodes
        .iter()
        .filter(|node| node.node != config.node)
        .map(|node| (PeerAddress { node: node.node, shard }, Outbound::unconnected()))
        .collect();
    let own_shard = Shard::new(shard_config, groups, now)?;
    check_clock(now.wall, own_shard.logged_ts(), config.clock.max_offset_us)?;
    let [client_address, peer_address] = listen_addresses(&config, shard);
    let listen = |address| {
        TcpListener::bind(address)
            .map_err(|error| StartError::Listen { address, source: error.into() })
    };
    let (client_listener, peer_listener) = (listen(client_address)?, listen(peer_address)?);
    // Nothing is written before all shards accept the configuration: a shard whose log is new would
    // record a shape that another one refuses.
    opened.advance(1);
    while verdict.get() == 0 {
        glommio::timer::sleep(VERDICT_PAUSE).await;
    }
    if verdict.get() == GIVE_UP {
        return Ok(());
    }
    let core = Core::new(at, clock, own_shard, log, siblings, peers.clone());

    // On the default class a task gets its turn late when the executor is busy.
    let tasks = glommio::executor().create_task_queue(
        Shares::Static(1000),
        Latency::Matters(PREEMPT_TIMER),
        "shard",
    );
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        glommio::spawn_local_into(task, tasks).expect("the task queue was made just now")
    };
    let cluster_id = config.cluster_id;
    let for_clients = core.clone();
    spawn(Box::pin(accept(client_listener, tasks, move |stream| {
        serve_client(for_clients.clone(), cluster_id, tasks, stream)
    })))
    .detach();
    let for_peers = core.clone();
    spawn(Box::pin(accept(peer_listener, tasks, move |stream| {
        serve_peer(for_peers.clone(), cluster_id, stream)
    })))
    .detach();
    for (to, outbound) in peers {
        let address = config.peer_address(to).expect("peers were made from the config");
        spawn(Box::pin(dial_peer(core.clone(), cluster_id, to, address, outbound))).detach();
    }
    let fail_after = match config.test_fault {
        Some(FaultConfig::FailSyncAfter(syncs)) => Some(syncs),
        _ => None,
    };
    spawn(Box::pin(sync_log(core.clone(), config.log.backend.into(), fail_after))).detach();
    let ticking = core.clone();
    spawn(Box::pin(async move {
        loop {
            ticking.inbox.push(Input::Tick, 0);
            glommio::timer::sleep(if ticking.is_quiet() { QUIET_TICK } else { TICK }).await;
        }
    }))
    .detach();
    let obeying = core.clone();
    spawn(Box::pin(async move {
        let mut batch = Vec::new();
        while commands.recv_batch(&mut batch, MAILBOX_CAPACITY).await > 0 {
            for command in batch.drain(..) {
                match command {
                    ShardCommand::Install(descriptor) => {
                        obeying.inbox.push(Input::Install(descriptor), 0);
                    }
                    ShardCommand::Drain => {
                        obeying.inbox.draining.set(true);
                        obeying.inbox.nudge();
                    }
                }
            }
        }
    }))
    .detach();
    let running = core.clone();
    spawn(Box::pin(async move { running.run().await })).await;
    Ok(())
}
