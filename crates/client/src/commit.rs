//! Several changes that are made together.

use bytes::Bytes;
use palisade_wire::{Condition, Expected, Write};

/// Changes of several keys, and what must hold for them; see [`Client::commit`].
///
/// [`Client::commit`]: crate::Client::commit
#[derive(Clone, Debug, Default)]
pub struct Commit {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) writes: Vec<Write>,
}

impl Commit {
    /// No changes yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        self.writes.push(Write { key: key.into(), value: None });
        self
    }

    /// Nothing is changed unless this holds.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Bytes>, expected: Expected) -> Self {
        self.conditions.push(Condition { key: key.into(), expected });
        self
    }
}
