//! The figures that a load measures while it runs.

use std::time::Duration;

use hdrhistogram::Histogram;
use palisade_history::Operation;

/// The longest latency that is recorded, in microseconds. A longer one counts as this.
const MAX_LATENCY_US: u64 = 120_000_000;

/// Length of a bucket of the time series.
pub(crate) const BUCKET: Duration = Duration::from_millis(100);

/// A point of the run at which the caller of [`run`](crate::run) is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The warm-up is over. Measuring begins when the callback returns.
    MeasuringBegins,
    /// Measuring has ended. Operations that end later do not count.
    MeasuringEnds,
}

/// Percentiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// The median.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The 99.9th percentile.
    pub p999: u64,
    /// The longest latency.
    pub max: u64,
}

/// The figures of 100 ms of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeBucket {
    /// Start of the bucket, in seconds since measuring began.
    pub at_s: f64,
    /// Operations that succeeded in the bucket, per second.
    pub ops_per_s: f64,
    /// Latency of these operations.
    pub latency_us: Percentiles,
}

/// The operations of a load that are due or in flight at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Operations that have fallen due and were not sent; 0 in a closed loop.
    pub unsent: u64,
    /// Operations that were sent and not answered.
    pub unanswered: u64,
}

/// The measurements of a load.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Length of the measured time, in seconds.
    pub seconds: f64,
    /// Operations that succeeded.
    pub ops: u64,
    /// Operations that failed, or whose outcome is unknown.
    pub errors: u64,
    /// The backlog when measuring ended. A closed loop has one unanswered operation per client.
    pub backlog: Backlog,
    /// Latency of all operations that succeeded.
    pub latency_us: Percentiles,
    /// Latency of the puts.
    pub put_latency_us: Percentiles,
    /// The part of the commit wait of puts that remained after replication.
    pub commit_wait_us: Percentiles,
    /// Latency of the gets, if there were any.
    pub get_latency_us: Option<Percentiles>,
    /// The longest time without a successful put on any one range, if there were puts.
    pub longest_gap: Option<Duration>,
    /// The measured time as a series of buckets of 100 ms.
    pub series: Vec<TimeBucket>,
    /// Every operation, warm-up and preload included.
    pub history: Vec<Operation>,
}

/// Gathers figures while the load runs.
pub(crate) struct Recorder {
    begin_ns: Option<u64>,
    end_ns: Option<u64>,
    puts: Histogram<u64>,
    waits: Histogram<u64>,
    gets: Histogram<u64>,
    errors: u64,
    /// Operations with a longer latency are errors.
    limit_us: u64,
    backlog: Backlog,
    /// For each range, the time of the last successful put.
    last_put_ns: Vec<u64>,
    /// The longest time without a successful put on any one range.
    longest_gap_ns: u64,
    buckets: Vec<Histogram<u32>>,
    pub(crate) history: Vec<Operation>,
}

impl Recorder {
    pub(crate) fn new(ranges: usize, history: Vec<Operation>) -> Self {
        Self {
            begin_ns: None,
            end_ns: None,
            puts: histogram(),
            waits: histogram(),
            gets: histogram(),
            errors: 0,
            limit_us: u64::MAX,
            backlog: Backlog::default(),
            last_put_ns: vec![0; ranges],
            longest_gap_ns: 0,
            buckets: Vec::new(),
            history,
        }
    }

    pub(crate) fn limit(&mut self, limit: Duration) {
        self.limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    }

    pub(crate) fn begin(&mut self, now_ns: u64) {
        self.begin_ns = Some(now_ns);
        self.last_put_ns.fill(now_ns);
    }

    pub(crate) fn end(&mut self, now_ns: u64, backlog: Backlog) {
        self.end_ns = Some(now_ns);
        self.backlog = backlog;
        for last_ns in &self.last_put_ns {
            self.longest_gap_ns = self.longest_gap_ns.max(now_ns.saturating_sub(*last_ns));
        }
    }

    /// Records how long the response to a put waited for its timestamp to pass.
    pub(crate) fn waited(&mut self, waited: Duration) {
        if self.begin_ns.is_some() && self.end_ns.is_none() {
            let waited_us = u64::try_from(waited.as_micros()).unwrap_or(MAX_LATENCY_US);
            self.waits.saturating_record(waited_us.min(MAX_LATENCY_US));
        }
    }

    /// Records an operation that ended. Its latency counts from `since_ns`.
    pub(crate) fn ended(&mut self, range: usize, put: bool, ok: bool, since_ns: u64, now_ns: u64) {
        let (Some(begin_ns), None) = (self.begin_ns, self.end_ns) else { return };
        let latency_us = (now_ns.saturating_sub(since_ns) / 1_000).clamp(1, MAX_LATENCY_US);
        if !ok || latency_us > self.limit_us {
            self.errors += 1;
            return;
        }
        if put {
            self.puts.saturating_record(latency_us);
            let gap_ns = now_ns.saturating_sub(self.last_put_ns[range]);
            self.longest_gap_ns = self.longest_gap_ns.max(gap_ns);
            self.last_put_ns[range] = now_ns;
        } else {
            self.gets.saturating_record(latency_us);
        }
        let bucket = (u128::from(now_ns - begin_ns) / BUCKET.as_nanos()) as usize;
        while self.buckets.len() <= bucket {
            self.buckets.push(
                Histogram::new_with_bounds(1, MAX_LATENCY_US, 2).expect("the bounds are in order"),
            );
        }
        self.buckets[bucket].saturating_record(latency_us);
    }

    pub(crate) fn finish(self) -> Measured {
        let begin_ns = self.begin_ns.expect("measuring began");
        let end_ns = self.end_ns.expect("measuring ended");
        let mut all = self.puts.clone();
        all.add(&self.gets).expect("both have the same bounds");
        let seconds = Duration::from_nanos(end_ns - begin_ns).as_secs_f64();
        let whole_buckets = (seconds / BUCKET.as_secs_f64()) as usize;
        let series = (0..whole_buckets.max(1)).map(|at| TimeBucket {
            at_s: at as f64 * BUCKET.as_secs_f64(),
            ops_per_s: self
                .buckets
                .get(at)
                .map_or(0.0, |bucket| bucket.len() as f64 / BUCKET.as_secs_f64()),
            latency_us: self.buckets.get(at).map(percentiles).unwrap_or_default(),
        });
        Measured {
            seconds,
            ops: all.len(),
            errors: self.errors,
            backlog: self.backlog,
            latency_us: percentiles(&all),
            put_latency_us: percentiles(&self.puts),
            commit_wait_us: percentiles(&self.waits),
            get_latency_us: (!self.gets.is_empty()).then(|| percentiles(&self.gets)),
            longest_gap: (!self.puts.is_empty()).then(|| Duration::from_nanos(self.longest_gap_ns)),
            series: series.collect(),
            history: self.history,
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("the bounds are in order")
}

fn percentiles<C: hdrhistogram::Counter>(histogram: &Histogram<C>) -> Percentiles {
    if histogram.is_empty() {
        return Percentiles::default();
    }
    Percentiles {
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    }
}
