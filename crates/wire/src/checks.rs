//! Checks of the sizes of keys and values.

use crate::{MAX_KEY_BYTES, MAX_VALUE_BYTES, Rejection};

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
