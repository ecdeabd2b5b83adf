//! Where things are: groups, superblock copies, descriptors, inodes. Owns the arithmetic of block groups, with
//! sparse_super, sparse_super2, meta_bg, flex_bg, reserved descriptor blocks and a short last group. Made from a
//! verified [`Superblock`] only, so that nothing here can divide by zero or overflow; never reads a descriptor.

use std::ops::Range;

use crate::ext4::Superblock;
use crate::ext4::features::{compat, ro_compat};
use crate::units::{BlockNo, BlockRange, GroupNo, Ino};

/// The fixed numbers of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the volume.
    pub blocks_count: u64,
    /// Block of the first group's first block.
    pub first_data_block: u32,
    /// Blocks of a group.
    pub blocks_per_group: u32,
    /// Blocks of a cluster; 1 unless bigalloc.
    pub cluster_ratio: u32,
    /// Groups.
    pub groups_count: u32,
    /// Inodes of a group.
    pub inodes_per_group: u32,
    /// Inodes of the volume.
    pub inodes_count: u32,
    /// Bytes of an inode.
    pub inode_size: u16,
    /// Bytes of a group descriptor.
    pub desc_size: u16,
    /// Descriptor blocks kept for growth behind each copy of the descriptors.
    pub reserved_gdt_blocks: u16,
    /// Groups of a flex group (1 without flex_bg).
    pub groups_per_flex: u32,
    sparse_super: bool,
    sparse_super2: bool,
    meta_bg: bool,
    first_meta_bg: u32,
    backup_bgs: [u32; 2],
}

/// The blocks at the start of a group that hold copies of superblock and descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseMeta {
    /// The superblock's copy.
    pub superblock: Option<BlockNo>,
    /// Descriptor blocks; may be empty.
    pub descriptors: BlockRange,
    /// Reserved descriptor blocks; may be empty.
    pub reserved: BlockRange,
}

fn is_power_of(mut n: u32, base: u32) -> bool {
    while n > 1 && n.is_multiple_of(base) {
        n /= base;
    }
    n == 1
}

impl Geometry {
    /// Takes what is needed from the superblock.
    pub fn new(sb: &Superblock) -> Geometry {
        Geometry {
            block_size: sb.block_size(),
            blocks_count: sb.s_blocks_count(),
            first_data_block: sb.s_first_data_block(),
            blocks_per_group: sb.s_blocks_per_group(),
            cluster_ratio: sb.cluster_ratio(),
            groups_count: sb.groups_count(),
            inodes_per_group: sb.s_inodes_per_group(),
            inodes_count: sb.s_inodes_count(),
            inode_size: sb.inode_size(),
            desc_size: sb.desc_size(),
            reserved_gdt_blocks: sb.s_reserved_gdt_blocks(),
            groups_per_flex: if sb.has_flex_bg() {
                1 << sb.s_log_groups_per_flex()
            } else {
                1
            },
            sparse_super: sb.has_ro_compat(ro_compat::SPARSE_SUPER),
            sparse_super2: sb.has_compat(compat::SPARSE_SUPER2),
            meta_bg: sb.has_meta_bg(),
            first_meta_bg: sb.s_first_meta_bg(),
            backup_bgs: sb.s_backup_bgs(),
        }
    }

    /// The group of a block, and the block's index in the group; `None` outside the groups (block 0 with blocks of
    /// 1 KiB, or behind the end).
    pub fn locate(&self, block: BlockNo) -> Option<(GroupNo, u32)> {
        let index = block.0.checked_sub(self.first_data_block.into())?;
        if block.0 >= self.blocks_count {
            return None;
        }
        let per_group = u64::from(self.blocks_per_group);
        Some((
            GroupNo((index / per_group) as u32),
            (index % per_group) as u32,
        ))
    }

    /// First block of a group. `group` must exist.
    pub fn group_first_block(&self, group: GroupNo) -> BlockNo {
        debug_assert!(group.0 < self.groups_count);
        BlockNo(
            u64::from(self.first_data_block)
                + u64::from(group.0) * u64::from(self.blocks_per_group),
        )
    }

    /// Blocks of a group; the last may be short.
    pub fn group_blocks(&self, group: GroupNo) -> BlockRange {
        let start = self.group_first_block(group);
        let left = self.blocks_count.saturating_sub(start.0);
        BlockRange::new(start, left.min(self.blocks_per_group.into()))
    }

    /// Number of blocks of a group.
    pub fn blocks_in_group(&self, group: GroupNo) -> u32 {
        self.group_blocks(group).len as u32
    }

    /// Every group.
    pub fn groups(&self) -> impl DoubleEndedIterator<Item = GroupNo> + use<> {
        (0..self.groups_count).map(GroupNo)
    }

    /// The groups of the flex group of `group`.
    pub fn flex_group(&self, group: GroupNo) -> Range<u32> {
        let first = group.0 - group.0 % self.groups_per_flex;
        first
            ..first
                .saturating_add(self.groups_per_flex)
                .min(self.groups_count)
    }

