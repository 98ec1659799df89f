//! How large things may be.

use crate::Rejection;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 * 1024;

/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// The longest frame, header excluded, in bytes: a batch of entries that holds at least one of the
/// largest.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// How long a snapshot stays readable while its client renews it, in microseconds.
pub const MAX_SNAPSHOT_AGE_US: u64 = 60 * 1_000_000;

/// How far ahead a commit may expire, in microseconds: so long its outcome may have to be
/// remembered.
pub const MAX_LIFETIME_US: u64 = 15 * 60 * 1_000_000;

const _: () = assert!(MAX_FRAME_BYTES > 2 * (MAX_KEY_BYTES + MAX_VALUE_BYTES));

/// Fails if a key is empty or too long.
pub fn check_key(key: &[u8]) -> Result<(), Rejection> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Rejection::KeySize { bytes: u32::try_from(key.len()).unwrap_or(u32::MAX) });
    }
    Ok(())
}

/// Fails if a value is too long.
pub fn check_value(value: &[u8]) -> Result<(), Rejection> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Rejection::ValueSize { bytes: u32::try_from(value.len()).unwrap_or(u32::MAX) });
    }
    Ok(())
}
