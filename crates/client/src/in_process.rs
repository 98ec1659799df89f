//! A cluster that is one shard in this process.

use std::fmt;

use palisade_control::Topology;
use palisade_wire::{Request, Response};
use tokio::sync::mpsc;

/// Passes a request to a shard of this process. Returns whether the shard accepted it.
pub(crate) type Submit = Box<dyn Fn(Request) -> bool + Send>;

/// A cluster that is one shard in this process.
pub struct InProcess {
    pub(crate) topology: Topology,
    pub(crate) submit: Submit,
    pub(crate) answers: mpsc::Receiver<Response>,
}

impl InProcess {
    /// Creates a cluster of one shard. `submit` passes a request to the shard, must not block, and
    /// returns whether the shard accepted the request. The shard sends its answers to `answers`.
    pub fn new(
        topology: Topology,
        submit: impl Fn(Request) -> bool + Send + 'static,
        answers: mpsc::Receiver<Response>,
    ) -> Self {
        Self { topology, submit: Box::new(submit), answers }
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess").field("topology", &self.topology).finish_non_exhaustive()
    }
}
