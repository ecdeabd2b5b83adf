//! Giving blocks of files the contents that another copy has of them, because what is at home here is damaged. Owns the
//! guard that keeps this from undoing a writer's work: a block is replaced only while it still holds what was found
//! wrong, and nothing in the running transaction is about to change it.

use xxhash_rust::xxh3::xxh3_64;

use crate::fs::{Fs, FsError};
use crate::journal::Image;
use crate::units::{BlockNo, Ino};

/// Blocks that one operation replaces at most.
const AT_ONCE: usize = 64;

/// A block to be replaced.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Where it is.
    pub block: BlockNo,
    /// Of which file: its cached pages are forgotten.
    pub ino: Ino,
    /// xxh3 of what was found there.
    pub found: u64,
    /// What belongs there.
    pub image: Image,
}

impl Fs {
    /// Replaces blocks of files, by value: through the log, so that every mirror gets them too. Returns how many were
    /// replaced; the others have been written to meanwhile. Durable after the next `sync`.
    ///
    /// # Errors
    /// As any change: a volume that is not open read-write, or a disk that fails.
    pub fn restore(&self, blocks: &[Restored]) -> Result<u64, FsError> {
        let mut replaced = 0;
        for some in blocks.chunks(AT_ONCE) {
            replaced += self.change(some.len() + 2, |op| {
                let mut count = 0;
                for wanted in some {
                    if op.meta.running.changes(wanted.block) {
                        continue;
                    }
                    let mut here = vec![0; self.block_size];
                    self.journal.read(wanted.block, &mut here)?;
                    if xxh3_64(&here) == wanted.found && wanted.image.len() == here.len() {
                        op.put_data(wanted.block, wanted.image.clone());
                        op.touch(wanted.ino, true);
                        count += 1;
                    }
                }
                Ok(count)
            })?;
            for wanted in some {
                self.cache.remove(wanted.block);
            }
        }
        Ok(replaced)
    }
}
