//! Runs `palisade_fuzz::wal_recovery::check`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    palisade_fuzz::wal_recovery::check(data);
});
