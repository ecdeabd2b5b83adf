//! Allocation of blocks and inodes.
//!
//! Owns the state of every block group in memory (its descriptor, how long its longest free run can be) and the quarantine:
//! blocks that were freed but must not be used again yet, because a mirror may still need their bytes. Every change goes to
//! the bitmap, the descriptor and the superblock through [`MetaBlocks`], with their checksums, in the running transaction.
//! Never reads or writes data, never commits, never waits. Not thread-safe by itself: changes take `&mut self`.
//!
//! Invariants: after each method the blocks written agree with each other (bitmap, counts, checksums); a bit that is set on
//! disk is never handed out, nor one in quarantine; a block of the volume's own is never freed. A bitmap is checked (checksum,
//! the volume's own blocks, free count) before its first use.
//!
//! Memory: about 120 bytes a group, one range per group or flex group, and one bitmap for each group with blocks in quarantine.
//!
//! Format: kernel `Documentation/filesystems/ext4/{group_descr,bitmaps}.rst`; directory placement after Orlov, as in ext4.

pub(crate) mod bits;
mod block;
mod inode;
mod quarantine;
mod reserve;
pub(crate) mod zones;

#[cfg(test)]
pub(crate) mod image;
#[cfg(test)]
mod tests;

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::features::incompat;
use crate::ext4::superblock::{SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};
use crate::ext4::{Geometry, GroupDesc, Superblock};
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, GroupNo};
use bits::View;
use quarantine::Quarantine;
use zones::{Zones, corrupt_group};

pub use block::{BlockRequest, Reach};
pub use inode::{InodeRequest, InodeSlot};

/// Most blocks that [`Allocator::alloc_blocks`] changes: bitmap, descriptor, superblock. Freeing changes as many for each group
/// that the range touches.
pub const ALLOC_BLOCKS_CREDITS: usize = 3;
/// Most blocks that [`Allocator::alloc_inode`] and writing the inode change: both bitmaps (the group may be new), descriptor,
/// superblock, inode table.
pub const ALLOC_INODE_CREDITS: usize = 5;

/// What the allocator stands on: blocks of the running transaction, without allocation.
pub trait MetaBlocks {
    /// The volume's superblock. Its counts may be old: the allocator has its own.
    fn sb(&self) -> &Superblock;
    /// The newest contents of a metadata block.
    fn get(&self, block: BlockNo) -> Result<Image, FsError>;
    /// The block's bytes, to be changed in place; the block joins the running transaction.
    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError>;
    /// As `modify`, but all zeros; nothing is read from disk.
    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError>;
}

/// Why nothing was allocated or freed.
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// No free block (or no run of the length wanted, or only reserved ones), or no free inode.
    #[error("no space left on the volume")]
    NoSpace,
    /// There would be space but for blocks in quarantine: release some and try again.
    #[error("the free space left, {blocks} blocks, is still needed by a mirror")]
    Quarantined {
        /// Blocks in quarantine.
        blocks: u64,
    },
    /// Reading or writing metadata failed, or it is corrupt.
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl From<AllocError> for FsError {
    fn from(error: AllocError) -> FsError {
        match error {
            AllocError::NoSpace => FsError::NoSpace,
            AllocError::Quarantined { blocks } => FsError::SpaceHeld { blocks },
            AllocError::Fs(error) => error,
        }
    }
}

/// What the allocator knows of a group.
#[derive(Debug)]
struct Group {
    /// As on disk.
    desc: GroupDesc,
    /// The block bitmap (inode bitmap) was checked.
    blocks_checked: bool,
    inodes_checked: bool,
}

/// The free space of a volume.
#[derive(Debug)]
pub struct Allocator {
    geometry: Geometry,
    zones: Zones,
    /// More blocks that no file can have: the journal's, the MMP block.
    protected: Vec<BlockRange>,
    groups: Vec<Group>,
    /// Per group: no run of usable blocks is longer than this. Apart from `groups`, so that passing over thousands of full
    /// groups reads little memory.
    largest: Vec<u32>,
    quarantine: Quarantine,
    /// Of those in quarantine, the ones that a write has taken and no transaction knows of.
    spoken_for: u64,
    free_blocks: u64,
    free_inodes: u64,
    used_dirs: u64,
    reserved: u64,
    for_trees: u64,
    first_ino: u32,
}

