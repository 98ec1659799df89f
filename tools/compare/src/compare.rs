//! The plan of a comparison.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use palisade_client::Mode;
use palisade_cluster::ClusterOptions;
use palisade_load::Workload;

use crate::{
    machine::machine,
    results::{Phase, Results, Settings},
    trial::{Finished, Servers, Trial, TrialError, run_trial},
};

/// The parameters of a comparison.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The cluster that is started for each run.
    pub cluster: ClusterOptions,
    /// Number of clients of a closed loop.
    pub clients: u32,
    /// Operations per second of an open loop.
    pub rate: u64,
    /// Size of a value, in bytes.
    pub value_bytes: usize,
    /// Number of keys.
    pub keys: u32,
    /// Share of gets, in percent.
    pub read_percent: u32,
    /// How long each run measures; runs with a kill take twice as long.
    pub duration: Duration,
    /// Seeds the choice of keys and of puts or gets.
    pub seed: u64,
    /// The node that is killed.
    pub kill: u16,
}

/// Runs the whole plan, and returns the results with the history of each run. The histories are not
/// checked yet: see [`check_histories`](crate::check_histories). Without a terminal, `on_line` gets
/// one line of progress after each run.
///
/// # Errors
///
/// Returns the error of the first run that fails.
pub async fn compare(
    options: &CompareOptions,
    on_line: impl Fn(&str),
) -> Result<(Results, Vec<Finished>), TrialError> {
    let trials = plan(options);
    let data_dir = options.cluster.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let machine = machine(&data_dir);
    let progress = ProgressBar::new(trials.len() as u64).with_style(
        ProgressStyle::with_template("[{elapsed_precise}] {bar:30} {pos}/{len} {msg}")
            .expect("the template is valid"),
    );
    progress.enable_steady_tick(Duration::from_millis(200));
    let mut finished = Vec::new();
    for trial in &trials {
        let mode = trial.mode.map_or("mixed".to_owned(), |mode| mode.to_string());
        progress.set_message(format!("{}: {mode}", trial.name));
        let servers = Servers::start(options.cluster.clone())?;
        let done = run_trial(servers, trial).await?;
        if progress.is_hidden() {
            // Without a terminal the progress is one line for each run.
            on_line(&format!("{} on {mode}: {:.0} operations/s", trial.name, done.run.ops_per_s));
        }
        finished.push(done);
        progress.inc(1);
    }
    progress.finish_and_clear();
    let runs = finished.iter().map(|finished| finished.run.clone()).collect();
    let settings = Settings {
        nodes: u32::from(options.cluster.nodes),
        shards: u32::from(options.cluster.shards),
        clients: options.clients,
        rate: options.rate,
        value_bytes: options.value_bytes,
        keys: options.keys,
        read_percent: options.read_percent,
        clock_bound_us: Some(options.cluster.clock.bound_us),
        log_backend: Some(options.cluster.log.backend),
    };
    let results = Results {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: None,
        machine,
        settings,
        runs,
    };
    Ok((results, finished))
}

/// Returns the runs. The order of the two modes alternates, so that neither always comes first.
fn plan(options: &CompareOptions) -> Vec<Trial> {
    let trial = |phase: Phase, round: u32, mode: Mode| Trial {
        name: format!("{} {round}", phase.title()),
        phase,
        mode: Some(mode),
        workload: Workload::Mixed { read_percent: options.read_percent },
        clients: options.clients,
        rate: (phase == Phase::OpenLoop).then_some(options.rate),
        timeout: None,
        value_bytes: options.value_bytes,
        keys: options.keys,
        duration: if phase == Phase::Kill { 2 * options.duration } else { options.duration },
        kill: (phase == Phase::Kill).then_some(options.kill),
        seed: options.seed.wrapping_add(u64::from(round)),
        record: true,
    };
    let (raft, chain) = (Mode::Raft, Mode::Chain);
    vec![
        trial(Phase::ClosedLoop, 1, raft),
        trial(Phase::ClosedLoop, 1, chain),
        trial(Phase::OpenLoop, 1, chain),
        trial(Phase::OpenLoop, 1, raft),
        trial(Phase::Kill, 1, raft),
        trial(Phase::Kill, 1, chain),
        trial(Phase::ClosedLoop, 2, chain),
        trial(Phase::ClosedLoop, 2, raft),
    ]
}
