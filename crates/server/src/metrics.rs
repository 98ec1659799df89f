//! The metrics of a node, in the text format of Prometheus.

use std::{collections::BTreeMap, fmt};

use palisade_wire::{Admission, Durations, PeerAddress, PeerStatus, Role, ShardStatus};
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
    /// True if the error bound of the clock is too large to serve.
    pub(crate) is_fenced: bool,
    pub(crate) is_draining: bool,
    pub(crate) connections: usize,
    /// Bytes of answers that wait for clients to read.
    pub(crate) client_queued_bytes: usize,
    /// Bytes that wait to be sent to each peer.
    pub(crate) peer_queued_bytes: BTreeMap<PeerAddress, usize>,
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

    /// Encodes a value of each link to a peer that has one.
    fn peer_gauge(
        &self,
        out: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        value_of: impl Fn(&ShardReport, &PeerStatus) -> Option<u64>,
    ) -> fmt::Result {
        let value_of = &value_of;
        let values = self.0.iter().flat_map(|shard| {
            shard.status.peers.iter().filter_map(move |peer| {
                let value = value_of(shard, peer)?;
                Some((labels(shard, "peer", peer.at.node.to_string()), value))
            })
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
            shard.status.state_bytes
        })
    }

    fn encode_requests(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(out, ("requests", "Requests received from clients"), |shard| {
            shard.status.requests
        })?;
        let rejections = self.0.iter().flat_map(|shard| {
            let counts = shard.status.rejections.iter();
            counts.map(move |(reason, count)| (labels(shard, "reason", reason.clone()), *count))
        });
        let name = ("rejections", "Requests rejected");
        values_of(out, name, MetricType::Counter, rejections)?;
        let stages = self.0.iter().flat_map(|shard| {
            let stages = shard.status.stages.iter();
            stages.map(|(stage, taken)| (labels(shard, "stage", stage.name().to_owned()), taken))
        });
        histogram(out, ("stage_seconds", "Time that requests spend in a stage"), stages)
    }

    fn encode_replication(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.counter(out, ("applied_entries", "Entries applied"), |shard| {
            shard.status.applied_entries
        })?;
        self.gauge(
            out,
            ("unapplied_entries", "Committed entries that are not applied"),
            |shard| shard.status.unapplied_entries,
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
        let oldest = ("oldest_commit_microseconds", "Age of the oldest commit that is not applied");
        self.gauge(out, oldest, |shard| shard.status.oldest_commit_us)?;
        let queued = ("peer_queued_bytes", "Bytes that wait to be sent");
        self.peer_gauge(out, queued, |shard, peer| {
            Some(*shard.peer_queued_bytes.get(&peer.at)? as u64)
        })?;
        let silent = ("peer_silent_microseconds", "Age of the latest heartbeat with an echo");
        self.peer_gauge(out, silent, |_, peer| peer.silent_us)?;
        let entries = ("peer_lag_entries", "Most entries of a range that a follower lacks");
        self.peer_gauge(out, entries, |_, peer| Some(peer.lag_entries))?;
        let bytes = ("peer_lag_bytes", "The payload of these entries");
        self.peer_gauge(out, bytes, |_, peer| Some(peer.lag_bytes))
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
        let buckets = upper.zip(others.iter().copied()).chain([(f64::INFINITY, *last)]);
        let (sum, count) = (durations.sum_us as f64 / 1_000_000.0, durations.count());
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
