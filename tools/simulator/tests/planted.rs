//! Proves that the simulator's checks can fail: each fault that is planted on purpose violates an
//! invariant, at the seed that is recorded with it.
#![allow(clippy::print_stdout, reason = "names the faults that are missed")]

use std::{num::NonZero, thread};

use palisade_simulator::{PLANTED_FAULTS, PlantedFault};

/// Returns why a fault is not caught, or `None` if it is.
fn missed(fault: &PlantedFault) -> Option<String> {
    let PlantedFault { name, seed, .. } = fault;
    match fault.run(*seed) {
        None => Some(format!("{name}: not caught at seed {seed}")),
        Some(failure) if fault.is_caught(&failure) => None,
        Some(failure) => Some(format!("{name}: caught as {}", failure.violation)),
    }
}

#[test]
fn planted_faults_are_detected_at_recorded_seeds() {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let part = |first: usize| {
        let faults = PLANTED_FAULTS.iter().skip(first).step_by(threads);
        faults.filter_map(missed).collect::<Vec<_>>()
    };
    let all_missed: Vec<_> = thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("runs catch panics")).collect()
    });
    // Printed, because the simulator's panic hook hides the message of a failed assertion.
    all_missed.iter().for_each(|missed| println!("{missed}"));
    assert!(all_missed.is_empty(), "search the seeds again with `palisade sim --planted all`");
}
