//! A file's length and the block in which it ends. Invariant: what a block holds behind the end of its file is zeros, as ext4
//! wants it: whoever moves the end sees to it, in the same operation.

use std::sync::Arc;

use crate::ext4::Inode;
use crate::ext4::features::ro_compat;
use crate::fs::FsError;
use crate::fs::blocks::Blocks;
use crate::fs::extent::{MAX_FILE_BLOCKS, Mapping};
use crate::fs::inode::{InodeStore, blocks_of};
use crate::fs::read::file_block;
use crate::fs::truncate::STEP_BUDGET;
use crate::fs::txn::Op;
use crate::journal::Image;
use crate::units::{BlockNo, Ino};

/// Files longer than this need the feature large_file.
const SMALL_FILE_MAX: u64 = 0x7fff_ffff;

impl Op<'_> {
    /// Sets the length of a regular file. Whether blocks behind a nearer end are still to be taken away: then the inode must
    /// join the orphan list in this operation.
    pub fn resize(&mut self, ino: Ino, inode: &mut Inode, size: u64) -> Result<bool, FsError> {
        if !inode.is_reg() {
            let errno = if inode.is_dir() {
                libc::EISDIR
            } else {
                libc::EINVAL
            };
            return Err(FsError::Refused(errno));
        }
        let old = inode.i_size(self.sb());
        self.check_size(size)?;
        if size > old {
            self.zero_tail(ino, inode, old)?;
            return self.set_size(inode, size).map(|()| false);
        }
        if size < old {
            self.zero_tail(ino, inode, size)?;
        }
        self.set_size(inode, size)?;
        // Also when the length stays: what was allocated behind the end goes.
        let from = file_block(blocks_of(size, self.fs.block_size))?;
        if !inode.has_extents() {
            return match self.has_blocks_from(ino, inode, from)? {
                true => self.must_have_extents(ino, inode).map(|()| false),
                false => Ok(false),
            };
        }
        let rest = self.remove_extents(ino, inode, from, MAX_FILE_BLOCKS, STEP_BUDGET)?;
        Ok(rest.is_some())
    }

    /// EFBIG for a length that no file can have.
    pub fn check_size(&self, size: u64) -> Result<(), FsError> {
        if blocks_of(size, self.fs.block_size) > MAX_FILE_BLOCKS {
            return Err(FsError::Refused(libc::EFBIG));
        }
        Ok(())
    }

    /// Sets `i_size`, and the volume's feature that long files need.
    pub fn set_size(&mut self, inode: &mut Inode, size: u64) -> Result<(), FsError> {
        if size > SMALL_FILE_MAX && !self.meta.sb.has_ro_compat(ro_compat::LARGE_FILE) {
            self.sb_mut()
                .set_ro_compat(ro_compat::LARGE_FILE, true)
                .map_err(|e| FsError::Unsupported(e.to_string()))?;
        }
        inode.set_i_size(size);
        Ok(())
    }

    /// Makes the rest of the block in which `size` falls zeros, if it has contents.
    pub fn zero_tail(&mut self, ino: Ino, inode: &Inode, size: u64) -> Result<(), FsError> {
        let block_size = self.fs.block_size as u64;
        let keep = (size % block_size) as usize;
        if keep == 0 {
            return Ok(());
        }
        let at = file_block(size / block_size)?;
        let Mapping::Mapped {
            block,
            unwritten: false,
            ..
        } = self.map(ino, inode, at, 1)?
        else {
            return Ok(());
        };
        let mut image = self.data_block(block)?;
        if image[keep..].iter().any(|byte| *byte != 0) {
            Arc::make_mut(&mut image)[keep..].fill(0);
            self.put_data(block, image);
        }
        Ok(())
    }

    /// The newest contents of a block of file data.
    pub fn data_block(&self, block: BlockNo) -> Result<Image, FsError> {
        if let Some(image) = self.meta.uncommitted(block) {
            return Ok(Arc::clone(image));
        }
        let mut bytes = vec![0; self.fs.block_size];
        self.fs.journal.read(block, &mut bytes)?;
        Ok(bytes.into())
    }
}
