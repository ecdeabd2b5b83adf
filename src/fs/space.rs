//! Space within one operation: blocks and inodes taken and given back, `i_blocks`, and the orphan list. Owns how the
//! allocator, the extent tree and the running transaction meet.

use crate::ext4::inode::{flags, reserved};
use crate::ext4::{Inode, Superblock};
use crate::fs::FsError;
use crate::fs::alloc::{Allocator, BlockRequest, InodeRequest, MetaBlocks};
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::extent::{self, Mapping};
use crate::fs::inode::{InodeStore, owner};
use crate::fs::orphan::OrphanStore;
use crate::fs::txn::Op;
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, FileBlock, Ino};

impl Op<'_> {
    /// Works on the allocator, which works on the operation's blocks.
    pub fn with_alloc<R>(
        &mut self,
        work: impl FnOnce(&mut Allocator, &mut Self) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let mut alloc = self.meta.alloc.take().ok_or(FsError::ReadOnly)?;
        self.alloc_changed = true;
        let result = work(&mut alloc, self);
        self.meta.alloc = Some(alloc);
        result
    }

    /// Chooses blocks and keeps them from being chosen again; the transaction does not change.
    pub fn reserve(&mut self, request: &BlockRequest) -> Result<BlockRange, FsError> {
        let mut alloc = self.meta.alloc.take().ok_or(FsError::ReadOnly)?;
        let result = alloc.reserve(self, request);
        self.meta.alloc = Some(alloc);
        Ok(result?)
    }

    /// Allocates blocks that were reserved.
    pub fn take_reserved(&mut self, range: BlockRange) -> Result<(), FsError> {
        self.taken.push(range);
        self.with_alloc(|alloc, op| Ok(alloc.take_reserved(op, range)?))
    }

    /// Takes an inode for a new file of `parent`.
    pub fn alloc_inode(&mut self, parent: Ino, directory: bool) -> Result<Ino, FsError> {
        let top = self.inode(parent)?.has_flag(flags::TOPDIR);
        let request = InodeRequest {
            parent,
            directory,
            top_level: directory && (parent == reserved::ROOT || top),
            seed: self.fs.random.u32(),
        };
        let slot = self.with_alloc(|alloc, op| Ok(alloc.alloc_inode(op, &request)?))?;
        if slot.fresh_block {
            BlocksMut::create(self, slot.block)?;
        }
        Ok(slot.ino)
    }

    /// Gives an inode back; it must be out of the orphan list. Its slot in the table says that it is not in use.
    pub fn free_inode(&mut self, ino: Ino, mut inode: Inode) -> Result<(), FsError> {
        let directory = inode.is_dir();
        let now = self.now().0;
        inode.set_i_mode(0);
        inode.set_i_links_count(0);
        inode.set_i_size(0);
        inode.set_i_dtime(now.clamp(1, i64::from(u32::MAX)) as u32);
        self.put_inode(ino, &mut inode, false)?;
        self.with_alloc(|alloc, op| Ok(alloc.free_inode(op, ino, directory)?))
    }

    /// Where an inode's blocks should be when nothing better is known.
    pub fn goal_of(&self, ino: Ino) -> BlockNo {
        let alloc = self.meta.alloc.as_ref();
        alloc.map_or(BlockNo(0), |alloc| alloc.goal_of(ino))
    }

    /// Where file block `at` should be: behind the block before it, if that is somewhere.
    pub fn goal_for(&self, ino: Ino, inode: &Inode, at: FileBlock) -> Result<BlockNo, FsError> {
        if at.0 > 0
            && let Mapping::Mapped { block, .. } = self.map(ino, inode, FileBlock(at.0 - 1), 1)?
        {
            return Ok(BlockNo(block.0 + 1));
        }
        Ok(self.goal_of(ino))
    }

    /// Allocates up to `max` adjacent blocks for the file blocks from `at` on, which must be a hole, as written blocks. The
    /// caller gives them contents.
    pub fn add_blocks(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        at: FileBlock,
        max: u32,
    ) -> Result<BlockRange, FsError> {
        let goal = self.goal_for(ino, inode, at)?;
        let range = self.alloc(goal, 1, max)?;
        self.insert_extent(ino, inode, at, range, false)?;
        Ok(range)
    }

    /// Maps a hole of the file to blocks that are allocated already.
    pub fn insert_extent(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        at: FileBlock,
        range: BlockRange,
        unwritten: bool,
    ) -> Result<(), FsError> {
        self.must_have_extents(ino, inode)?;
        let mut root = inode.i_block();
        let change = extent::insert(self, owner(ino, inode), &mut root, at, range, unwritten)?;
        inode.set_i_block(root);
        let blocks = range.len as i64 + tree_blocks(change);
        self.add_i_blocks(inode, blocks)
    }

    /// Marks unwritten blocks as written.
    pub fn convert_extent(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        at: FileBlock,
        len: u32,
    ) -> Result<(), FsError> {
        self.must_have_extents(ino, inode)?;
        let mut root = inode.i_block();
        let change = extent::convert(self, owner(ino, inode), &mut root, at, len)?;
        inode.set_i_block(root);
        self.add_i_blocks(inode, tree_blocks(change))
    }

    /// Takes file blocks `from..to` away, from the end, as far as `budget` (in changed metadata blocks) allows. Where to go
    /// on, if it was not enough.
    pub fn remove_extents(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        from: FileBlock,
        to: u64,
        budget: usize,
    ) -> Result<Option<FileBlock>, FsError> {
        self.must_have_extents(ino, inode)?;
        let mut root = inode.i_block();
        let removed = extent::remove(self, owner(ino, inode), &mut root, from, to, budget)?;
        inode.set_i_block(root);
        let mut blocks = tree_blocks(removed.change);
        for extent in &removed.data {
            self.free(extent.range)?;
            blocks -= extent.range.len as i64;
        }
        self.add_i_blocks(inode, blocks)?;
        Ok(removed.stopped_at)
    }

    /// Files mapped the ext2 way can be read and overwritten; their blocks can not be changed.
    pub fn must_have_extents(&self, ino: Ino, inode: &Inode) -> Result<(), FsError> {
        if inode.has_extents() {
            return Ok(());
        }
        Err(FsError::Unsupported(format!(
            "growing, cutting or removing inode {ino}, whose blocks are mapped without extents (as in ext3): mount the \
             volume with the kernel's ext4 while it is closed here, and either run `chattr +e` on the file (find it with \
             `find DIR -inum {ino}`) or copy and rename it"
        )))
    }

    /// The inode has `blocks` more (or fewer).
    pub fn add_i_blocks(&self, inode: &mut Inode, blocks: i64) -> Result<(), FsError> {
        if blocks == 0 {
            return Ok(());
        }
        let sectors = blocks * (self.fs.block_size / 512) as i64;
        let total = inode.i_blocks(&self.meta.sb).saturating_add_signed(sectors);
        inode
            .set_i_blocks(&self.meta.sb, total)
            .map_err(|_| FsError::Refused(libc::EFBIG))
    }

    /// The inode is to be deleted, or cut, whatever happens.
    pub fn add_orphan(&mut self, ino: Ino) -> Result<(), FsError> {
        let mut orphans = std::mem::take(&mut self.meta.orphans);
        self.orphans_changed = true;
        let result = orphans.add(self, ino);
        self.meta.orphans = orphans;
        result
    }

    /// Makes the feature bit of the orphan file say what the file holds.
    pub fn settle_orphans(&mut self) -> Result<(), FsError> {
        let orphans = std::mem::take(&mut self.meta.orphans);
        let result = orphans.settle(self);
        self.meta.orphans = orphans;
        result
    }

    /// The inode is deleted, or cut as far as it had to be.
    pub fn remove_orphan(&mut self, ino: Ino) -> Result<(), FsError> {
        let mut orphans = std::mem::take(&mut self.meta.orphans);
        self.orphans_changed = true;
        let result = orphans.remove(self, ino);
        self.meta.orphans = orphans;
        result
    }
}

