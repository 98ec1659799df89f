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
    Input, LOG_RESERVE_BYTES, RecoveryError, Runtime, SNAPSHOT_PART_BYTES, ShardConfig, TICK_US,
    TURN_WORK,
};
use palisade_sync::{Receiver, Sender, Watermark, mailbox};
use palisade_wal::{DataDir, DataDirError, Log, Owner, WalError};
use palisade_wire::{ClusterSecret, PeerAddress, ShardId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::{consts::TERM_SIGNALS, iterator::Signals, low_level::signal_name};
use thiserror::Error;

use crate::{
    Config,
    client_connections::serve_client,
    executor::{Executor, ShardCommand},
    handshake::Gate,
    http::{Shards, serve},
    listener::accept,
    log_progress::LogProgress,
    log_sync::sync_log,
    outbound::Outbound,
    peer_connections::{dial_peer, serve_peer},
    secrets::{SecretError, read_secrets},
};

/// Time between two ticks of a shard.
const TICK: Duration = Duration::from_micros(TICK_US);

/// Time between two ticks while all replicas are idle and only heartbeats are sent.
const QUIET_TICK: Duration = Duration::from_millis(50);

/// Time limit of a drain, for all shards together. Past it, the node stops without having drained.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Preempt timer of a shard's executor. It is set so high that it never fires.
///
/// HAZARD: glommio 0.9.0 can sleep with runnable tasks. If an executor loses its core for longer
/// than its preempt timer just before it runs its tasks, it runs none, concludes that none is
/// runnable, and sleeps until an event wakes it. If no further event comes, it sleeps for ever.
/// This was seen at a start, and under load on a machine with fewer cores than threads.
///
/// The timer is not needed here: completions of tasks of a latency class arrive in a ring that
/// interrupts long runs, and no task here runs long.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);

/// Memory that each executor registers for its ring, in bytes. The log does not use it.
const RING_MEMORY_BYTES: usize = 1 << 20;

/// How long to wait for a port that is in use.
const PORT_TIMEOUT: Duration = Duration::from_secs(3);

const MAILBOX_CAPACITY: usize = 1024;

/// Limit on the open connections of a listener. Fewer if the process may not open as many files.
const MAX_CONNECTIONS: usize = 4096;

/// Why a node did not start. It has served no request.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A shard cannot start from its log.
    #[error(transparent)]
    Recovery(#[from] RecoveryError<WalError>),
    /// The clock is too far behind the last timestamp in the log: it was set back now, or was ahead
    /// before. Retryable once the clock is correct.
    #[error(
        "this node's clock shows {behind_ms} ms less than the last timestamp in its log, {last_ts}: it \
         was set back, or was ahead before; every commit would wait as long. Set the clock, or wait"
    )]
    ClockBehind {
        /// How far the clock is behind, in milliseconds.
        behind_ms: u64,
        /// The last timestamp in the log.
        last_ts: Timestamp,
    },
    /// The secret of the cluster cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The node cannot listen on an address. Retryable once the port is free.
    #[error("cannot listen on {address}: {source}; stop what uses the port, or configure another")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The executor of a shard cannot start.
    #[error("the executor of a shard cannot start: {0}; `ulimit -l` may be too low for io_uring")]
    Executor(String),
}

