//! The table of durable commits.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use comfy_table::Table;
use palisade_wal::Backend;

use crate::{PAYLOAD, bare::Bare, engine, group_commit::GroupCommit, palisade::Palisade, tasks};

/// Time for which writers run before each measurement.
pub(crate) const WARM_UP: Duration = Duration::from_millis(100);

/// Measures a log with a number of writers for a duration. Returns records per second.
type Run = Box<dyn Fn(usize, Duration) -> anyhow::Result<f64>>;

/// Measures all logs and prints the table. Each log is created once, and the logs are measured in
/// turns of short slices, so that neither creation nor a slow minute of the disk distorts one log.
pub(crate) fn measure(
    dir: &Path,
    writers: &[usize],
    rounds: usize,
    duration: Duration,
) -> anyhow::Result<()> {
    let subjects = subjects(dir)?;
    let mut rates = vec![vec![Vec::new(); writers.len()]; subjects.len()];
    thread::sleep(Duration::from_secs(1));
    for _ in 0..rounds {
        for (column, &writers) in writers.iter().enumerate() {
            for ((_, run), rates) in subjects.iter().zip(&mut rates) {
                rates[column].push(run(writers, duration)?);
            }
        }
    }
    let median = |rates: &Vec<f64>| {
        let mut rates = rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let medians: Vec<Vec<_>> =
        rates.iter().map(|columns| columns.iter().map(median).collect()).collect();
    let of = |name| subjects.iter().position(|(other, _)| *other == name).expect("it is listed");
    let (engine, bare) = (&medians[of(ENGINE)], &medians[of(BARE)]);
    let mut table = Table::new();
    let header = writers.iter().map(|writers| format!("{writers} writers"));
    table.set_header(["records/s, median".to_owned()].into_iter().chain(header));
    for ((name, _), medians) in subjects.iter().zip(&medians) {
        let cells = medians.iter().zip(engine).zip(bare).map(|((rate, engine), bare)| {
            let (engine, bare) = (rate / engine, rate / bare);
            format!("{rate:.0} ({engine:.2} of {ENGINE}, {bare:.2} of bare)")
        });
        table.add_row([(*name).to_owned()].into_iter().chain(cells));
    }
    println!("{table}\n{rounds} rounds of {duration:?} each, by turns");
    Ok(())
}

const ENGINE: &str = "raft-engine";
const BARE: &str = "bare loop";

fn subjects(dir: &Path) -> anyhow::Result<Vec<(&'static str, Run)>> {
    let own = |name| {
        let own = dir.join(name);
        fs::create_dir(&own).map(|()| own)
    };
    let blocking = |name, backend| {
        let log = GroupCommit::new(Palisade::create(&own(name)?, backend, true)?);
        let run: Run =
            Box::new(move |writers, duration| threads(writers, duration, |_| log.commit(&PAYLOAD)));
        anyhow::Ok(run)
    };
    let of_tasks = |name, backend| {
        let own = own(name)?;
        let run: Run =
            Box::new(move |writers, duration| tasks::run(own.clone(), backend, writers, duration));
        anyhow::Ok(run)
    };
    let engine = engine::open(&own("engine")?)?;
    let bare = GroupCommit::new(Bare::create(&own("bare")?)?);
    Ok(vec![
        ("palisade, mapped", blocking("mapped", Backend::Mapped)?),
        ("palisade, direct", blocking("direct", Backend::Direct)?),
        (
            ENGINE,
            Box::new(move |writers, duration| {
                threads(writers, duration, |writer| engine::commit(&engine, writer, &PAYLOAD))
            }),
        ),
        (
            BARE,
            Box::new(move |writers, duration| {
                threads(writers, duration, |_| bare.commit(&PAYLOAD))
            }),
        ),
        ("palisade, mapped, tasks", of_tasks("mapped-tasks", Backend::Mapped)?),
        ("palisade, direct, tasks", of_tasks("direct-tasks", Backend::Direct)?),
    ])
}

/// Returns the records per second of so many threads.
fn threads(
    writers: usize,
    duration: Duration,
    commit: impl Fn(u64) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<f64> {
    let (commits, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let work = |writer| {
            let (commits, stopped, commit) = (&commits, &stopped, &commit);
            move || {
                while !stopped.load(Ordering::Relaxed) {
                    commit(writer)?;
                    commits.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            }
        };
        let writers: Vec<_> = (0..writers as u64).map(|writer| scope.spawn(work(writer))).collect();
        thread::sleep(WARM_UP);
        let (start, before) = (Instant::now(), commits.load(Ordering::Relaxed));
        thread::sleep(duration);
        let done = commits.load(Ordering::Relaxed) - before;
        let rate = done as f64 / start.elapsed().as_secs_f64();
        stopped.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().expect("a writer ends with a result")?;
        }
        Ok(rate)
    })
}
