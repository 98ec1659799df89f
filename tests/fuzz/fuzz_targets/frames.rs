//! Runs `palisade_fuzz::frames::check`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    palisade_fuzz::frames::check(data);
});