/// Runs a node until it receives SIGTERM, SIGQUIT or SIGINT, and then drains it. Calls `started`
/// once every shard serves.
///
/// # Errors
///
/// [`StartError`], if a shard cannot start. Nothing was served.
pub fn run(config: Config, started: impl FnOnce()) -> Result<(), StartError> {
    let config = Arc::new(config);
    // Checks that can fail come before the panic hook and the threads.
    let Config { cluster_id, node, shards, .. } = *config;
    let owner = Owner { cluster_id, node: node.0, shards };
    let secrets = config.secret_file.as_deref().map_or(Ok(Vec::new()), read_secrets)?;
    if secrets.is_empty() && config.allow_unauthenticated {
        tracing::warn!("no secret_file: anyone who reaches a port may change the cluster");
    }
    let data_dir = Arc::new(DataDir::open(&config.data_dir, owner)?);
    for shard in 0..config.shards {
        for address in listen_addresses(&config, ShardId(shard)) {
            check_free(address).map_err(|source| StartError::Listen { address, source })?;
        }
    }
    abort_on_panic();
    raise_file_limit();
    let mut signals = Signals::new(TERM_SIGNALS).expect("signals can be caught");

    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..config.shards).map(|_| mailbox::<ShardCommand>(MAILBOX_CAPACITY)).unzip();
    let verdict = Arc::new(Watermark::default());
    if let Some(address) = config.metrics_address {
        let shards = Shards { senders: senders.clone(), opened: verdict.clone() };
        Probe::bind(address)
            .and_then(|listener| serve(listener, shards))
            .map_err(|source| StartError::Listen { address, source })?;
    }
    let mut shards = Vec::new();
    for (shard, receiver) in receivers.into_iter().enumerate() {
        let shard = ShardId(u16::try_from(shard).expect("the config allows fewer"));
        let mut siblings = senders.clone();
        siblings.remove(usize::from(shard.0));
        let opened = Arc::new(Watermark::default());
        let drained = Arc::new(Watermark::default());
        let thread = spawn_shard(ShardThread {
            config: config.clone(),
            secrets: secrets.clone(),
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
    let mut stopped = false;
    for shard in &mut shards {
        while !shard.opened.wait_for(1, Duration::from_millis(100)) {
            stopped |= signals.pending().next().is_some();
            if shard.drained.get() > 0 || stopped {
                break;
            }
        }
    }
    if stopped {
        // Nothing was written or served, and opening a long log takes its time.
        tracing::info!("stopping before the logs are open");
        process::exit(0);
    }
    let all_opened = shards.iter().all(|shard| shard.opened.get() > 0);
    verdict.advance(if all_opened { SERVE } else { GIVE_UP });
    if all_opened {
        started();
        let signal = signals.forever().next().and_then(signal_name).unwrap_or("a signal");
        tracing::info!("{signal}: draining; another one ends the node at once");
        thread::spawn(move || {
            if signals.forever().next().is_some() {
                tracing::warn!("stopping without having drained");
                process::exit(1);
            }
        });
    }
    for sender in &senders {
        // Fails only if the mailbox is full or the shard has ended: it cannot drain then.
        let _ = sender.try_send(ShardCommand::Drain);
    }
    finish(shards)
}

/// Starts and stops an executor, to find out whether this machine allows it.
///
/// # Errors
///
/// [`StartError::Executor`].
pub fn probe_executor() -> Result<(), StartError> {
    LocalExecutorBuilder::new(Placement::Unbound)
        .preempt_timer(PREEMPT_TIMER)
        .io_memory(RING_MEMORY_BYTES)
        .spawn(|| async {})
        .and_then(|executor| executor.join())
        .map_err(|error| StartError::Executor(error.to_string()))
}

/// All shards have opened. Each may write to its log and serve.
const SERVE: u64 = 1;

/// A shard could not open. The others end and do not change their logs.
const GIVE_UP: u64 = 2;

/// Interval at which an open shard checks whether the others are open.
const VERDICT_PAUSE: Duration = Duration::from_millis(1);

struct RunningShard {
    thread: ExecutorJoinHandle<Result<(), StartError>>,
    /// 1 once the shard's log and listeners are open.
    opened: Arc<Watermark>,
    /// 1 once the shard has ended.
    drained: Arc<Watermark>,
}

fn finish(shards: Vec<RunningShard>) -> Result<(), StartError> {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    for shard in &shards {
        let left = deadline.saturating_duration_since(Instant::now());
        if !shard.drained.wait_for(1, left) {
            tracing::error!("a shard did not drain in {DRAIN_TIMEOUT:?}: stopping all the same");
            process::exit(1);
        }
    }
    for shard in shards {
        shard.thread.join().map_err(|error| StartError::Executor(error.to_string()))??;
    }
    Ok(())
}

/// Fails if another process listens on an address. The executor's listeners share their port
/// (`SO_REUSEPORT`), so connections would go to both processes.
///
/// Waits up to [`PORT_TIMEOUT`] for a port in use: when a process ends, the kernel closes the
/// listeners of its rings in the background.
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
        // Closed connections of an earlier process keep the port busy for a minute. Only a process
        // that accepts connections is a conflict.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match TcpStream::connect_timeout(&address, PORT_TIMEOUT) {
                Ok(_) => Err(error),
                Err(_) => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}

/// Fails if the log holds a timestamp more than `max_offset_us` ahead of this clock, the limit for
/// messages of peers. This clock is then wrong now, or was wrong before. New timestamps would still
/// be above those in the log, but each commit would wait as long as the clock lags before it is
/// acknowledged.
fn check_clock(wall: Interval, last_ts: Timestamp, max_offset_us: u64) -> Result<(), StartError> {
    let behind_us = wall.beyond_us(last_ts);
    if behind_us > max_offset_us {
        return Err(StartError::ClockBehind { behind_ms: behind_us / 1_000, last_ts });
    }
    Ok(())
}

/// Raises the limit on open files as far as this process may. Connections must not take the files
/// that the logs need.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Fails only if the limit cannot be raised. Then it stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Returns how many connections a listener may have open: at most half of the files of the process
/// are shared by all listeners.
fn max_connections(shards: u16) -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let share = files / 2 / (2 * u64::from(shards));
    usize::try_from(share).unwrap_or(usize::MAX).clamp(1, MAX_CONNECTIONS)
}

/// Aborts the process on any panic. Otherwise a panic in a task would end one executor, and the
/// others would continue without it.
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
    secrets: Vec<ClusterSecret>,
    data_dir: Arc<DataDir>,
    shard: ShardId,
    siblings: Vec<Sender<ShardCommand>>,
    commands: Receiver<ShardCommand>,
    opened: Arc<Watermark>,
    /// [`SERVE`] once all shards have opened, or [`GIVE_UP`] once one has failed to.
    verdict: Arc<Watermark>,
    drained: Arc<Watermark>,
}

