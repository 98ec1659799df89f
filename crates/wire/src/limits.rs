//! Limits on sizes and durations.

use crate::Rejection;

/// Maximum length of a key, in bytes. A key has at least one byte.
pub const MAX_KEY_BYTES: usize = 4 * 1024;

/// Maximum length of a value, in bytes. A value may be empty.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Maximum length of a frame's payload, in bytes. Large enough for a batch of entries that includes
/// one of the largest size.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// How long a snapshot stays readable while its client renews it, in microseconds (one minute).
pub const MAX_SNAPSHOT_AGE_US: u64 = 60 * 1_000_000;

/// How far in the future a commit may expire, in microseconds (15 minutes). A range may have to
/// remember the outcome for that long.
pub const MAX_LIFETIME_US: u64 = 15 * 60 * 1_000_000;

const _: () = assert!(MAX_FRAME_BYTES > 2 * (MAX_KEY_BYTES + MAX_VALUE_BYTES));

/// Checks the length of a key.
///
/// # Errors
///
/// [`Rejection::KeySize`] if the key is empty or longer than [`MAX_KEY_BYTES`]. Not retryable.
pub fn check_key(key: &[u8]) -> Result<(), Rejection> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Rejection::KeySize { bytes: u32::try_from(key.len()).unwrap_or(u32::MAX) });
    }
    Ok(())
}

/// Checks the length of a value.
///
/// # Errors
///
/// [`Rejection::ValueSize`] if the value is longer than [`MAX_VALUE_BYTES`]. Not retryable.
pub fn check_value(value: &[u8]) -> Result<(), Rejection> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Rejection::ValueSize { bytes: u32::try_from(value.len()).unwrap_or(u32::MAX) });
    }
    Ok(())
}