impl Allocator {
    /// Reads all group descriptors.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] when a descriptor is; whatever reading returns.
    pub fn load<M: MetaBlocks + ?Sized>(meta: &M) -> Result<Allocator, FsError> {
        let sb = meta.sb();
        let geometry = sb.geometry();
        let mut groups: Vec<Group> = Vec::new();
        zones::descriptors(sb, &mut |block| meta.get(block), &mut |_, desc| {
            groups.push(Group {
                desc,
                blocks_checked: false,
                inodes_checked: false,
            });
        })?;
        let zones = Zones::new(&geometry, groups.iter().map(|g| g.desc))?;
        let sum = |of: fn(&GroupDesc) -> u32| groups.iter().map(|g| u64::from(of(&g.desc))).sum();
        let mmp = (sb.has_mmp() && sb.s_mmp_block() > 0)
            .then(|| BlockRange::new(BlockNo(sb.s_mmp_block()), 1));
        Ok(Allocator {
            geometry,
            zones,
            protected: mmp.into_iter().collect(),
            quarantine: Quarantine::new(groups.len()),
            spoken_for: 0,
            free_blocks: sum(GroupDesc::bg_free_blocks_count),
            free_inodes: sum(GroupDesc::bg_free_inodes_count),
            used_dirs: sum(GroupDesc::bg_used_dirs_count),
            largest: groups
                .iter()
                .map(|g| g.desc.bg_free_blocks_count())
                .collect(),
            reserved: sb.s_r_blocks_count(),
            for_trees: kept_for_trees(sb),
            first_ino: sb.first_ino(),
            groups,
        })
    }

    /// Reads the descriptors anew, after somebody else changed them (a mirror applied transactions, a change was undone). The
    /// quarantine and the protected ranges stay.
    ///
    /// # Errors
    /// As [`Allocator::load`]; nothing has changed then.
    pub fn reload<M: MetaBlocks + ?Sized>(&mut self, meta: &M) -> Result<(), FsError> {
        let mut new = Allocator::load(meta)?;
        new.quarantine = std::mem::replace(&mut self.quarantine, Quarantine::new(0));
        new.protected = std::mem::take(&mut self.protected);
        new.spoken_for = self.spoken_for;
        *self = new;
        for group in 0..self.groups.len() {
            self.largest[group] = self.usable(group);
        }
        Ok(())
    }

    /// Adds blocks that no file can have (the journal's).
    pub fn protect(&mut self, ranges: &[BlockRange]) {
        self.protected.extend_from_slice(ranges);
        self.protected = crate::units::coalesce(std::mem::take(&mut self.protected));
    }

    /// Whether a block of the range is the volume's own and can not be a file's: for `Blocks::is_system`.
    pub fn is_system(&self, range: BlockRange) -> bool {
        let i = self.protected.partition_point(|z| z.end() <= range.start);
        self.zones.overlaps(&range) || self.protected.get(i).is_some_and(|z| z.overlaps(&range))
    }

    /// Free blocks of the volume, those in quarantine and those reserved included.
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// Blocks that only the superuser may take.
    pub fn reserved_blocks(&self) -> u64 {
        self.reserved
    }

    /// Free blocks that can not be used before they are released. Those promised to writes under way are not among them.
    pub fn quarantined_blocks(&self) -> u64 {
        self.quarantine.total() - self.quarantine.of(reserve::RESERVED)
    }

    /// Of those, the ones that a release will give back.
    pub fn waiting_blocks(&self) -> u64 {
        self.quarantine.total() - self.spoken_for
    }

    /// Free inodes.
    pub fn free_inodes(&self) -> u64 {
        self.free_inodes
    }

    /// Superblock copies, descriptors, bitmaps and inode tables: the overhead that statfs takes off the size.
    pub fn system_blocks(&self) -> u64 {
        self.zones.count()
    }

    /// The volume's geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Blocks of the group that are free and not in quarantine.
    fn usable(&self, group: usize) -> u32 {
        let free = self.groups[group].desc.bg_free_blocks_count();
        free.saturating_sub(self.quarantine.in_group(group))
    }