fn spawn_shard(
    start: ShardThread,
) -> Result<ExecutorJoinHandle<Result<(), StartError>>, StartError> {
    // Pin shards only if each has a core of its own. Where nodes share cores, the kernel schedules
    // better.
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
    let ShardThread {
        config,
        secrets,
        data_dir,
        shard,
        siblings,
        mut commands,
        opened,
        verdict,
        ..
    } = start;
    let at = PeerAddress { node: config.node, shard };
    let clock = KernelClock::new(config.clock.source.into(), config.clock.bound_us);

    let now = clock.now();
    let shard_config = ShardConfig {
        at,
        cluster_id: config.cluster_id,
        nodes: config.client_addresses(),
        shape: Some(config.bootstrap()),
        max_offset_us: config.clock.max_offset_us,
        random_seed: now.wall.latest_us ^ (u64::from(at.node.0) << 32) ^ (u64::from(shard.0) << 48),
        checkpoint_bytes: config.log.checkpoint_bytes,
        log_reserve_bytes: LOG_RESERVE_BYTES,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        max_message_bytes: palisade_replication::raft::DEFAULT_MESSAGE_BYTES,
        turn_work: TURN_WORK,
        planted: config.planted(),
    };
    let peers: BTreeMap<PeerAddress, Rc<Outbound>> = config
        .nodes
        .iter()
        .filter(|node| node.node != config.node)
        .map(|node| (PeerAddress { node: node.node, shard }, Outbound::unconnected()))
        .collect();
    let ranges = config.bootstrap().range_map();
    let runtime = Runtime::recover(
        shard_config,
        ranges,
        || clock.now(),
        |replayed| {
            let (options, progress) = (config.log_options(shard), LogProgress::new(at));
            let log_dir = data_dir.log_dir(shard.0);
            Log::open(&log_dir, options, &|done| progress.report(done), |record| {
                replayed.visit(record);
            })
        },
    )?;
    check_clock(clock.now().wall, runtime.shard().logged_ts(), config.clock.max_offset_us)?;
    let [client_address, peer_address] = listen_addresses(&config, shard);
    let listen = |address| {
        TcpListener::bind(address)
            .map_err(|error| StartError::Listen { address, source: error.into() })
    };
    let (client_listener, peer_listener) = (listen(client_address)?, listen(peer_address)?);
    // Write nothing before all shards accept the configuration. A shard with a new log would record
    // a shape that another shard refuses.
    opened.advance(1);
    while verdict.get() == 0 {
        glommio::timer::sleep(VERDICT_PAUSE).await;
    }
    if verdict.get() == GIVE_UP {
        return Ok(());
    }
    let executor = Executor::new(at, clock, runtime, siblings, peers.clone());

    // In the default latency class, tasks run late when the executor is busy.
    let tasks = glommio::executor().create_task_queue(
        Shares::Static(1000),
        Latency::Matters(PREEMPT_TIMER),
        "shard",
    );
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        glommio::spawn_local_into(task, tasks).expect("the task queue was made just now")
    };
    let most = max_connections(config.shards);
    let gate = Rc::new(Gate::new(config.cluster_id, at, &secrets));
    let for_clients = (executor.clone(), gate.clone());
    spawn(Box::pin(accept(client_listener, tasks, most, move |stream| {
        let (executor, gate) = for_clients.clone();
        serve_client(executor, gate, tasks, stream)
    })))
    .detach();
    let for_peers = (executor.clone(), gate.clone());
    spawn(Box::pin(accept(peer_listener, tasks, most, move |stream| {
        let (executor, gate) = for_peers.clone();
        serve_peer(executor, gate, stream)
    })))
    .detach();
    for (to, outbound) in peers {
        let address = config.peer_address(to).expect("peers were made from the config");
        let dial = dial_peer(executor.clone(), gate.clone(), to, address, outbound);
        spawn(Box::pin(dial)).detach();
    }
    spawn(Box::pin(sync_log(
        executor.clone(),
        config.log.backend.into(),
        config.fail_sync_after(),
    )))
    .detach();
    let ticking = executor.clone();
    spawn(Box::pin(async move {
        loop {
            ticking.inbox.push(Input::Tick);
            glommio::timer::sleep(if ticking.is_quiet() { QUIET_TICK } else { TICK }).await;
        }
    }))
    .detach();
    let obeying = executor.clone();
    spawn(Box::pin(async move {
        let mut batch = Vec::new();
        while commands.recv_batch(&mut batch, MAILBOX_CAPACITY).await > 0 {
            for command in batch.drain(..) {
                match command {
                    ShardCommand::Install(descriptor) => {
                        obeying.inbox.push(Input::Install(descriptor));
                    }
                    ShardCommand::Drain => obeying.inbox.push(Input::Drain),
                    // Fails if the asker has given up.
                    ShardCommand::Report(reply) => drop(reply.send(obeying.report())),
                    ShardCommand::Ping(reply) => drop(reply.send(())),
                }
            }
        }
    }))
    .detach();
    let running = executor.clone();
    spawn(Box::pin(async move { running.run().await })).await;
    Ok(())
}
