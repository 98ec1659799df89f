//! Runs `palisade_fuzz::client_messages::check`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    palisade_fuzz::client_messages::check(data);
});
