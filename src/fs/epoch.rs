//! The live mount on a mirror: transactions that the follower has appended become visible all at once, between requests. Owns
//! the switch. Invariant: a request sees one epoch from its begin to its end, data included.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;

use crate::fs::meta::superblock_place;
use crate::fs::open::committed_superblock;
use crate::fs::{Fs, FsError, FsRole};
use crate::journal::{Hint, Transaction};
use crate::units::{BlockRange, Ino};

/// Freed blocks beyond which the whole cache is forgotten rather than one block after the other.
const FORGET_ALL_BLOCKS: u64 = 1 << 16;

impl Fs {
    /// On a mirror: makes transactions that the journal holds durably visible, all at once: waits for older requests, shows
    /// them, forgets what they changed. The hints say what the kernel must forget.
    pub fn switch_epoch(&self, txns: &[Transaction]) -> Result<Vec<Hint>, FsError> {
        if self.role != FsRole::Mirror {
            return Err(FsError::Unsupported(
                "applying transactions to a volume that is not a mirror's".into(),
            ));
        }
        let Some(last) = txns.last() else {
            return Ok(Vec::new());
        };
        let _epoch = self.epoch.write();
        let mut meta = self.meta.write();
        self.journal.publish(last.txid);
        self.committed.store(last.txid.0, Ordering::Release);
        let (sb_block, _) = superblock_place(self.block_size);
        let mut new_superblock = false;
        for txn in txns {
            for block in txn.images.keys() {
                self.cache.remove(*block);
                new_superblock |= *block == sb_block;
            }
            self.forget_blocks(&txn.freed);
        }
        if new_superblock {
            meta.sb = committed_superblock(&self.volume, &self.journal)?;
        }
        Ok(joined_hints(txns))
    }

    fn forget_blocks(&self, ranges: &[BlockRange]) {
        if ranges.iter().map(|range| range.len).sum::<u64>() > FORGET_ALL_BLOCKS {
            self.cache.clear();
            return;
        }
        for block in ranges.iter().flat_map(BlockRange::blocks) {
            self.cache.remove(block);
        }
    }
}

/// The hints of all transactions, each once.
fn joined_hints(txns: &[Transaction]) -> Vec<Hint> {
    let mut inodes: BTreeSet<Ino> = BTreeSet::new();
    let mut names: HashSet<(Ino, &[u8])> = HashSet::new();
    let mut everything = false;
    for hint in txns.iter().flat_map(|txn| &txn.hints) {
        match hint {
            Hint::Inode(ino) => {
                inodes.insert(*ino);
            }
            Hint::Entry { parent, name } => {
                names.insert((*parent, name));
            }
            Hint::EverythingChanged => everything = true,
        }
    }
    let mut hints = Vec::with_capacity(inodes.len() + names.len() + 1);
    if everything {
        hints.push(Hint::EverythingChanged);
    }
    hints.extend(inodes.into_iter().map(Hint::Inode));
    hints.extend(names.into_iter().map(|(parent, name)| Hint::Entry {
        parent,
        name: name.to_vec(),
    }));
    hints
}
