//! Files that are being deleted while somebody needs their space. The kernel lets go of a removed file (FORGET) some time
//! after the program has closed it, and its next request may overtake that: on ext4, the space would be there by then. Owns
//! the count of deletions and the wait for the next; never decides what is deleted. Its lock is a leaf.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::io::Clock;

#[derive(Default)]
pub(crate) struct Burials {
    state: Mutex<State>,
    one_more: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    deleted: u64,
    /// How long an operation waits, in all. Zero, unless a kernel is at the other end.
    patience: Duration,
}

impl Burials {
    /// Files deleted so far.
    pub fn count(&self) -> u64 {
        self.state.lock().deleted
    }

    /// One more was deleted.
    pub fn note(&self) {
        self.state.lock().deleted += 1;
        self.one_more.notify_all();
    }

    /// How long an operation without space waits.
    pub fn set_patience(&self, patience: Duration) {
        self.state.lock().patience = patience;
    }

    /// Waits until more than `seen` were deleted; false when patience ends before. `until`: when it does, in monotonic time,
    /// from the first wait of an operation on.
    pub fn wait(&self, seen: u64, until: &mut Option<Duration>, clock: &dyn Clock) -> bool {
        let mut state = self.state.lock();
        let until = *until.get_or_insert_with(|| clock.monotonic() + state.patience);
        let left = until.saturating_sub(clock.monotonic());
        if left.is_zero() {
            return false;
        }
        if state.deleted == seen {
            self.one_more.wait_for(&mut state, left);
        }
        state.deleted > seen
    }
}
