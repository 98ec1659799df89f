//! Limits on sizes and durations.

/// Maximum length of a key, in bytes. A key has at least one byte.
pub const MAX_KEY_BYTES: usize = 4 * 1024;

/// Maximum length of a value, in bytes. A value may be empty.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Maximum number of conditions and writes of a commit, counted together.
pub const MAX_COMMIT_PARTS: usize = 1024;

/// Maximum total size of all keys and values of a commit, in bytes.
pub const MAX_COMMIT_BYTES: usize = MAX_KEY_BYTES + MAX_VALUE_BYTES;

/// Terms, log indexes and other counts in messages are below this.
pub const MAX_COUNT: u64 = 1 << 62;

/// Maximum size of a replicated entry, or of a part of a snapshot, in bytes.
pub const MAX_ENTRY_BYTES: usize = 2 * 1024 * 1024;

/// Maximum length of a frame's payload, in bytes. Large enough for a batch of entries that includes
/// one of the largest size.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// How long a snapshot stays readable while its client renews it, in microseconds (one minute).
pub const MAX_SNAPSHOT_AGE_US: u64 = 60 * 1_000_000;

/// How far in the future a commit may expire, in microseconds (15 minutes). A range may have to
/// remember the outcome for that long.
pub const MAX_LIFETIME_US: u64 = 15 * 60 * 1_000_000;

const _: () = assert!(MAX_FRAME_BYTES > 2 * MAX_COMMIT_BYTES);
const _: () = assert!(MAX_ENTRY_BYTES > MAX_COMMIT_BYTES + 64 * MAX_COMMIT_PARTS);
