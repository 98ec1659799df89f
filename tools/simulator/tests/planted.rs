//! Proves that the simulator's checks can fail: each fault that is planted on purpose violates an
//! invariant, at the seed that is recorded with it.

use std::{num::NonZero, sync::Mutex, thread};

use palisade_simulator::{PLANTED_FAULTS, PlantedFault};

/// Returns why a fault is not caught, or `None` if it is.
fn missed(fault: &PlantedFault) -> Option<String> {
    let PlantedFault { name, invariant, seed, .. } = fault;
    match fault.run(*seed) {
        None => Some(format!("{name}: not caught at seed {seed}")),
        Some(failure) if failure.violation.invariant.contains(invariant) => None,
        Some(failure) => Some(format!("{name}: caught as {}", failure.violation)),
    }
}

#[test]
fn each_planted_fault_is_caught_at_its_seed() {
    let left = Mutex::new(PLANTED_FAULTS.iter());
    let all_missed = Mutex::new(Vec::new());
    let next = || left.lock().expect("no holder panics").next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(fault) = next() {
                    let missed = missed(fault);
                    all_missed.lock().expect("no holder panics").extend(missed);
                }
            });
        }
    });
    let all_missed = all_missed.into_inner().expect("no holder panics");
    assert!(
        all_missed.is_empty(),
        "search the seeds again with `palisade sim --planted all`:\n{}",
        all_missed.join("\n")
    );
}