    /// Whether the group starts with a copy of the superblock (kernel: `ext4_bg_has_super`).
    pub fn group_has_super(&self, group: GroupNo) -> bool {
        let g = group.0;
        if g == 0 {
            return true;
        }
        if self.sparse_super2 {
            return self.backup_bgs.contains(&g);
        }
        if g == 1 || !self.sparse_super {
            return true;
        }
        g % 2 == 1 && (is_power_of(g, 3) || is_power_of(g, 5) || is_power_of(g, 7))
    }

    /// Descriptors in a block.
    pub fn desc_per_block(&self) -> u32 {
        self.block_size / u32::from(self.desc_size)
    }

    /// Blocks that one copy of all descriptors needs.
    pub fn desc_blocks(&self) -> u32 {
        self.groups_count.div_ceil(self.desc_per_block())
    }

    /// Whether the descriptors of `group` lie in meta groups rather than behind the superblock.
    fn in_meta_bg(&self, group: GroupNo) -> bool {
        self.meta_bg && group.0 / self.desc_per_block() >= self.first_meta_bg
    }

    /// Block of descriptor block `index` (kernel: `descriptor_loc`), the first copy. `index` below `desc_blocks()`.
    pub fn desc_block(&self, index: u32) -> BlockNo {
        let super_block = SUPER_BYTE / u64::from(self.block_size);
        if !self.meta_bg || index < self.first_meta_bg {
            return BlockNo(super_block + 1 + u64::from(index));
        }
        let group = GroupNo(index * self.desc_per_block());
        let mut skip = u64::from(self.group_has_super(group));
        if self.block_size == 1024 && index == 0 && self.first_data_block == 0 {
            skip += 1; // the boot block comes first (bigalloc)
        }
        BlockNo(self.group_first_block(group).0 + skip)
    }

    /// Block and byte of a group's descriptor, the first copy.
    pub fn desc_location(&self, group: GroupNo) -> (BlockNo, usize) {
        let per_block = self.desc_per_block();
        let offset = (group.0 % per_block) as usize * usize::from(self.desc_size);
        (self.desc_block(group.0 / per_block), offset)
    }

    /// The blocks at the start of a group (kernel: `ext4_num_base_meta_clusters`), clipped to the group.
    pub fn base_meta(&self, group: GroupNo) -> BaseMeta {
        let mut next = self.group_first_block(group).0;
        if self.block_size == 1024 && self.first_data_block == 0 && group.0 == 0 {
            next += 1;
        }
        let has_super = self.group_has_super(group);
        let superblock = has_super.then_some(BlockNo(next));
        next += u64::from(has_super);
        let (descriptors, reserved) = if self.in_meta_bg(group) {
            let place = group.0 % self.desc_per_block();
            let holds = place == 0 || place == 1 || place == self.desc_per_block() - 1;
            (u64::from(holds), 0)
        } else if has_super {
            let blocks = if self.meta_bg {
                self.first_meta_bg
            } else {
                self.desc_blocks()
            };
            (blocks.into(), u64::from(self.reserved_gdt_blocks))
        } else {
            (0, 0)
        };
        let end = self.group_blocks(group).end().0;
        let clip = |start: u64, len: u64| {
            let start = start.min(end);
            BlockRange::new(BlockNo(start), len.min(end - start))
        };
        BaseMeta {
            superblock,
            descriptors: clip(next, descriptors),
            reserved: clip(next.saturating_add(descriptors), reserved),
        }
    }

    /// Number of blocks at the start of a group that hold copies of superblock and descriptors or are reserved for them.
    pub fn base_meta_blocks(&self, group: GroupNo) -> u32 {
        let meta = self.base_meta(group);
        (meta.reserved.end().0 - self.group_first_block(group).0) as u32
    }

    /// Blocks of a group's inode table.
    pub fn itable_blocks(&self) -> u32 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(self.block_size.into()) as u32
    }

    /// The group of an inode and its index in the group; `None` for 0 and behind the end.
    pub fn inode_location(&self, ino: Ino) -> Option<(GroupNo, u32)> {
        let index = ino.0.checked_sub(1)?;
        if ino.0 > self.inodes_count {
            return None;
        }
        Some((
            GroupNo(index / self.inodes_per_group),
            index % self.inodes_per_group,
        ))
    }

    /// The inode with this index in a group.
    pub fn ino(&self, group: GroupNo, index: u32) -> Ino {
        Ino(group.0 * self.inodes_per_group + index + 1)
    }

    /// Block and byte of the inode with this index in a group whose inode table starts at `bg_inode_table`.
    pub fn inode_place(&self, bg_inode_table: BlockNo, index: u32) -> (BlockNo, usize) {
        let byte = u64::from(index) * u64::from(self.inode_size);
        let block = u64::from(self.block_size);
        (
            BlockNo(bg_inode_table.0.saturating_add(byte / block)),
            (byte % block) as usize,
        )
    }
}

/// Byte of the volume at which the superblock lies.
const SUPER_BYTE: u64 = crate::ext4::superblock::SUPERBLOCK_OFFSET;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        let odd: Vec<u32> = (1..400)
            .filter(|&g| is_power_of(g, 3) || is_power_of(g, 5) || is_power_of(g, 7))
            .collect();
        assert_eq!(odd, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    }
}