    /// Writes a group's descriptor, and the superblock's totals.
    fn store<M: MetaBlocks + ?Sized>(&mut self, meta: &mut M, group: usize) -> Result<(), FsError> {
        let number = GroupNo(group as u32);
        let (block, offset) = self.geometry.desc_location(number);
        let desc = &mut self.groups[group].desc;
        desc.update_checksum(meta.sb(), number);
        let bytes = desc.as_bytes();
        let place = meta
            .modify(block)?
            .get_mut(offset..offset + bytes.len())
            .ok_or_else(|| corrupt_group(number, block, "descriptor behind its block".into()))?;
        place.copy_from_slice(bytes);
        self.store_totals(meta)
    }

    fn store_totals<M: MetaBlocks + ?Sized>(&self, meta: &mut M) -> Result<(), FsError> {
        let size = u64::from(self.geometry.block_size);
        let block = BlockNo(SUPERBLOCK_OFFSET / size);
        let offset = (SUPERBLOCK_OFFSET % size) as usize;
        let bytes = meta.modify(block)?;
        let corrupt = |detail: String| FsError::Corrupt {
            what: "superblock",
            ino: None,
            block: Some(block),
            detail,
        };
        let place = bytes
            .get_mut(offset..offset + SUPERBLOCK_SIZE)
            .ok_or_else(|| corrupt("the block is too short".into()))?;
        let mut sb = Superblock::decode(place).map_err(|e| corrupt(e.to_string()))?;
        sb.set_s_free_blocks_count(self.free_blocks);
        sb.set_s_free_inodes_count(self.free_inodes as u32);
        place.copy_from_slice(sb.encode());
        Ok(())
    }
}

/// Blocks that only extent trees may have, beside the superuser's reserve: a fiftieth of the volume, at most 4096 (kernel:
/// `ext4_calculate_resv_clusters`).
pub(crate) fn kept_for_trees(sb: &Superblock) -> u64 {
    match sb.has_incompat(incompat::EXTENTS) {
        true => (sb.s_blocks_count() / 50).min(4096),
        false => 0,
    }
}

/// How a volume's bitmaps are checksummed.
#[derive(Clone, Copy)]
pub(crate) struct BitmapSum {
    seed: Option<u32>,
    /// Descriptors of 32 bytes have room for the low half only.
    mask: u32,
}

impl BitmapSum {
    pub(crate) fn new(sb: &Superblock) -> BitmapSum {
        BitmapSum {
            seed: sb.has_metadata_csum().then(|| sb.csum_seed()),
            mask: if sb.desc_size() >= 64 { !0 } else { 0xffff },
        }
    }

    /// Checksum of a bitmap of which the first `bits` bits count; `None` where the volume has none.
    pub(crate) fn of(&self, bitmap: &[u8], bits: u32) -> Option<u32> {
        let bytes = (bits as usize / 8).min(bitmap.len());
        Some(crc32c_raw(self.seed?, &bitmap[..bytes]) & self.mask)
    }
}

/// Checks a block bitmap that was read: its checksum, that the volume's own blocks are in use, the count of free blocks.
pub(crate) fn check_block_bitmap(
    sb: &Superblock,
    zones: &Zones,
    group: GroupNo,
    desc: &GroupDesc,
    bitmap: &[u8],
) -> Result<(), FsError> {
    let geometry = sb.geometry();
    let corrupt = |detail: String| Err(corrupt_group(group, desc.bg_block_bitmap(), detail));
    let stored = desc.bg_block_bitmap_csum();
    if let Some(sum) = BitmapSum::new(sb).of(bitmap, geometry.blocks_per_group)
        && sum != stored
    {
        let detail = format!("checksum of the block bitmap is {stored:#x}, computed {sum:#x}");
        return corrupt(detail);
    }
    let blocks = geometry.group_blocks(group);
    let view = View::new(bitmap, None, blocks.len as u32);
    for zone in zones.within(blocks) {
        if !view.is_used((zone.start.0 - blocks.start.0) as u32, zone.len as u32) {
            return corrupt(format!("the bitmap says metadata at {zone} is free"));
        }
    }
    let (free, expected) = (view.count_free(), desc.bg_free_blocks_count());
    if free != expected {
        let detail = format!("{free} blocks are free, the descriptor says {expected}");
        return corrupt(detail);
    }
    Ok(())
}
