//! The metrics of a node, in the text format of Prometheus.

use std::{collections::BTreeMap, fmt};

use palisade_shard::{Durations, Metrics};
use palisade_wire::{Admission, PeerAddress, Role, ShardStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, text::encode},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};
use rustix::param::{clock_ticks_per_second, page_size};

/// What a shard reports for one scrape.
#[derive(Debug)]
pub(crate) struct ShardReport {
    pub(crate) status: ShardStatus,
    pub(crate) metrics: Metrics,
    pub(crate) syncs: Durations,
    pub(crate) state_bytes: u64,
    /// Committed entries that are not applied, over all replicas.
    pub(crate) unapplied: u64,
    /// True if the error bound of the clock is too large to serve.
    pub(crate) is_fenced: bool,
    pub(crate) is_draining: bool,
    pub(crate) connections: usize,
    /// Bytes of answers that wait for clients to read.
    pub(crate) client_queued_bytes: usize,
    pub(crate) peers: BTreeMap<PeerAddress, PeerReport>,
}

/// What a shard reports of its link to a peer.
#[derive(Debug, Default)]
pub(crate) struct PeerReport {
    pub(crate) queued_bytes: usize,
    /// The most entries that the peer lacks of a group that this shard leads.
    pub(crate) lag_entries: u64,
}

impl ShardReport {
    /// Returns why the shard does not serve all of its ranges, or `None` if it does.
    pub(crate) fn not_ready(&self) -> Option<String> {
        let at = self.status.at;
        if self.is_draining {
            return Some(format!("{at} drains"));
        }
        if self.status.admission != Admission::Admitted {
            return Some(format!("{at} is not admitted: {:?}", self.status.admission));
        }
        if self.is_fenced {
            return Some(format!("{at} does not trust its clock"));
        }
        let waiting = self.status.ranges.iter();
        let waiting = waiting.filter(|range| !range.ready && range.role != Role::Removed);
        match waiting.count() {
            0 => None,
            ranges => Some(format!("{at}: {ranges} ranges have no leader, or no whole chain")),
        }
    }
}

