//! What the kernel holds of a mount: for every inode that it knows, which life of the inode number it means.
//!
//! Sixteen bytes an inode for which the kernel keeps about a kilobyte: the kernel's own memory pressure bounds it.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::units::Ino;

#[derive(Clone, Copy, Debug)]
struct Node {
    generation: u32,
    lookups: u64,
}

/// The inodes that the kernel knows.
#[derive(Debug, Default)]
pub struct Nodes {
    map: Mutex<HashMap<u32, Node>>,
}

impl Nodes {
    /// The kernel is told of `ino`, once more.
    pub fn hold(&self, ino: Ino, generation: u32) {
        let mut map = self.map.lock();
        let node = map.entry(ino.0).or_insert(Node {
            generation,
            lookups: 0,
        });
        node.generation = generation;
        node.lookups += 1;
    }

    /// The kernel gives up `n` of its references.
    pub fn forget(&self, ino: Ino, n: u64) {
        let mut map = self.map.lock();
        if let Some(node) = map.get_mut(&ino.0) {
            node.lookups = node.lookups.saturating_sub(n);
            if node.lookups == 0 {
                map.remove(&ino.0);
            }
        }
    }

    /// The generation that the kernel means by `ino`.
    pub fn generation(&self, ino: Ino) -> Option<u32> {
        self.map.lock().get(&ino.0).map(|node| node.generation)
    }

    /// Whether the kernel knows `ino`.
    pub fn knows(&self, ino: Ino) -> bool {
        self.map.lock().contains_key(&ino.0)
    }

    /// Every inode that the kernel knows.
    pub fn all(&self) -> Vec<Ino> {
        self.map.lock().keys().map(|ino| Ino(*ino)).collect()
    }
}
