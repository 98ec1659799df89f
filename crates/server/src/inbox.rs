//! What the tasks of a shard gather for its next turn.

use std::cell::{Cell, RefCell};

use palisade_shard::Input;

use crate::signal::Signal;

/// Inputs beyond which readers pause until the next turn.
const MAX_INPUTS: usize = 8 * 1024;

/// Inputs of the next turn.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    inputs: RefCell<Vec<Input>>,
    arrived: Signal,
    /// Raised for each reader in turn once there is room again.
    room: RefCell<Vec<std::rc::Rc<Signal>>>,
    pub(crate) draining: Cell<bool>,
}

impl Inbox {
    pub(crate) fn push(&self, input: Input) {
        self.inputs.borrow_mut().push(input);
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

    /// Takes all inputs, and lets the readers go on.
    pub(crate) fn take(&self, into: &mut Vec<Input>) {
        into.append(&mut self.inputs.borrow_mut());
        for reader in self.room.borrow_mut().drain(..) {
            reader.raise();
        }
    }

    /// Waits, if the next turn has enough to do already, until that has begun.
    pub(crate) async fn wait_for_room(&self) {
        while self.inputs.borrow().len() >= MAX_INPUTS {
            let signal = std::rc::Rc::new(Signal::default());
            self.room.borrow_mut().push(signal.clone());
            signal.wait().await;
        }
    }
}