type Labels = Vec<(&'static str, String)>;

/// Reports of all shards, encoded at once.
#[derive(Debug)]
struct Scrape(Vec<ShardReport>);

/// Returns the metrics of a node.
pub(crate) fn text(shards: Vec<ShardReport>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("palisade");
    registry.register_collector(Box::new(Scrape(shards)));
    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}

impl Scrape {
    fn gauge(
        &self,
        out: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value_of: impl Fn(&ShardReport) -> u64,
    ) -> fmt::Result {
        let values = self.0.iter().map(|shard| (shard_labels(shard), value_of(shard)));
        values_of(out, (name, help), MetricType::Gauge, values)
    }

    fn counter(
        &self,
        out: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value_of: impl Fn(&ShardReport) -> u64,
    ) -> fmt::Result {
        let values = self.0.iter().map(|shard| (shard_labels(shard), value_of(shard)));
        values_of(out, (name, help), MetricType::Counter, values)
    }

    fn peer_gauge(
        &self,
        out: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value_of: impl Fn(&PeerReport) -> u64,
    ) -> fmt::Result {
        let peers = self.0.iter().flat_map(|shard| shard.peers.iter().map(move |p| (shard, p)));
        let values = peers.map(|(shard, (at, peer))| {
            (labels(shard, "peer", at.node.to_string()), value_of(peer))
        });
        values_of(out, (name, help), MetricType::Gauge, values)
    }

    fn encode_log(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(out, ("log_written_bytes", "Bytes appended to the log"), |shard| {
            shard.status.log_bytes
        })?;
        self.counter(out, ("log_records", "Records appended to the log"), |shard| {
            shard.status.log_entries
        })?;
        self.gauge(out, ("log_left_bytes", "Bytes that clients may still write"), |shard| {
            shard.status.log_left_bytes
        })?;
        self.gauge(out, ("state_bytes", "Log that a rewrite of all data takes"), |shard| {
            shard.state_bytes
        })?;
        let syncs = self.0.iter().map(|shard| (shard_labels(shard), &shard.syncs));
        histogram(out, ("log_sync_seconds", "Duration of a sync of the log"), syncs)
    }

    fn encode_requests(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(out, ("requests", "Requests received from clients"), |shard| {
            shard.status.requests
        })?;
        let rejections = self.0.iter().flat_map(|shard| {
            let counts = shard.metrics.rejections.iter();
            counts.map(move |(why, count)| (labels(shard, "reason", (*why).to_owned()), *count))
        });
        let name = ("rejections", "Requests rejected");
        values_of(out, name, MetricType::Counter, rejections)?;
        let stages = self.0.iter().flat_map(|shard| {
            let Metrics { queue, lock_wait, replicate, read, commit_wait, .. } = &shard.metrics;
            let stages = [
                ("queue", queue),
                ("lock_wait", lock_wait),
                ("replicate", replicate),
                ("read", read),
                ("commit_wait", commit_wait),
            ];
            stages.map(|(stage, durations)| (labels(shard, "stage", stage.to_owned()), durations))
        });
        histogram(out, ("stage_seconds", "Time that requests spend in a stage"), stages)
    }

    fn encode_replication(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(out, ("applied_entries", "Entries applied"), |shard| shard.metrics.applied)?;
        self.gauge(
            out,
            ("unapplied_entries", "Committed entries that are not applied"),
            |shard| shard.unapplied,
        )?;
        self.gauge(out, ("uncommitted_entries", "Entries that are not committed"), |shard| {
            let ranges = shard.status.ranges.iter();
            ranges.map(|range| range.last_index.saturating_sub(range.commit_index)).sum()
        })?;
        self.gauge(out, ("ranges", "Replicas on the shard"), |shard| {
            shard.status.ranges.len() as u64
        })?;
        self.gauge(
            out,
            ("ranges_led", "Ranges that the shard leads, or is the head of"),
            |shard| {
                let leads = |role| matches!(role, Role::Leader | Role::Head | Role::Single);
                shard.status.ranges.iter().filter(|range| leads(range.role)).count() as u64
            },
        )?;
        self.gauge(
            out,
            ("ranges_not_ready", "Ranges without a leader or a whole chain"),
            |shard| shard.status.ranges.iter().filter(|range| !range.ready).count() as u64,
        )?;
        self.peer_gauge(out, ("peer_queued_bytes", "Bytes that wait to be sent"), |peer| {
            peer.queued_bytes as u64
        })?;
        self.peer_gauge(out, ("peer_lag_entries", "Most entries that a follower lacks"), |peer| {
            peer.lag_entries
        })
    }

    fn encode_node(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.gauge(out, ("connections", "Connections of clients"), |shard| {
            shard.connections as u64
        })?;
        self.gauge(out, ("client_queued_bytes", "Answers that clients have not read"), |shard| {
            shard.client_queued_bytes as u64
        })?;
        self.gauge(out, ("clock_bound_microseconds", "Error bound of the clock"), |shard| {
            shard.status.clock_bound_us
        })?;
        self.counter(out, ("clock_rejections", "Messages from clocks too far ahead"), |shard| {
            shard.status.clock_rejections
        })?;
        let (resident_bytes, cpu_seconds) = own_process();
        let mut resident = out.encode_descriptor(
            "resident_memory_bytes",
            "Memory of the process",
            None,
            MetricType::Gauge,
        )?;
        resident.encode_gauge(&resident_bytes)?;
        let mut cpu = out.encode_descriptor(
            "cpu_seconds",
            "CPU time of the process",
            None,
            MetricType::Counter,
        )?;
        cpu.encode_counter(&cpu_seconds, None::<&Exemplar<Labels, f64>>)
    }
}

impl Collector for Scrape {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_requests(&mut out)?;
        self.encode_log(&mut out)?;
        self.encode_replication(&mut out)?;
        self.encode_node(&mut out)
    }
}

fn shard_labels(shard: &ShardReport) -> Labels {
    vec![("shard", shard.status.at.shard.0.to_string())]
}

fn labels(shard: &ShardReport, name: &'static str, value: String) -> Labels {
    vec![("shard", shard.status.at.shard.0.to_string()), (name, value)]
}

fn values_of(
    out: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    kind: MetricType,
    values: impl Iterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let is_counter = matches!(kind, MetricType::Counter);
    let mut metric = out.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        let mut of_labels = metric.encode_family(&labels)?;
        if is_counter {
            of_labels.encode_counter(&value, None::<&Exemplar<Labels, f64>>)?;
        } else {
            of_labels.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
    }
    Ok(())
}

fn histogram<'a, L: EncodeLabelSet>(
    out: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl Iterator<Item = (L, &'a Durations)>,
) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, durations) in values {
        let (last, others) = durations.counts.split_last().expect("there are buckets");
        let upper = (0_i32..).map(|bucket| 2_f64.powi(bucket) / 1_000_000.0);
        let buckets = upper.zip(others.iter().copied()).chain([(f64::MAX, *last)]);
        let (sum, count) = (durations.sum_us as f64 / 1_000_000.0, durations.counts.iter().sum());
        metric.encode_family(&labels)?.encode_histogram::<Labels>(
            sum,
            count,
            &buckets.collect::<Vec<_>>(),
            None,
        )?;
    }
    Ok(())
}

/// Returns the resident memory of this process in bytes, and its CPU time in seconds. Both are 0
/// if `/proc` cannot be read.
fn own_process() -> (i64, f64) {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let statm = read("/proc/self/statm");
    let resident: i64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    let stat = read("/proc/self/stat");
    // The name of the program, in parentheses, may contain spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let times = fields.split(' ').skip(12).take(2);
    let ticks: u64 = times.filter_map(|field| field.parse::<u64>().ok()).sum();
    let page = i64::try_from(page_size()).unwrap_or(4096);
    (resident * page, ticks as f64 / clock_ticks_per_second() as f64)
}
