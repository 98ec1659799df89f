//! The inputs that a shard's tasks collect for its next turn.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use palisade_shard::Input;

use crate::signal::Signal;

/// Number of inputs at which readers pause until the next turn.
const MAX_INPUTS: usize = 8 * 1024;

/// Size of the inputs, in bytes, at which readers pause until the next turn.
const MAX_INPUT_BYTES: usize = 16 * 1024 * 1024;

/// The inputs of the next turn.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Each input with its size in bytes.
    inputs: RefCell<VecDeque<(Input, usize)>>,
    bytes: Cell<usize>,
    arrived: Signal,
    /// The readers that wait for room. [`Inbox::take`] raises them all.
    room: RefCell<Vec<Rc<Signal>>>,
}

impl Inbox {
    /// Adds an input whose entries or values take `bytes`.
    pub(crate) fn push(&self, input: Input, bytes: usize) {
        self.inputs.borrow_mut().push_back((input, bytes));
        self.bytes.set(self.bytes.get() + bytes);
        self.arrived.raise();
    }

    /// Waits until a turn is due.
    pub(crate) async fn wait(&self) {
        self.arrived.wait().await;
    }

    /// Moves inputs to `into` until they hold `max_bytes`, but at least one if there is any. Makes
    /// another turn due if inputs remain. Wakes the readers that wait for room.
    pub(crate) fn take(&self, max_bytes: usize, into: &mut Vec<Input>) {
        let mut inputs = self.inputs.borrow_mut();
        let mut taken = 0;
        while taken < max_bytes
            && let Some((input, bytes)) = inputs.pop_front()
        {
            taken += bytes;
            into.push(input);
        }
        self.bytes.set(self.bytes.get() - taken);
        if !inputs.is_empty() {
            self.arrived.raise();
        }
        for reader in self.room.borrow_mut().drain(..) {
            reader.raise();
        }
    }

    /// Waits while the inbox is full.
    pub(crate) async fn wait_for_room(&self) {
        while self.inputs.borrow().len() >= MAX_INPUTS || self.bytes.get() >= MAX_INPUT_BYTES {
            let signal = Rc::new(Signal::default());
            self.room.borrow_mut().push(signal.clone());
            signal.wait().await;
        }
    }
}
