//! The parameters of a run, all of them drawn from its seed.

use std::fmt;

use palisade_control::Bootstrap;
use palisade_replication::Planted;
use palisade_shard::{TURN_WORK, TestFault};
use palisade_wire::{Mode, NodeId};

/// Returns an independent stream of random numbers for one purpose. Drawing more numbers from one
/// stream does not change the others.
pub(crate) fn stream(seed: u64, name: &str) -> fastrand::Rng {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name.as_bytes());
    let salt = u64::from(hasher.finalize());
    fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (salt << 32 | salt))
}

/// A kind of fault that a run may contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A node crashes, loses a random part of its unsynced log, and restarts later.
    Crash,
    /// A node stops as planned: it hands over its leaderships and drains first. It restarts later.
    PlannedStop,
    /// All nodes lose power at once.
    PowerLoss,
    /// A node handles no events for a while.
    Pause,
    /// A partition splits the nodes into two sets.
    Partition,
    /// The link from one node to another is cut, in one direction.
    OneWay,
    /// A partition splits the nodes into two sets, but one node reaches both.
    Bridge,
    /// No message leaves a node to its peers for about as long as a promise lasts.
    Silence,
    /// Requests from clients to a node are lost, or its replies to them.
    CutClients,
    /// Syncs of a node are slow.
    SlowDisk,
    /// The disk of a node is full: its logs have the files that they had before.
    FullDisk,
    /// A sync of a node fails, so the node crashes.
    FailedSync,
    /// A node's wall clock jumps within its bound.
    ClockJump,
    /// A node's wall clock reports a larger error bound for a while, up to `max_offset_us` or more.
    UnsureClock,
    /// A node crashes, a durable bit of its log is flipped, and the node tries to restart.
    BitFlip,
    /// A node crashes and restarts without its logs.
    Wipe,
    /// The operator transfers leadership or changes the members of a group.
    Operator,
}

/// All kinds of faults that a seed may draw.
pub const ALL_FAULTS: [FaultKind; 17] = [
    FaultKind::Crash,
    FaultKind::PlannedStop,
    FaultKind::PowerLoss,
    FaultKind::Pause,
    FaultKind::Partition,
    FaultKind::OneWay,
    FaultKind::Bridge,
    FaultKind::Silence,
    FaultKind::CutClients,
    FaultKind::SlowDisk,
    FaultKind::FullDisk,
    FaultKind::FailedSync,
    FaultKind::ClockJump,
    FaultKind::UnsureClock,
    FaultKind::BitFlip,
    FaultKind::Wipe,
    FaultKind::Operator,
];

/// All parameters of a run. Times are microseconds of true time, and averages are means.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The seed of all random streams of the run.
    pub seed: u64,
    /// Number of nodes.
    pub nodes: u16,
    /// Number of shards of each node.
    pub shards: u16,
    /// Number of ranges of each mode.
    pub ranges_per_mode: u16,
    /// Puts all ranges in one mode, which then has twice as many.
    pub only: Option<Mode>,
    /// How long faults are injected.
    pub fault_us: u64,
    /// How long the cluster may take after the faults to work again.
    pub heal_us: u64,

    /// Average interval between two faults.
    pub fault_interval_us: u64,
    /// Average interval between two changes by the operator, if [`FaultKind::Operator`] is enabled.
    pub operator_interval_us: u64,
    /// Average duration of a fault.
    pub fault_length_us: u64,
    /// The kinds of faults that are injected.
    pub faults: Vec<FaultKind>,

    /// The shortest delay of a message.
    pub delay_us: u64,
    /// Average delay in addition to `delay_us`, roughly.
    pub delay_tail_us: u64,
    /// Messages lost, in parts of ten thousand.
    pub loss: u32,
    /// Messages between nodes delivered twice, and requests of clients whose connection breaks soon
    /// after them, in parts of ten thousand.
    pub duplication: u32,
    /// Messages between nodes delivered once more up to a minute later, in parts of a million.
    pub stale: u32,

    /// Shortest duration of a sync. The longest is three times that.
    pub sync_us: u64,
    /// The error bound of the wall clocks.
    pub clock_bound_us: u64,
    /// A node whose wall clock reports a larger error bound serves nothing.
    pub max_offset_us: u64,
    /// Fault: wall clocks are wrong by up to this much beyond their error bound.
    pub clock_lie_us: u64,
    /// Largest drift of a monotonic clock, fast or slow, in parts per million.
    pub drift_ppm: u64,

    /// Number of clients: each is a router of production with its connections.
    pub clients: u32,
    /// Number of callers, spread over the clients. Each has one operation at a time.
    pub callers: u32,
    /// Number of keys for puts and gets.
    pub keys: u32,
    /// Average interval between two operations of a caller.
    pub think_us: u64,
    /// The time limit of each call.
    pub timeout_us: u64,
    /// Requests that a client has in flight at a shard at first, at most.
    pub first_window: u32,
    /// Share of reads among the operations on keys and pairs, in percent.
    pub read_percent: u32,
    /// Share of operations on pairs, two keys that change together, among operations that are
    /// neither transactions nor snapshots, in percent.
    pub pair_percent: u32,
    /// Share of transactions of several steps among all operations, in percent.
    pub transaction_percent: u32,
    /// Share of reads of several ranges at one timestamp among operations other than transactions,
    /// in percent.
    pub snapshot_percent: u32,
    /// Number of cells of each range, which transactions and snapshots use: one to four.
    pub cells: usize,
    /// Bytes of a value, at least 8.
    pub value_bytes: usize,
    /// Bytes by which a range's log grows between checkpoints.
    pub checkpoint_bytes: u64,
    /// Bytes of a segment of the log.
    pub segment_bytes: u64,
    /// Limit on the bytes of a log.
    pub log_limit_bytes: u64,
    /// The reserve of a log, from which all other limits follow.
    pub log_reserve_bytes: u64,
    /// Limit on the payload bytes in one message of a Raft group, beyond its first entry.
    pub max_message_bytes: usize,
    /// Longest duration of a turn. Most turns take much less.
    pub turn_us: u64,
    /// One turn in this many is stopped between the readings of its two clocks, while faults are
    /// injected and [`FaultKind::Pause`] is enabled.
    pub stopped_turns: u32,
    /// Work that a turn may do, in units of the shard.
    pub turn_work: u32,
    /// Divides the speed of the machines: the work of a turn takes this many times as long.
    pub slowness: u64,
    /// Bytes of a part of a snapshot.
    pub snapshot_part_bytes: usize,
    /// A paused machine is stopped together with its clocks, which Palisade does not promise to
    /// survive.
    pub suspends: bool,
    /// A rule that the production code breaks on purpose.
    pub planted: Planted<TestFault>,
    /// Fault: recovery truncates a log at the first damage instead of refusing it.
    pub trust_damage: bool,
    /// Fault: the oldest segments of a long log are released even if they are needed.
    pub cut_early: bool,
    /// Fault: a turn reads its monotonic clock before its wall clock.
    pub monotonic_first: bool,
}

