//! How long a turn takes, by what it did.
//!
//! This does not use the shard's own count of its work, so that it sees what that count misses.

use palisade_shard::{Shard, ShardEffects};
use palisade_wire::{Outcome, Response};

/// Tenths of a microsecond for each input, reply, message, write and applied entry.
const STEP: u64 = 10;

/// Tenths of a microsecond for each row of a page.
const ROW: u64 = 2;

/// Bytes that are copied in a tenth of a microsecond.
const COPIED_BYTES: u64 = 128;

/// Returns the number of entries that a shard has applied, over all of its replicas.
pub(crate) fn applied(shard: &Shard) -> u64 {
    shard.views().map(|view| view.applied_index()).sum()
}

/// Returns how long a turn takes that applies some entries and has some effects, in microseconds.
/// `slowness` divides the speed of the machine.
pub(crate) fn turn_us(applied: u64, effects: &ShardEffects, slowness: u64) -> u64 {
    let steps =
        applied + (effects.replies.len() + effects.sends.len() + effects.appends.len()) as u64;
    let written_bytes: u64 = effects.appends.iter().map(|(_, append)| append.bytes()).sum();
    let replied: u64 = effects.replies.iter().map(|(_, response)| reply(response)).sum();
    (steps * STEP + written_bytes / COPIED_BYTES + replied) * slowness / 10
}

fn reply(response: &Response) -> u64 {
    match &response.outcome {
        Outcome::Value { value: Some(value), .. } => value.len() as u64 / COPIED_BYTES,
        Outcome::Page { page, .. } => {
            let bytes: usize = page.rows.iter().map(|row| row.key.len() + row.value.len()).sum();
            page.rows.len() as u64 * ROW + bytes as u64 / COPIED_BYTES
        }
        _ => 0,
    }
}
