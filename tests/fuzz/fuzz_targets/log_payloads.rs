//! Runs `palisade_fuzz::log_payloads::check`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    palisade_fuzz::log_payloads::check(data);
});
