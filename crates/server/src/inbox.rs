//! What the tasks of a shard gather for its next turn.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use palisade_shard::Input;

use crate::signal::Signal;

/// Inputs beyond which readers pause until the next turn.
const MAX_INPUTS: usize = 8 * 1024;

/// Likewise, the bytes that the inputs hold.
const MAX_INPUT_BYTES: usize = 16 * 1024 * 1024;

/// Inputs of the next turn.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// Each with the bytes that it came in.
    inputs: RefCell<VecDeque<(Input, usize)>>,
    bytes: Cell<usize>,
    arrived: Signal,
    /// Raised for each reader in turn once there is room again.
    room: RefCell<Vec<Rc<Signal>>>,
    pub(crate) draining: Cell<bool>,
}

impl Inbox {
    /// Adds an input that holds so many bytes of entries or values.
    pub(crate) fn push(&self, input: Input, bytes: usize) {
        self.inputs.borrow_mut().push_back((input, bytes));
        self.bytes.set(self.bytes.get() + bytes);
        self.arrived.raise();
    }

    /// Begins a turn although nothing has arrived.
    pub(crate) fn nudge(&self) {
        self.arrived.raise();
    }

    /// Waits until there is reason for a turn.
    pub(crate) async fn wait(&self) {
        self.arrived.wait().await;
    }

    /// Takes the inputs of a turn, at least one if there is any, until they hold `max_bytes`; what
    /// is left is reason for another turn. Lets the readers go on.
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

    /// Waits, if the next turn has enough to do already, until that has begun.
    pub(crate) async fn wait_for_room(&self) {
        while self.inputs.borrow().len() >= MAX_INPUTS || self.bytes.get() >= MAX_INPUT_BYTES {
            let signal = Rc::new(Signal::default());
            self.room.borrow_mut().push(signal.clone());
            signal.wait().await;
        }
    }
}