impl Parameters {
    /// Draws a run with faults from a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = stream(seed, "parameters");
        let nodes = *random.choice(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]).expect("there are some");
        // Each kind of fault is left out of some runs, so that other kinds occur without it.
        let faults = ALL_FAULTS.into_iter().filter(|_| random.u8(0..3) > 0).collect();
        let calm_network = random.u8(0..3) == 0;
        // Many clients on few keys find bugs that few clients on many keys do not.
        let crowded = random.u8(0..3) == 0;
        // Small bounds are as frequent as large ones, because large bounds slow down the rest.
        let clock_bound_us = 50 << random.u32(0..13);
        let log_reserve_bytes = 50_000 << random.u32(0..4);
        Self {
            seed,
            nodes,
            shards: random.u16(1..=2),
            ranges_per_mode: random.u16(1..=3),
            only: *random
                .choice(&[None, None, Some(Mode::Raft), Some(Mode::Chain)])
                .expect("there are some"),
            fault_us: random.u64(60..180) * 1_000_000,
            heal_us: 60_000_000,
            fault_interval_us: random.u64(300..6_000) * 1_000,
            operator_interval_us: random.u64(200..10_000) * 1_000,
            fault_length_us: random.u64(100..4_000) * 1_000,
            faults,
            // Some clusters span regions.
            delay_us: if random.u8(0..6) == 0 {
                random.u64(10_000..45_000)
            } else {
                random.u64(20..2_000)
            },
            delay_tail_us: random.u64(10..5_000),
            loss: if calm_network { 0 } else { random.u32(0..1_500) },
            duplication: if calm_network { 0 } else { random.u32(0..800) },
            stale: if calm_network { 0 } else { random.u32(0..2_000) },
            sync_us: random.u64(30..10_000),
            clock_bound_us,
            max_offset_us: clock_bound_us * random.u64(2..8),
            clock_lie_us: 0,
            drift_ppm: random.u64(0..500),
            clients: random.u32(1..=if crowded { 8 } else { 4 }),
            callers: if crowded { random.u32(6..=12) } else { random.u32(1..=6) },
            keys: if crowded { random.u32(1..=3) } else { random.u32(1..=24) },
            think_us: random.u64(if crowded { 1..20 } else { 5..300 }) * 1_000,
            timeout_us: random.u64(500..10_000) * 1_000,
            read_percent: random.u32(10..98),
            pair_percent: random.u32(0..60),
            transaction_percent: random.u32(0..70),
            snapshot_percent: random.u32(0..30),
            cells: random.usize(1..=4),
            value_bytes: random.usize(8..300),
            checkpoint_bytes: random.u64(1_000..60_000),
            segment_bytes: random.u64(500..30_000),
            log_limit_bytes: log_reserve_bytes / 16 * 23 + (300_000 << random.u32(0..4)),
            log_reserve_bytes,
            max_message_bytes: if random.bool() { 1 << 20 } else { random.usize(1..2_000) },
            turn_us: if random.u8(0..3) == 0 { random.u64(1_000..40_000) } else { 100 },
            stopped_turns: 4_096,
            snapshot_part_bytes: 1 << random.u32(6..18),
            turn_work: if random.bool() { TURN_WORK } else { 16 << random.u32(0..10) },
            slowness: 1 << random.u32(0..7),
            first_window: 1 << random.u32(0..6),
            suspends: false,
            planted: Planted::default(),
            trust_damage: false,
            cut_early: false,
            monotonic_first: false,
        }
    }

    /// Returns the shape of the cluster.
    pub(crate) fn shape(&self) -> Bootstrap {
        Bootstrap {
            nodes: (0..self.nodes).map(NodeId).collect(),
            shards: self.shards,
            ranges_per_mode: self.ranges_per_mode,
            only: self.only,
        }
    }

    /// Returns the parameters of a run without faults, for a script to inject its own.
    pub fn quiet(
        seed: u64,
        nodes: u16,
        shards: u16,
        ranges_per_mode: u16,
        only: Option<Mode>,
    ) -> Self {
        Self {
            nodes,
            shards,
            ranges_per_mode,
            only,
            fault_us: 0,
            faults: Vec::new(),
            delay_us: 100,
            delay_tail_us: 100,
            loss: 0,
            duplication: 0,
            stale: 0,
            sync_us: 100,
            clock_bound_us: 1_000,
            max_offset_us: 500_000,
            drift_ppm: 0,
            clients: 2,
            callers: 2,
            keys: 8,
            think_us: 20_000,
            timeout_us: 3_000_000,
            first_window: 1_024,
            read_percent: 50,
            pair_percent: 20,
            transaction_percent: 20,
            snapshot_percent: 10,
            cells: 3,
            value_bytes: 32,
            checkpoint_bytes: 1 << 20,
            segment_bytes: 1 << 20,
            log_limit_bytes: 64 << 20,
            log_reserve_bytes: 1 << 20,
            max_message_bytes: 1 << 20,
            turn_us: 100,
            turn_work: TURN_WORK,
            slowness: 1,
            snapshot_part_bytes: 1 << 18,
            ..Self::draw(seed)
        }
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        writeln!(
            f,
            "cluster: {} nodes of {} shards, {} ranges of each mode, only {:?}",
            self.nodes, self.shards, self.ranges_per_mode, self.only
        )?;
        writeln!(
            f,
            "faults: {} ms of them, one in {} ms for {} ms, a change in {} ms: {:?}",
            self.fault_us / 1_000,
            self.fault_interval_us / 1_000,
            self.fault_length_us / 1_000,
            self.operator_interval_us / 1_000,
            self.faults
        )?;
        writeln!(
            f,
            "network: {} us and {} us more, loss {}, duplication {} of 10,000, stale {} of 1,000,000",
            self.delay_us, self.delay_tail_us, self.loss, self.duplication, self.stale
        )?;
        writeln!(
            f,
            "machines: sync {} us, wall clock within {} us, drift {} ppm, checkpoint at {} bytes in parts of {}, segments of {}, up to {} bytes of them and {} in reserve, messages of {}, turns of up to {} us and {} units of work, {} times slower",
            self.sync_us,
            self.clock_bound_us,
            self.drift_ppm,
            self.checkpoint_bytes,
            self.snapshot_part_bytes,
            self.segment_bytes,
            self.log_limit_bytes,
            self.log_reserve_bytes,
            self.max_message_bytes,
            self.turn_us,
            self.turn_work,
            self.slowness
        )?;
        write!(
            f,
            "clients: {} with {} callers on {} keys of {} bytes, {}% gets, {}% on pairs, {}% \
             transactions and {}% snapshots of {} cells, {} ms apart, given up after {} ms, \
             {} in flight",
            self.clients,
            self.callers,
            self.keys,
            self.value_bytes,
            self.read_percent,
            self.pair_percent,
            self.transaction_percent,
            self.snapshot_percent,
            self.cells,
            self.think_us / 1_000,
            self.timeout_us / 1_000,
            self.first_window
        )?;
        let Self { planted, trust_damage, cut_early, clock_lie_us, monotonic_first, .. } = self;
        let planted = planted.get();
        if planted.is_some() || *trust_damage || *cut_early || *clock_lie_us > 0 || *monotonic_first
        {
            write!(
                f,
                "\nplanted: {planted:?}, damage trusted: {trust_damage}, logs cut early: \
                 {cut_early}, clocks wrong by {clock_lie_us} us, monotonic clock read first: \
                 {monotonic_first}"
            )?;
        }
        Ok(())
    }
}
