//! What is behind the metadata lock: superblock, allocator, orphans, the running and the committing transaction; and the
//! view of blocks that a request has while it holds the lock shared. Owns the order in which a block is looked for: running,
//! committing, cache, journal (overlay, else home).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLockReadGuard;

use crate::ext4::Superblock;
use crate::fs::alloc::Allocator;
use crate::fs::blocks::Blocks;
use crate::fs::orphan::Orphans;
use crate::fs::running::Running;
use crate::fs::{Fs, FsError};
use crate::journal::{Image, Transaction};
use crate::units::{BlockNo, BlockRange, Txid};

/// The block of the superblock, and its offset there.
pub(crate) fn superblock_place(block_size: usize) -> (BlockNo, usize) {
    if block_size == 1024 {
        (BlockNo(1), 0)
    } else {
        (BlockNo(0), 1024)
    }
}

/// Everything behind the metadata lock.
pub(crate) struct Meta {
    /// The superblock as the running transaction has it; its counters are brought up to date when the transaction closes.
    pub sb: Superblock,
    /// Whether `sb` differs from its image in the last transaction by more than counters.
    pub sb_changed: bool,
    /// Free blocks and inodes, and which blocks are the volume's own. Out while an operation works on it.
    pub alloc: Option<Allocator>,
    /// Inodes that are unlinked but referred to.
    pub orphans: Orphans,
    /// What has changed.
    pub running: Running,
    /// What is being committed, until the journal shows it.
    pub committing: Option<Committing>,
    /// The volume was closed: every request is refused.
    pub closed: bool,
}

/// A transaction on its way to the log.
pub(crate) struct Committing {
    /// Its images.
    pub images: Arc<BTreeMap<BlockNo, Image>>,
    /// Those that are data of files.
    pub data: HashSet<BlockNo>,
}

impl Meta {
    /// The image of `block` in the running or the committing transaction.
    pub fn uncommitted(&self, block: BlockNo) -> Option<&Image> {
        self.running
            .images
            .get(&block)
            .or_else(|| self.committing.as_ref()?.images.get(&block))
    }

    /// Calls `each` with every uncommitted image of a range, the newest of each block.
    pub fn uncommitted_in(&self, range: BlockRange, mut each: impl FnMut(BlockNo, &Image)) {
        let range = range.start..range.end();
        if let Some(committing) = &self.committing {
            for (block, image) in committing.images.range(range.clone()) {
                if !self.running.images.contains_key(block) {
                    each(*block, image);
                }
            }
        }
        for (block, image) in self.running.images.range(range) {
            each(*block, image);
        }
    }

    /// The newest contents of a metadata block.
    pub fn get(&self, fs: &Fs, block: BlockNo) -> Result<Image, FsError> {
        if let Some(image) = self.uncommitted(block) {
            return Ok(Arc::clone(image));
        }
        fs.committed_block(block)
    }

    /// Whether a block of the range can not belong to a file.
    pub fn is_system(&self, range: BlockRange) -> bool {
        self.alloc
            .as_ref()
            .is_some_and(|alloc| alloc.is_system(range))
    }

    /// Takes the running transaction for committing and starts the next; `None` when nothing has changed.
    pub fn close_running(&mut self, fs: &Fs) -> Result<Option<Transaction>, FsError> {
        if self.running.is_empty() && !self.sb_changed {
            return Ok(None);
        }
        self.write_superblock(fs)?;
        let next = Running::new(self.running.txid.next());
        let mut closed = std::mem::replace(&mut self.running, next);
        let data = std::mem::take(&mut closed.data);
        let txn = closed.into_transaction();
        self.committing = Some(Committing {
            images: Arc::new(txn.images.clone()),
            data,
        });
        Ok(Some(txn))
    }

    /// The superblock joins the running transaction, with the counters of now.
    fn write_superblock(&mut self, fs: &Fs) -> Result<(), FsError> {
        if let Some(alloc) = &self.alloc {
            self.sb.set_s_free_blocks_count(alloc.free_blocks());
            self.sb.set_s_free_inodes_count(alloc.free_inodes() as u32);
        }
        let (block, offset) = superblock_place(fs.block_size);
        let mut image = self.get(fs, block)?;
        let bytes = self.sb.encode();
        if image[offset..offset + bytes.len()] != bytes[..] {
            let target = Arc::make_mut(&mut image);
            target[offset..offset + bytes.len()].copy_from_slice(bytes);
            self.running.images.insert(block, image);
        }
        self.sb_changed = false;
        Ok(())
    }

    /// The journal shows the committing transaction now.
    pub fn finish_commit(&mut self, fs: &Fs) {
        if let Some(committing) = self.committing.take() {
            for (block, image) in committing.images.iter() {
                if !committing.data.contains(block) {
                    fs.cache.insert(*block, Arc::clone(image));
                }
            }
        }
        self.release(fs.journal.released());
    }

    /// Blocks freed up to `released` may be allocated again.
    pub fn release(&mut self, released: Txid) {
        if let Some(alloc) = &mut self.alloc {
            alloc.release(released);
        }
    }
}

/// Blocks as a request sees them that holds the metadata lock shared.
pub(crate) struct View<'a> {
    /// The engine.
    pub fs: &'a Fs,
    /// What is behind the lock.
    pub meta: RwLockReadGuard<'a, Meta>,
}

impl Blocks for View<'_> {
    fn sb(&self) -> &Superblock {
        &self.meta.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        self.meta.get(self.fs, block)
    }

    fn is_system(&self, range: BlockRange) -> bool {
        self.meta.is_system(range)
    }
}

impl Fs {
    /// The view of a reading request.
    pub(crate) fn view(&self) -> Result<View<'_>, FsError> {
        let meta = self.meta.read();
        if meta.closed {
            return Err(FsError::Closed);
        }
        Ok(View { fs: self, meta })
    }

    /// The committed contents of a metadata block, through the cache. The caller holds the metadata lock, in any way.
    pub(crate) fn committed_block(&self, block: BlockNo) -> Result<Image, FsError> {
        if let Some(image) = self.cache.get(block) {
            return Ok(image);
        }
        if block.0 >= self.volume.blocks_count() {
            return Err(FsError::Corrupt {
                what: "block number",
                ino: None,
                block: Some(block),
                detail: format!("the volume has {} blocks", self.volume.blocks_count()),
            });
        }
        let mut bytes = vec![0; self.block_size];
        self.journal.read(block, &mut bytes)?;
        let image = Image::from(bytes);
        self.cache.insert(block, Arc::clone(&image));
        Ok(image)
    }
}
