//! Inodes: placing directories and files (Orlov), allocating and freeing.

use super::bits::{self, View};
use super::zones::corrupt_group;
use super::{AllocError, Allocator, BitmapSum, MetaBlocks};
use crate::ext4::GroupDesc;
use crate::ext4::group_desc::EXT4_BG_INODE_UNINIT;
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{BlockNo, GroupNo, Ino};

/// A request for an inode.
#[derive(Clone, Copy, Debug)]
pub struct InodeRequest {
    /// The directory that it will be in.
    pub parent: Ino,
    /// It will be a directory.
    pub directory: bool,
    /// It will be a directory at the top: the parent is the root or marked as a top of unrelated trees (`EXT4_TOPDIR_FL`).
    pub top_level: bool,
    /// Any number: spreads top-level directories, and files that find their parent's group full.
    pub seed: u32,
}

/// Where an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeSlot {
    /// Its number.
    pub ino: Ino,
    /// The block of the inode table that it is in.
    pub block: BlockNo,
    /// Byte of that block at which it begins.
    pub offset: usize,
    /// The block was never written, and no other inode of it is in use: it must be created as zeros, not read.
    pub fresh_block: bool,
}

impl Allocator {
    /// Allocates an inode: a directory near its parent, or far from others when at the top; anything else in its parent's group
    /// if that has room. The caller writes the inode.
    ///
    /// # Errors
    /// [`AllocError::NoSpace`] when there is no free inode; [`FsError::Corrupt`]. Nothing has changed then.
    pub fn alloc_inode<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        request: &InodeRequest,
    ) -> Result<InodeSlot, AllocError> {
        let parent = self
            .geometry
            .inode_location(request.parent)
            .map_or(0, |(group, _)| group.0 as usize);
        let chosen = if request.directory {
            self.place_directory(parent, request)
        } else {
            self.place_file(parent, request)
        };
        // The last resort is any group with a free inode.
        let count = self.groups.len();
        let group = chosen
            .or_else(|| {
                (0..count)
                    .map(|i| (parent + i) % count)
                    .find(|&g| self.groups[g].desc.bg_free_inodes_count() > 0)
            })
            .ok_or(AllocError::NoSpace)?;
        Ok(self.take_inode(meta, group, request.directory)?)
    }

    fn place_directory(&self, parent: usize, request: &InodeRequest) -> Option<usize> {
        let count = self.groups.len();
        let (groups, geometry) = (count as u64, &self.geometry);
        let average_inodes = self.free_inodes / groups;
        let average_blocks = self.free_blocks / groups;
        let roomy = |d: &GroupDesc| {
            d.bg_free_inodes_count() > 0
                && u64::from(d.bg_free_inodes_count()) >= average_inodes
                && u64::from(d.bg_free_blocks_count()) >= average_blocks
        };
        if request.top_level {
            let start = request.seed as usize % count;
            return (0..count)
                .map(|i| (start + i) % count)
                .filter(|&g| roomy(&self.groups[g].desc))
                .min_by_key(|&g| self.groups[g].desc.bg_used_dirs_count());
        }
        // As ext4: not more directories than average plus a margin, and not almost full.
        let per_group = geometry.inodes_per_group;
        let most_dirs = self.used_dirs / groups + u64::from(per_group / 16);
        let least_inodes = average_inodes
            .saturating_sub(u64::from(per_group / 4))
            .max(1);
        let least_blocks = average_blocks.saturating_sub(u64::from(geometry.blocks_per_group / 4));
        let near = (0..count).map(|i| (parent + i) % count).find(|&g| {
            let d = &self.groups[g].desc;
            u64::from(d.bg_used_dirs_count()) < most_dirs.max(1)
                && u64::from(d.bg_free_inodes_count()) >= least_inodes
                && u64::from(d.bg_free_blocks_count()) >= least_blocks
        });
        near.or_else(|| {
            (0..count)
                .map(|i| (parent + i) % count)
                .find(|&g| roomy(&self.groups[g].desc))
        })
    }

    fn place_file(&self, parent: usize, request: &InodeRequest) -> Option<usize> {
        let count = self.groups.len();
        let fits = |g: usize| {
            let d = &self.groups[g].desc;
            d.bg_free_inodes_count() > 0 && d.bg_free_blocks_count() > 0
        };
        if fits(parent) {
            return Some(parent);
        }
        // Quadratic probing: files of directories that share a full group scatter, those of one directory stay together.
        let mut group = (parent + request.parent.0 as usize) % count;
        let mut step = 1;
        while step < count {
            group = (group + step) % count;
            if fits(group) {
                return Some(group);
            }
            step *= 2;
        }
        (0..count).map(|i| (parent + i) % count).find(|&g| fits(g))
    }

    fn take_inode<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        group: usize,
        directory: bool,
    ) -> Result<InodeSlot, FsError> {
        let number = GroupNo(group as u32);
        let per_group = self.geometry.inodes_per_group;
        let bitmap = self.inode_bitmap(meta, group)?;
        let view = View::new(&bitmap, None, per_group);
        let first = if group == 0 { self.first_ino - 1 } else { 0 };
        let desc = self.groups[group].desc;
        let Some(index) = view.next_free(first) else {
            let detail = format!(
                "no inode is free, the descriptor says {}",
                desc.bg_free_inodes_count()
            );
            return Err(corrupt_group(number, desc.bg_inode_bitmap(), detail));
        };
        let uninit = desc.inode_uninit(meta.sb());
        // Inodes from `used` on were never in use.
        let used = match uninit {
            true => 0,
            false => per_group - desc.bg_itable_unused(),
        };
        let fresh_block = meta.sb().has_group_desc_csum() && !desc.inode_zeroed() && {
            let per_block = self.geometry.block_size / u32::from(self.geometry.inode_size);
            let start = index - index % per_block;
            start >= used || view.is_free(start, per_block.min(per_group - start))
        };
        drop(bitmap);

        // As the kernel: a group with inodes in use has both bitmaps.
        self.initialise_blocks(meta, group)?;
        let sum = BitmapSum::new(meta.sb());
        let has_unused = meta.sb().has_group_desc_csum();
        let g = &mut self.groups[group];
        if uninit {
            let bitmap = meta.create(desc.bg_inode_bitmap())?;
            let bits = (bitmap.len() * 8) as u32;
            bits::fill(bitmap, per_group, bits.saturating_sub(per_group), true);
            g.desc
                .set_bg_flags(g.desc.bg_flags() & !EXT4_BG_INODE_UNINIT);
            g.inodes_checked = true;
        }
        let bitmap = meta.modify(desc.bg_inode_bitmap())?;
        bits::fill(bitmap, index, 1, true);
        if let Some(sum) = sum.of(bitmap, per_group) {
            g.desc.set_bg_inode_bitmap_csum(sum);
        }
        g.desc
            .set_bg_free_inodes_count(desc.bg_free_inodes_count().saturating_sub(1));
        if has_unused {
            g.desc.set_bg_itable_unused(per_group - used.max(index + 1));
        }
        if directory {
            g.desc.set_bg_used_dirs_count(desc.bg_used_dirs_count() + 1);
            self.used_dirs += 1;
        }
        self.free_inodes = self.free_inodes.saturating_sub(1);
        self.store(meta, group)?;
        let (block, offset) = self.geometry.inode_place(desc.bg_inode_table(), index);
        Ok(InodeSlot {
            ino: self.geometry.ino(number, index),
            block,
            offset,
            fresh_block,
        })
    }

    /// Frees an inode, which the caller has made unused in the inode table.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when it is reserved, outside the volume or free already: nothing has changed then.
    pub fn free_inode<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &mut M,
        ino: Ino,
        directory: bool,
    ) -> Result<(), AllocError> {
        let corrupt = |detail: &str| {
            AllocError::Fs(FsError::Corrupt {
                what: "inode bitmap",
                ino: Some(ino),
                block: None,
                detail: detail.into(),
            })
        };
        let place = self.geometry.inode_location(ino);
        let Some((number, index)) = place.filter(|_| ino.0 >= self.first_ino) else {
            return Err(corrupt(
                "the inode to be freed is reserved or does not exist",
            ));
        };
        let group = number.0 as usize;
        if !self.inode_in_use(meta, ino)? {
            return Err(corrupt("the inode to be freed is free already"));
        }
        let sum = BitmapSum::new(meta.sb());
        let per_group = self.geometry.inodes_per_group;
        let desc = &mut self.groups[group].desc;
        let bitmap = meta.modify(desc.bg_inode_bitmap())?;
        bits::fill(bitmap, index, 1, false);
        if let Some(sum) = sum.of(bitmap, per_group) {
            desc.set_bg_inode_bitmap_csum(sum);
        }
        desc.set_bg_free_inodes_count(desc.bg_free_inodes_count() + 1);
        self.free_inodes += 1;
        if directory {
            desc.set_bg_used_dirs_count(desc.bg_used_dirs_count().saturating_sub(1));
            self.used_dirs = self.used_dirs.saturating_sub(1);
        }
        Ok(self.store(meta, group)?)
    }

    /// Whether the inode bitmap has the inode in use; `false` for numbers that do not exist.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when the bitmap is damaged.
    pub fn inode_in_use<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        ino: Ino,
    ) -> Result<bool, FsError> {
        let Some((group, index)) = self.geometry.inode_location(ino) else {
            return Ok(false);
        };
        let bitmap = self.inode_bitmap(meta, group.0 as usize)?;
        let per_group = self.geometry.inodes_per_group;
        Ok(View::new(&bitmap, None, per_group).is_used(index, 1))
    }

    /// Block of the inode table and byte in it where an inode is; `None` for numbers that do not exist.
    pub fn inode_place(&self, ino: Ino) -> Option<(BlockNo, usize)> {
        let (group, index) = self.geometry.inode_location(ino)?;
        let table = self.groups[group.0 as usize].desc.bg_inode_table();
        Some(self.geometry.inode_place(table, index))
    }

    /// The group's inode bitmap: checked, or made up when it was never written.
    fn inode_bitmap<M: MetaBlocks + ?Sized>(
        &mut self,
        meta: &M,
        group: usize,
    ) -> Result<Image, FsError> {
        let desc = self.groups[group].desc;
        if desc.inode_uninit(meta.sb()) {
            return Ok(vec![0; self.geometry.block_size as usize].into());
        }
        let block = desc.bg_inode_bitmap();
        let image = meta.get(block)?;
        if self.groups[group].inodes_checked {
            return Ok(image);
        }
        let corrupt = |detail: String| Err(corrupt_group(GroupNo(group as u32), block, detail));
        let per_group = self.geometry.inodes_per_group;
        let stored = desc.bg_inode_bitmap_csum();
        if let Some(sum) = BitmapSum::new(meta.sb()).of(&image, per_group)
            && sum != stored
        {
            let detail = format!("checksum of the inode bitmap is {stored:#x}, computed {sum:#x}");
            return corrupt(detail);
        }
        let free = View::new(&image, None, per_group).count_free();
        let expected = desc.bg_free_inodes_count();
        if free != expected {
            return corrupt(format!(
                "{free} inodes are free, the descriptor says {expected}"
            ));
        }
        self.groups[group].inodes_checked = true;
        Ok(image)
    }
}
