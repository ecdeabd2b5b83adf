//! A block group's descriptor: where its bitmaps and inode table are, and how much is free. Owns layout and checksum
//! (crc32c with metadata_csum, crc16 with uninit_bg); the bitmaps themselves are [`crate::ext4::bitmap`].

use crate::ext4::checksum::{crc16, crc32c_raw};
use crate::ext4::{Corrupt, Geometry, Superblock};
use crate::units::{BlockNo, BlockRange, GroupNo};

const WHAT: &str = "group descriptor";

/// `bg_flags`: no inode of the group is in use, its inode bitmap was never written.
pub const EXT4_BG_INODE_UNINIT: u16 = 0x0001;
/// `bg_flags`: no block of the group but its own metadata is in use, its block bitmap was never written.
pub const EXT4_BG_BLOCK_UNINIT: u16 = 0x0002;
/// `bg_flags`: the inode table has been zeroed.
pub const EXT4_BG_INODE_ZEROED: u16 = 0x0004;

/// A group descriptor of 32 or 64 bytes; the upper half reads as zeros when there are only 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupDesc {
    raw: [u8; 64],
    size: u8,
}

layout! { GroupDesc, 0x00 .. 0x40;
    0x00 u32, bg_block_bitmap_lo "Block of the block bitmap, low 32 bits";
    0x04 u32, bg_inode_bitmap_lo "Block of the inode bitmap, low";
    0x08 u32, bg_inode_table_lo "First block of the inode table, low";
    0x0C u16, bg_free_blocks_count_lo "Free blocks (clusters), low";
    0x0E u16, bg_free_inodes_count_lo "Free inodes, low";
    0x10 u16, bg_used_dirs_count_lo "Directories, low";
    0x12 u16, bg_flags set_bg_flags "INODE_UNINIT, BLOCK_UNINIT, INODE_ZEROED";
    0x14 u32, bg_exclude_bitmap_lo "Retired: snapshots";
    0x18 u16, bg_block_bitmap_csum_lo "crc32c of the block bitmap, low 16 bits";
    0x1A u16, bg_inode_bitmap_csum_lo "crc32c of the inode bitmap, low 16 bits";
    0x1C u16, bg_itable_unused_lo "Inodes at the table's end that were never used, low: guards e2fsck against garbage there";
    0x1E u16, bg_checksum "crc16, or the low 16 bits of the crc32c, of the descriptor";
    0x20 u32, bg_block_bitmap_hi "Block of the block bitmap, high";
    0x24 u32, bg_inode_bitmap_hi "Block of the inode bitmap, high";
    0x28 u32, bg_inode_table_hi "First block of the inode table, high";
    0x2C u16, bg_free_blocks_count_hi "Free blocks, high";
    0x2E u16, bg_free_inodes_count_hi "Free inodes, high";
    0x30 u16, bg_used_dirs_count_hi "Directories, high";
    0x32 u16, bg_itable_unused_hi "Never used inodes, high";
    0x34 u32, bg_exclude_bitmap_hi "Retired: snapshots";
    0x38 u16, bg_block_bitmap_csum_hi "crc32c of the block bitmap, high 16 bits";
    0x3A u16, bg_inode_bitmap_csum_hi "crc32c of the inode bitmap, high 16 bits";
    0x3C u32, bg_reserved "Unused";
}

/// A count of 32 bits whose halves are far apart.
macro_rules! joined {
    ($($get:ident $set:ident $lo:literal $hi:literal $meaning:literal;)*) => {
        impl GroupDesc {$(
            #[doc = $meaning]
            pub fn $get(&self) -> u32 {
                let lo: u16 = crate::ext4::layout::get(&self.raw, $lo);
                let hi: u16 = crate::ext4::layout::get(&self.raw, $hi);
                u32::from(lo) | u32::from(hi) << 16
            }
            #[doc = concat!("Sets it: ", $meaning, " (the high half is kept only in descriptors of 64 bytes)")]
            pub fn $set(&mut self, value: u32) {
                crate::ext4::layout::put(&mut self.raw, $lo, value as u16);
                if self.size == 64 {
                    crate::ext4::layout::put(&mut self.raw, $hi, (value >> 16) as u16);
                }
            }
        )*}
    };
}
joined! {
    bg_free_blocks_count set_bg_free_blocks_count 0x0C 0x2C "Free blocks (clusters) of the group";
    bg_free_inodes_count set_bg_free_inodes_count 0x0E 0x2E "Free inodes of the group";
    bg_used_dirs_count set_bg_used_dirs_count 0x10 0x30 "Directories of the group";
    bg_itable_unused set_bg_itable_unused 0x1C 0x32 "Inodes at the end of the table that were never used";
    bg_block_bitmap_csum set_bg_block_bitmap_csum 0x18 0x38 "Checksum of the block bitmap";
    bg_inode_bitmap_csum set_bg_inode_bitmap_csum 0x1A 0x3A "Checksum of the inode bitmap";
}

