//! Cutting files, deleting them, and the orphans that survive a crash in the middle of either. Owns the steps: each is one
//! operation of bounded size; while more are to come, the inode is in the orphan list.

use std::time::Duration;

use tracing::{error, warn};

use crate::ext4::Inode;
use crate::fs::blocks::Blocks;
use crate::fs::extent::Mapping;
use crate::fs::inode::{InodeStore, blocks_of};
use crate::fs::read::file_block;
use crate::fs::txn::Op;
use crate::fs::{Fs, FsError, xattr};
use crate::units::{FileBlock, Ino};

/// Metadata blocks that one step changes at most, freeing included.
pub(crate) const STEP_BUDGET: usize = 48;
/// What a step changes beside: the inode, the orphan list, the tail block.
pub(crate) const STEP_CREDITS: usize = STEP_BUDGET + 16;

/// One past the last block that a file can have.
const END_OF_FILE: u64 = crate::fs::extent::MAX_FILE_BLOCKS;

impl Fs {
    /// Takes away what is behind `size`, in as many steps as it needs; the length was set by the caller, who holds the
    /// inode's data lock. The inode is in the orphan list.
    pub(crate) fn cut(&self, ino: Ino) -> Result<(), FsError> {
        loop {
            let done = self.change(STEP_CREDITS, |op| {
                let mut inode = op.inode(ino)?;
                let done = op.cut_step(ino, &mut inode)?;
                op.put_inode(ino, &mut inode, true)?;
                if done {
                    op.remove_orphan(ino)?;
                }
                Ok(done)
            })?;
            if done {
                return Ok(());
            }
        }
    }

    /// Deletes an inode without links that nobody refers to.
    pub(crate) fn delete(&self, ino: Ino) -> Result<(), FsError> {
        let state = self.inodes.get(ino, self.committed());
        let _data = state.data.write();
        loop {
            let done = self.change(STEP_CREDITS, |op| {
                if !op.meta.orphans.contains(ino) {
                    return Ok(true);
                }
                let mut inode = op.inode(ino)?;
                if inode.i_links_count() > 0 || state.is_held() {
                    return Ok(true);
                }
                inode.set_i_size(0);
                if has_blocks(op, &inode) && !op.cut_step(ino, &mut inode)? {
                    op.put_inode(ino, &mut inode, true)?;
                    return Ok(false);
                }
                let change = xattr::release(op, &mut inode, ino)?;
                op.add_i_blocks(&mut inode, change.blocks)?;
                op.put_inode(ino, &mut inode, true)?;
                op.remove_orphan(ino)?;
                let inode = op.inode(ino)?;
                op.free_inode(ino, inode)?;
                Ok(true)
            })?;
            if done {
                self.burials.note();
                return Ok(());
            }
        }
    }

    /// Deletes an inode that has lost its last name, unless the kernel refers to it.
    pub(crate) fn delete_unless_held(&self, nameless: Option<Ino>) {
        let Some(ino) = nameless else { return };
        if self.inodes.is_held(ino) {
            return;
        }
        if let Err(e) = self.delete(ino) {
            // It stays in the orphan list: the next opening tries again.
            warn!(%ino, error = %e, "an inode without a name could not be deleted");
        }
    }

    /// One more reference by the kernel (a lookup reply).
    pub fn hold(&self, ino: Ino) {
        self.inodes.hold(ino, self.committed());
    }

    /// `n` references fewer; an unlinked inode is deleted when the last goes.
    pub fn forget(&self, ino: Ino, n: u64) {
        if !self.inodes.forget(ino, n) {
            return;
        }
        if self.meta.read().orphans.contains(ino) {
            self.delete_unless_held(Some(ino));
        }
    }

    /// How long an operation that finds no space waits for a removed file to be let go of by the kernel, in all. Zero
    /// unless set: whoever has no kernel behind it waits for nothing.
    pub fn set_patience(&self, patience: Duration) {
        self.burials.set_patience(patience);
    }

    /// At the end of an opening: orphans that the kernel still refers to go too.
    pub(crate) fn bury_orphans(&self) -> Result<(), FsError> {
        for ino in self.meta.read().orphans.list() {
            self.inodes.forget(ino, u64::MAX);
        }
        self.process_orphans()
    }

    /// Finishes what a crash or the end of an opening left: deletes orphans without links, cuts the others.
    pub(crate) fn process_orphans(&self) -> Result<(), FsError> {
        let orphans = self.meta.read().orphans.list();
        let mut failed = None;
        for ino in orphans {
            let links = {
                let view = self.view()?;
                view.inode(ino).map(|inode| inode.i_links_count())
            };
            let result = match links {
                Ok(0) => self.delete(ino),
                Ok(_) => self.cut(ino),
                Err(e) => Err(e),
            };
            if let Err(e) = result {
                error!(%ino, error = %e, "an orphan could not be processed");
                failed.get_or_insert(e);
            }
        }
        match failed {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}

/// Whether the inode's `i_block` maps blocks.
fn has_blocks(op: &Op<'_>, inode: &Inode) -> bool {
    (inode.is_reg() || inode.is_dir() || inode.is_symlink()) && !inode.is_fast_symlink(op.sb())
}

impl Op<'_> {
    /// Takes away some of what is behind the end of the file; whether that was all.
    fn cut_step(&mut self, ino: Ino, inode: &mut Inode) -> Result<bool, FsError> {
        let from = blocks_of(inode.i_size(self.sb()), self.fs.block_size);
        if from >= END_OF_FILE {
            return Ok(true);
        }
        let from = file_block(from)?;
        let stopped = self.remove_extents(ino, inode, from, END_OF_FILE, STEP_BUDGET)?;
        Ok(stopped.is_none())
    }

    /// Whether anything is allocated at or behind a block of the file.
    pub fn has_blocks_from(
        &self,
        ino: Ino,
        inode: &Inode,
        from: FileBlock,
    ) -> Result<bool, FsError> {
        let mut at = u64::from(from.0);
        while at < END_OF_FILE {
            let want = (END_OF_FILE - at).min(u64::from(u32::MAX)) as u32;
            match self.map(ino, inode, file_block(at)?, want)? {
                Mapping::Mapped { .. } => return Ok(true),
                Mapping::Hole(len) => at += u64::from(len),
            }
        }
        Ok(false)
    }
}
