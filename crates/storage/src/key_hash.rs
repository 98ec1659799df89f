//! The hash of a key, as the index stores it.

/// The hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyHash(pub(crate) u32);

impl KeyHash {
    /// Returns the 64-bit hash for a table, which reads its first and its last bits. The 32-bit
    /// hash can't be used: its first bits would be zero, and its last bits are equal for all keys
    /// of a table.
    pub(crate) fn spread(self) -> u64 {
        let product = u64::from(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    }
}
