//! The inputs that a shard's tasks collect for its next turn.

use std::{
    cell::{RefCell, RefMut},
    rc::Rc,
};

use palisade_shard::Input;

use crate::signal::Signal;

/// The inputs of the next turn.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    inputs: RefCell<palisade_shard::Inbox>,
    arrived: Signal,
    /// The readers that wait for room. Each turn raises them all.
    room: RefCell<Vec<Rc<Signal>>>,
}

impl Inbox {
    pub(crate) fn push(&self, input: Input) {
        self.inputs.borrow_mut().push(input);
        self.arrived.raise();
    }

    /// Waits until a turn is due.
    pub(crate) async fn wait(&self) {
        self.arrived.wait().await;
    }

    /// Lends the inputs to a turn.
    pub(crate) fn inputs(&self) -> RefMut<'_, palisade_shard::Inbox> {
        self.inputs.borrow_mut()
    }

    /// Ends a turn: makes another one due if inputs remain, and wakes the readers that wait for
    /// room.
    pub(crate) fn turn_ended(&self) {
        if !self.inputs.borrow().is_empty() {
            self.arrived.raise();
        }
        for reader in self.room.borrow_mut().drain(..) {
            reader.raise();
        }
    }

    /// Waits until more requests of clients may be read.
    pub(crate) async fn wait_for_requests(&self) {
        self.wait_until(palisade_shard::Inbox::has_room_for_requests).await;
    }

    /// Waits until more messages of peers may be read.
    pub(crate) async fn wait_for_messages(&self) {
        self.wait_until(palisade_shard::Inbox::has_room_for_messages).await;
    }

    async fn wait_until(&self, has_room: impl Fn(&palisade_shard::Inbox) -> bool) {
        while !has_room(&self.inputs.borrow()) {
            let signal = Rc::new(Signal::default());
            self.room.borrow_mut().push(signal.clone());
            signal.wait().await;
        }
    }
}
