//! What the engine knows of inodes beside their bytes: who reads or writes their data now, how often the kernel refers to
//! them, and which transaction changed them last. Owns the table of these states; it holds no contents and does no I/O.
//!
//! Lock order: an inode's `data` lock before the metadata lock; two of them in ascending inode number. A shard's lock and
//! an inode's `state` lock are leaves.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::units::{Ino, Txid};

const SHARDS: usize = 16;

/// A shard below this number of states is not swept, in states.
const SWEEP_FROM: usize = 256;

/// The state of one inode.
pub(crate) struct InCore {
    /// Shared: reads the file's data and map. Exclusive: changes them. Held across data I/O by design: it is what keeps
    /// the blocks from being freed under a reader.
    pub data: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// References the kernel holds (FUSE lookups).
    refs: u64,
    /// The last transaction that changed anything of the inode.
    changed: Txid,
    /// The last transaction that changed what fdatasync promises: size, map, logged data.
    data_changed: Txid,
    /// `i_blocks` changed since somebody asked.
    blocks_changed: bool,
}

impl InCore {
    /// The transaction that must be durable for fsync (`datasync`: for fdatasync).
    pub fn last_change(&self, datasync: bool) -> Txid {
        let state = self.state.lock();
        if datasync {
            state.data_changed
        } else {
            state.changed
        }
    }

    /// Notes that `txid` changes the inode; `data`: in a way that fdatasync must make durable.
    pub fn touch(&self, txid: Txid, data: bool) {
        let mut state = self.state.lock();
        state.changed = state.changed.max(txid);
        if data {
            state.data_changed = state.data_changed.max(txid);
        }
    }

    /// Notes that `i_blocks` changed.
    pub fn note_blocks(&self) {
        self.state.lock().blocks_changed = true;
    }

    /// Whether it did since the last time that this was asked.
    pub fn take_blocks_changed(&self) -> bool {
        std::mem::take(&mut self.state.lock().blocks_changed)
    }

    /// Whether the kernel refers to the inode.
    pub fn is_held(&self) -> bool {
        self.state.lock().refs > 0
    }
}

/// The states of all inodes that are in use, sharded by number.
pub(crate) struct Inodes {
    shards: Vec<Mutex<Shard>>,
}

struct Shard {
    states: HashMap<Ino, Arc<InCore>>,
    sweep_at: usize,
}

impl Inodes {
    /// An empty table.
    pub fn new() -> Inodes {
        let shard = || Shard {
            states: HashMap::new(),
            sweep_at: SWEEP_FROM,
        };
        Inodes {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    /// The inode's state, made if there is none. `committed`: states that only wait for transactions up to it may go, so
    /// that the table stays in proportion to what is referred to or not yet durable.
    pub fn get(&self, ino: Ino, committed: Txid) -> Arc<InCore> {
        let mut shard = self.shard(ino).lock();
        if let Some(state) = shard.states.get(&ino) {
            return Arc::clone(state);
        }
        if shard.states.len() >= shard.sweep_at {
            shard.states.retain(|_, inode| {
                let state = *inode.state.lock();
                Arc::strong_count(inode) > 1 || state.refs > 0 || state.changed > committed
            });
            shard.sweep_at = (shard.states.len() * 2).max(SWEEP_FROM);
        }
        let state = Arc::new(InCore {
            data: RwLock::new(()),
            state: Mutex::default(),
        });
        shard.states.insert(ino, Arc::clone(&state));
        state
    }

    /// The inode's state, if there is one.
    pub fn find(&self, ino: Ino) -> Option<Arc<InCore>> {
        self.shard(ino).lock().states.get(&ino).cloned()
    }

    /// One more reference by the kernel.
    pub fn hold(&self, ino: Ino, committed: Txid) {
        self.get(ino, committed).state.lock().refs += 1;
    }

    /// `n` references fewer; whether that was the last.
    pub fn forget(&self, ino: Ino, n: u64) -> bool {
        let Some(inode) = self.find(ino) else {
            return false;
        };
        let mut state = inode.state.lock();
        let before = state.refs;
        state.refs = before.saturating_sub(n);
        before > 0 && state.refs == 0
    }

    /// Whether the kernel refers to the inode.
    pub fn is_held(&self, ino: Ino) -> bool {
        self.find(ino).is_some_and(|inode| inode.is_held())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reference_is_told_once() {
        let inodes = Inodes::new();
        inodes.hold(Ino(12), Txid(0));
        inodes.hold(Ino(12), Txid(0));
        assert!(!inodes.forget(Ino(12), 1));
        assert!(inodes.is_held(Ino(12)));
        assert!(inodes.forget(Ino(12), 5));
        assert!(!inodes.forget(Ino(12), 1));
        assert!(!inodes.is_held(Ino(12)));
    }

    #[test]
    fn the_table_is_bounded_by_what_is_in_use() {
        let inodes = Inodes::new();
        inodes.hold(Ino(1), Txid(0));
        for ino in 2..100_000 {
            inodes.get(Ino(ino), Txid(9)).touch(Txid(9), true);
        }
        let kept: usize = inodes.shards.iter().map(|s| s.lock().states.len()).sum();
        assert!(kept <= SHARDS * SWEEP_FROM * 2, "{kept}");
        assert!(inodes.is_held(Ino(1)));
    }
}
