//! Allocating ahead, punching holes, zeroing ranges. Blocks allocated ahead are zeroed at home before the transaction that
//! maps them (as unwritten): no copy of the volume then keeps what was there before. A range is zeroed by taking its whole
//! blocks away and allocating others, so that bytes which a mirror still needs stay as they are.

use std::sync::Arc;

use crate::ext4::Inode;
use crate::fs::alloc::BlockRequest;
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::extent::{MAX_FILE_BLOCKS, MAX_UNWRITTEN, Mapping};
use crate::fs::inode::{InodeStore, blocks_of};
use crate::fs::read::file_block;
use crate::fs::truncate::{STEP_BUDGET, STEP_CREDITS};
use crate::fs::txn::{Op, reach_of};
use crate::fs::write::{Reserved, check_writable_file};
use crate::fs::{Caller, FallocMode, Fs, FsError, WriteFor};
use crate::units::{FileBlock, Ino};

impl Fs {
    /// Allocates, punches or zeroes a range of bytes.
    pub fn fallocate(
        &self,
        ino: Ino,
        mode: FallocMode,
        offset: u64,
        len: u64,
    ) -> Result<(), FsError> {
        self.fallocate_as(ino, mode, offset, len, WriteFor::default())
    }

    /// As `fallocate`, for the kernel; where its own cache decides the times, they are left alone.
    pub fn fallocate_as(
        &self,
        ino: Ino,
        mode: FallocMode,
        offset: u64,
        len: u64,
        by: WriteFor,
    ) -> Result<(), FsError> {
        self.check_writable()?;
        let _entering = self.admit(0);
        if len == 0 {
            return Err(FsError::Refused(libc::EINVAL));
        }
        let end = offset
            .checked_add(len)
            .filter(|end| blocks_of(*end, self.block_size) <= MAX_FILE_BLOCKS)
            .ok_or(FsError::Refused(libc::EFBIG))?;
        let state = self.inodes.get(ino, self.committed());
        let _data = state.data.write();
        {
            let view = self.view()?;
            check_writable_file(&view.inode(ino)?)?;
        }
        let keep_size = match mode {
            FallocMode::PunchHole => {
                self.punch(ino, offset, end, by)?;
                true
            }
            FallocMode::ZeroRange { keep_size } => {
                self.punch(ino, offset, end, by)?;
                self.allocate(ino, offset, end, by.caller)?;
                keep_size
            }
            FallocMode::Allocate { keep_size } => {
                self.allocate(ino, offset, end, by.caller)?;
                keep_size
            }
        };
        self.change(STEP_CREDITS, |op| {
            let mut inode = op.inode(ino)?;
            let size = inode.i_size(op.sb());
            let grows = !keep_size && end > size;
            if grows {
                op.zero_tail(ino, &inode, size)?;
                op.set_size(&mut inode, end)?;
            }
            op.drop_privileges(ino, &mut inode, by.kill_suidgid)?;
            if !by.writeback {
                if grows {
                    inode.set_i_mtime(op.now());
                }
                inode.set_i_ctime(op.now());
            }
            op.put_inode(ino, &mut inode, true)
        })
    }

    /// Gives every hole in the range blocks that read as zeros.
    fn allocate(&self, ino: Ino, offset: u64, end: u64, caller: Caller) -> Result<(), FsError> {
        let mut at = offset / self.block_size as u64;
        let to = blocks_of(end, self.block_size);
        while at < to {
            let want = (to - at).min(u64::from(MAX_UNWRITTEN)) as u32;
            let here = file_block(at)?;
            let mapping = {
                let view = self.view()?;
                let inode = view.inode(ino)?;
                view.map(ino, &inode, here, want)?
            };
            at += match mapping {
                Mapping::Mapped { len, .. } => u64::from(len),
                Mapping::Hole(len) => self.allocate_hole(ino, here, len, caller)?,
            };
        }
        Ok(())
    }

    /// Gives some of a hole blocks, from its start; how many.
    fn allocate_hole(
        &self,
        ino: Ino,
        at: FileBlock,
        len: u32,
        caller: Caller,
    ) -> Result<u64, FsError> {
        let range = self.retry_space(|| {
            let mut op = self.begin(1)?;
            let inode = op.inode(ino)?;
            op.must_have_extents(ino, &inode)?;
            let request = BlockRequest {
                goal: op.goal_for(ino, &inode, at)?,
                min: 1,
                max: len,
                reach: reach_of(op.sb(), caller),
            };
            op.reserve(&request)
        })?;
        let mut reserved = Reserved {
            fs: self,
            ranges: vec![range],
        };
        self.volume.zero(range)?;
        self.change(STEP_CREDITS, |op| {
            let mut inode = op.inode(ino)?;
            op.take_reserved(range)?;
            op.insert_extent(ino, &mut inode, at, range, true)?;
            op.put_zeroed(range);
            op.put_inode(ino, &mut inode, true)
        })?;
        reserved.ranges.clear();
        Ok(range.len)
    }

    /// Takes the range's whole blocks away and makes the rest of it zeros.
    fn punch(&self, ino: Ino, offset: u64, end: u64, by: WriteFor) -> Result<(), FsError> {
        let block_size = self.block_size as u64;
        let whole = blocks_of(offset, self.block_size)..end / block_size;
        self.change(STEP_CREDITS, |op| {
            let mut inode = op.inode(ino)?;
            let (head, tail) = (offset % block_size, end % block_size);
            if offset / block_size == end / block_size {
                // Within one block.
                op.zero_part(ino, &inode, offset / block_size, head, tail)?;
            } else {
                if head > 0 {
                    op.zero_part(ino, &inode, offset / block_size, head, block_size)?;
                }
                if tail > 0 {
                    op.zero_part(ino, &inode, end / block_size, 0, tail)?;
                }
            }
            if !by.writeback {
                let now = op.now();
                inode.set_i_mtime(now);
                inode.set_i_ctime(now);
            }
            op.put_inode(ino, &mut inode, true)
        })?;
        let mut to = whole.end;
        while whole.start < to {
            let from = file_block(whole.start)?;
            let rest = self.change(STEP_CREDITS, |op| {
                let mut inode = op.inode(ino)?;
                let rest = op.remove_extents(ino, &mut inode, from, to, STEP_BUDGET)?;
                op.put_inode(ino, &mut inode, true)?;
                Ok(rest)
            })?;
            match rest {
                Some(block) => to = u64::from(block.0),
                None => break,
            }
        }
        Ok(())
    }
}

impl Op<'_> {
    /// Makes bytes `from..to` of a block of the file zeros, if it has contents.
    fn zero_part(
        &mut self,
        ino: Ino,
        inode: &Inode,
        at: u64,
        from: u64,
        to: u64,
    ) -> Result<(), FsError> {
        if let Mapping::Mapped {
            block,
            unwritten: false,
            ..
        } = self.map(ino, inode, file_block(at)?, 1)?
        {
            let mut image = self.data_block(block)?;
            Arc::make_mut(&mut image)[from as usize..to as usize].fill(0);
            self.put_data(block, image);
        }
        Ok(())
    }
}
