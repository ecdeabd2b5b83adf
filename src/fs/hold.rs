//! Holding back whoever would change the volume, while it changes hands. Owns the gate that every operation passes before
//! it begins. Invariant: once `Held` or `Refused` is set and a commit has returned, nothing is committed until `Open`.

use parking_lot::{Condvar, Mutex};

use crate::fs::Fs;

/// What becomes of operations that would change the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// They are carried out.
    #[default]
    Open,
    /// They wait.
    Held,
    /// They fail with EROFS.
    Refused,
}

/// The gate. Lock order: behind the metadata lock, which is let go before anything waits here.
#[derive(Debug, Default)]
pub(super) struct Gate {
    writes: Mutex<Writes>,
    changed: Condvar,
}

impl Fs {
    /// Lets operations through, holds them, or refuses them. Those that have begun end first: the caller commits next.
    pub fn set_writes(&self, writes: Writes) {
        *self.gate.writes.lock() = writes;
        self.gate.changed.notify_all();
    }

    /// Whether an operation may begin. Asked with the metadata lock held: whoever holds writes and then commits knows
    /// that nothing comes behind it.
    pub(super) fn writes(&self) -> Writes {
        *self.gate.writes.lock()
    }

    /// Waits while writes are held. No lock but those of inodes' data may be held.
    pub(super) fn wait_for_writes(&self) {
        let mut writes = self.gate.writes.lock();
        while *writes == Writes::Held {
            self.gate.changed.wait(&mut writes);
        }
    }
}