impl GroupDesc {
    /// Checks the checksum and that the group's metadata lies in the volume. `bytes` start with the descriptor.
    pub fn decode(sb: &Superblock, group: GroupNo, bytes: &[u8]) -> Result<GroupDesc, Corrupt> {
        let desc = GroupDesc::decode_unverified(sb, bytes)?;
        desc.verify(sb, group)?;
        let geometry = sb.geometry();
        let inside = |block: BlockNo, len: u64, field, at| {
            let ok = block.0 >= u64::from(geometry.first_data_block)
                && block.0 != 0
                && block
                    .0
                    .checked_add(len)
                    .is_some_and(|end| end <= geometry.blocks_count);
            if ok {
                Ok(())
            } else {
                Err(Corrupt::field(
                    WHAT,
                    field,
                    at,
                    "a block of the volume",
                    block.0,
                ))
            }
        };
        inside(desc.bg_block_bitmap(), 1, "bg_block_bitmap", 0x00)?;
        inside(desc.bg_inode_bitmap(), 1, "bg_inode_bitmap", 0x04)?;
        let len = geometry.itable_blocks().into();
        inside(desc.bg_inode_table(), len, "bg_inode_table", 0x08)?;
        let free = desc.bg_free_blocks_count();
        let most = geometry
            .blocks_in_group(group)
            .div_ceil(geometry.cluster_ratio);
        if free > most {
            let expected = format!("at most {most}");
            return Err(Corrupt::field(
                WHAT,
                "bg_free_blocks_count",
                0x0C,
                expected,
                free,
            ));
        }
        for (field, at, found) in [
            ("bg_free_inodes_count", 0x0E, desc.bg_free_inodes_count()),
            ("bg_itable_unused", 0x1C, desc.bg_itable_unused()),
            ("bg_used_dirs_count", 0x10, desc.bg_used_dirs_count()),
        ] {
            if found > geometry.inodes_per_group {
                let expected = format!("at most {}", geometry.inodes_per_group);
                return Err(Corrupt::field(WHAT, field, at, expected, found));
            }
        }
        Ok(desc)
    }

    /// Only the bytes; for a descriptor of which the checksum is known to be old.
    pub fn decode_unverified(sb: &Superblock, bytes: &[u8]) -> Result<GroupDesc, Corrupt> {
        let size = usize::from(sb.desc_size().min(64));
        Corrupt::need(WHAT, bytes, size)?;
        let mut raw = [0; 64];
        raw[..size].copy_from_slice(&bytes[..size]);
        Ok(GroupDesc {
            raw,
            size: size as u8,
        })
    }

    /// Compares the stored checksum.
    pub fn verify(&self, sb: &Superblock, group: GroupNo) -> Result<(), Corrupt> {
        match self.computed_checksum(sb, group) {
            Some(sum) => Corrupt::checksum(WHAT, sum.into(), self.bg_checksum().into()),
            None => Ok(()),
        }
    }

    /// Stores the checksum, if the volume has one.
    pub fn update_checksum(&mut self, sb: &Superblock, group: GroupNo) {
        if let Some(sum) = self.computed_checksum(sb, group) {
            crate::ext4::layout::put(&mut self.raw, 0x1E, sum);
        }
    }

    fn computed_checksum(&self, sb: &Superblock, group: GroupNo) -> Option<u16> {
        let number = group.0.to_le_bytes();
        if sb.has_metadata_csum() {
            let mut sum = crc32c_raw(sb.csum_seed(), &number);
            sum = crc32c_raw(sum, &self.raw[..0x1E]);
            sum = crc32c_raw(sum, &[0; 2]);
            sum = crc32c_raw(sum, &self.as_bytes()[0x20..]);
            Some(sum as u16)
        } else if sb.has_gdt_csum() {
            let mut sum = crc16(!0, &sb.s_uuid());
            sum = crc16(sum, &number);
            sum = crc16(sum, &self.raw[..0x1E]);
            Some(crc16(sum, &self.as_bytes()[0x20..]))
        } else {
            None
        }
    }

    /// The bytes to write, 32 or 64; call [`GroupDesc::update_checksum`] before.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw[..usize::from(self.size)]
    }

    /// Updates the checksum and returns the bytes to write.
    pub fn encode(&mut self, sb: &Superblock, group: GroupNo) -> &[u8] {
        self.update_checksum(sb, group);
        self.as_bytes()
    }

    /// Block of the block bitmap.
    pub fn bg_block_bitmap(&self) -> BlockNo {
        block(self.bg_block_bitmap_lo(), self.bg_block_bitmap_hi())
    }

    /// Block of the inode bitmap.
    pub fn bg_inode_bitmap(&self) -> BlockNo {
        block(self.bg_inode_bitmap_lo(), self.bg_inode_bitmap_hi())
    }

    /// First block of the inode table.
    pub fn bg_inode_table(&self) -> BlockNo {
        block(self.bg_inode_table_lo(), self.bg_inode_table_hi())
    }

    /// The group's own bitmaps and inode table, wherever they are.
    pub fn metadata(&self, geometry: &Geometry) -> [BlockRange; 3] {
        [
            BlockRange::new(self.bg_block_bitmap(), 1),
            BlockRange::new(self.bg_inode_bitmap(), 1),
            BlockRange::new(self.bg_inode_table(), geometry.itable_blocks().into()),
        ]
    }

    /// Whether the block bitmap has to be synthesised. Flags count only on volumes with descriptor checksums.
    pub fn block_uninit(&self, sb: &Superblock) -> bool {
        sb.has_group_desc_csum() && self.bg_flags() & EXT4_BG_BLOCK_UNINIT != 0
    }

    /// Whether the inode bitmap has to be synthesised.
    pub fn inode_uninit(&self, sb: &Superblock) -> bool {
        sb.has_group_desc_csum() && self.bg_flags() & EXT4_BG_INODE_UNINIT != 0
    }

    /// Whether the inode table is known to hold zeros where it is unused.
    pub fn inode_zeroed(&self) -> bool {
        self.bg_flags() & EXT4_BG_INODE_ZEROED != 0
    }
}

fn block(lo: u32, hi: u32) -> BlockNo {
    BlockNo(u64::from(lo) | u64::from(hi) << 32)
}