fn tree_blocks(change: extent::Change) -> i64 {
    i64::from(change.metadata_allocated) - i64::from(change.metadata_freed)
}

impl MetaBlocks for Op<'_> {
    fn sb(&self) -> &Superblock {
        &self.meta.sb
    }

    fn get(&self, block: BlockNo) -> Result<Image, FsError> {
        Blocks::get(self, block)
    }

    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        BlocksMut::modify(self, block)
    }

    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError> {
        BlocksMut::create(self, block)
    }
}

impl OrphanStore for Op<'_> {
    fn sb(&self) -> &Superblock {
        &self.meta.sb
    }

    fn set_s_last_orphan(&mut self, ino: u32) -> Result<(), FsError> {
        self.sb_mut().set_s_last_orphan(ino);
        Ok(())
    }

    fn set_orphan_present(&mut self, present: bool) -> Result<(), FsError> {
        self.sb_mut()
            .set_ro_compat(crate::ext4::features::ro_compat::ORPHAN_PRESENT, present)
            .map_err(|e| FsError::Unsupported(e.to_string()))
    }

    fn i_dtime(&self, ino: Ino) -> Result<u32, FsError> {
        orphan_dtime(self, ino)
    }

    fn set_i_dtime(&mut self, ino: Ino, value: u32) -> Result<(), FsError> {
        let mut inode = self.inode(ino)?;
        inode.set_i_dtime(value);
        self.put_inode(ino, &mut inode, false)
    }

    fn orphan_file(&self) -> Result<(u32, u32), FsError> {
        orphan_file(self)
    }

    fn orphan_block(&self, block: FileBlock) -> Result<(BlockNo, Image), FsError> {
        orphan_block(self, block)
    }

    fn modify_orphan_block(&mut self, block: FileBlock) -> Result<(BlockNo, &mut [u8]), FsError> {
        let (at, _) = orphan_block(self, block)?;
        Ok((at, BlocksMut::modify(self, at)?))
    }
}

fn orphan_dtime(store: &impl InodeStore, ino: Ino) -> Result<u32, FsError> {
    match store.inode(ino) {
        Ok(inode) => Ok(inode.i_dtime()),
        Err(FsError::Stale) => Err(FsError::Corrupt {
            what: "orphan list",
            ino: Some(ino),
            block: None,
            detail: "the inode is not in use".into(),
        }),
        Err(e) => Err(e),
    }
}

fn orphan_file(store: &impl InodeStore) -> Result<(u32, u32), FsError> {
    let sb = store.sb();
    let inode = store.inode(Ino(sb.s_orphan_file_inum()))?;
    let blocks = inode.i_size(sb) / u64::from(sb.block_size());
    Ok((inode.i_generation(), blocks.min(u64::from(u32::MAX)) as u32))
}

fn orphan_block(store: &impl InodeStore, block: FileBlock) -> Result<(BlockNo, Image), FsError> {
    let ino = Ino(store.sb().s_orphan_file_inum());
    let inode = store.inode(ino)?;
    match store.map(ino, &inode, block, 1)? {
        Mapping::Mapped { block, .. } => Ok((block, store.get(block)?)),
        Mapping::Hole(_) => Err(FsError::Corrupt {
            what: "orphan file",
            ino: Some(ino),
            block: None,
            detail: format!("its block {block} is not there"),
        }),
    }
}
