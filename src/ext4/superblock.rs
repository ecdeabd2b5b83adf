//! The superblock: 1024 bytes at byte 1024 of the volume, and copies at the start of some groups.
//!
//! Owns its layout, its checksum, and the checks that make every later computation over its fields safe: a
//! [`Superblock`] exists only if its geometry can not divide by zero, overflow or point outside itself. Never judges
//! features: that is [`crate::ext4::features`].

use std::fmt;
use std::sync::LazyLock;

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::features::{compat, incompat, ro_compat};
use crate::ext4::{Corrupt, Geometry, Refused};

const WHAT: &str = "superblock";

/// Offset of `s_algorithm_usage_bitmap`, which balances the checksum.
const BALANCE_AT: usize = 0xC8;

/// What the balancing field must be to flip one bit of the checksum, for each bit. CRCs are linear: what flips several is the
/// sum. A bit of the checksum is run backwards over the bytes between the field and the end.
static BALANCE: LazyLock<[u32; 32]> = LazyLock::new(|| {
    /// The polynomial of crc32c, bits reversed.
    const POLY: u32 = 0x82F6_3B78;
    std::array::from_fn(|bit| {
        let steps = (0x3FC - BALANCE_AT) * 8;
        (0..steps).fold(1_u32 << bit, |crc, _| {
            if crc & 1 << 31 != 0 {
                (crc ^ POLY) << 1 | 1
            } else {
                crc << 1
            }
        })
    })
});

/// Bytes of the superblock.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// Byte of the volume at which the first copy lies, whatever the block size.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// `s_magic`.
pub const EXT4_SUPER_MAGIC: u16 = 0xEF53;
/// `s_state`: unmounted cleanly.
pub const EXT4_VALID_FS: u16 = 0x0001;
/// `s_state`: errors were detected.
pub const EXT4_ERROR_FS: u16 = 0x0002;
/// `s_state`: orphans are being processed.
pub const EXT4_ORPHAN_FS: u16 = 0x0004;
/// `s_flags`: directory hashes take name bytes as signed.
pub const EXT2_FLAGS_SIGNED_HASH: u32 = 0x0001;
/// `s_flags`: directory hashes take name bytes as unsigned.
pub const EXT2_FLAGS_UNSIGNED_HASH: u32 = 0x0002;
/// `s_checksum_type` of crc32c, the only one.
pub const EXT4_CRC32C_CHKSUM: u8 = 1;
/// First inode that is not reserved, where `s_rev_level` is 0.
pub const EXT4_GOOD_OLD_FIRST_INO: u32 = 11;
/// Size of an inode where `s_rev_level` is 0, and the least size.
pub const EXT4_GOOD_OLD_INODE_SIZE: u16 = 128;

/// A superblock whose magic, checksum and geometry have been verified; every byte that is not ours is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Superblock {
    raw: Box<[u8; SUPERBLOCK_SIZE]>,
}

layout! { Superblock, 0x000 .. 0x400;
    0x000 u32, s_inodes_count "Inodes of the volume";
    0x004 u32, s_blocks_count_lo "Blocks of the volume, low 32 bits";
    0x008 u32, s_r_blocks_count_lo "Blocks reserved for the superuser, low";
    0x00C u32, s_free_blocks_count_lo "Free blocks, low; advisory, recomputed from the groups at mount";
    0x010 u32, s_free_inodes_count set_s_free_inodes_count "Free inodes; advisory";
    0x014 u32, s_first_data_block "Block of the first group's first block: 1 with 1 KiB blocks, else 0";
    0x018 u32, s_log_block_size "Block size is 1024 << this";
    0x01C u32, s_log_cluster_size "Cluster size is 1024 << this (bigalloc), else as the block size";
    0x020 u32, s_blocks_per_group "Blocks of a group, at most the bits of one block";
    0x024 u32, s_clusters_per_group "Clusters of a group (bigalloc), else as s_blocks_per_group";
    0x028 u32, s_inodes_per_group "Inodes of a group, at most the bits of one block";
    0x02C u32, s_mtime "Last mount, seconds, low";
    0x030 u32, s_wtime "Last write, seconds, low";
    0x034 u16, s_mnt_count set_s_mnt_count "Mounts since the last check: shows that somebody else had it mounted";
    0x036 u16, s_max_mnt_count "Mounts after which to check; 0xffff never";
    0x038 u16, s_magic "0xEF53";
    0x03A u16, s_state set_s_state "Clean, errors, orphans";
    0x03C u16, s_errors "What to do at an error: 1 continue, 2 read-only, 3 panic";
    0x03E u16, s_minor_rev_level "Unused";
    0x040 u32, s_lastcheck "Last check, seconds, low";
    0x044 u32, s_checkinterval "Seconds between checks; 0 never";
    0x048 u32, s_creator_os "0 Linux, 1 Hurd: the inode's osd fields differ";
    0x04C u32, s_rev_level "0: fixed inode size and no features; 1: dynamic";
    0x050 u16, s_def_resuid "User of the reserved blocks, low";
    0x052 u16, s_def_resgid "Group of the reserved blocks, low";
    0x054 u32, s_first_ino_raw "First inode that is not reserved (where s_rev_level is 1)";
    0x058 u16, s_inode_size_raw "Bytes of an inode (where s_rev_level is 1)";
    0x05A u16, s_block_group_nr "Group of this copy; guards against taking a backup for the first";
    0x05C u32, s_feature_compat "Features: may be ignored";
    0x060 u32, s_feature_incompat "Features: must be known to read";
    0x064 u32, s_feature_ro_compat "Features: must be known to write";
    0x068 [u8; 16], s_uuid "Identity of the volume; seeds checksums unless metadata_csum_seed";
    0x078 [u8; 16], s_volume_name "Label";
    0x088 [u8; 64], s_last_mounted set_s_last_mounted "Where it was mounted last";
    0x0C8 u32, s_algorithm_usage_bitmap "Compression, retired; here it balances the checksum";
    0x0CC u8, s_prealloc_blocks "Unused";
    0x0CD u8, s_prealloc_dir_blocks "Unused";
    0x0CE u16, s_reserved_gdt_blocks "Blocks kept behind the descriptors for growth; owned by inode 7";
    0x0D0 [u8; 16], s_journal_uuid "Identity of an external journal";
    0x0E0 u32, s_journal_inum "Inode of the journal; 8";
    0x0E4 u32, s_journal_dev "Device of an external journal";
    0x0E8 u32, s_last_orphan set_s_last_orphan "Head of the list of orphaned inodes, linked through i_dtime";
    0x0EC [u32; 4], s_hash_seed "Seed of directory hashes";
    0x0FC u8, s_def_hash_version "Hash of new indexed directories: 0 legacy, 1 half MD4, 2 TEA";
    0x0FD u8, s_jnl_backup_type "1: s_jnl_blocks is a copy of the journal inode's i_block and i_size";
    0x0FE u16, s_desc_size "Bytes of a group descriptor (with 64bit)";
    0x100 u32, s_default_mount_opts "Default mount options; acl, user_xattr, ...";
    0x104 u32, s_first_meta_bg "First descriptor block that is laid out as meta_bg";
    0x108 u32, s_mkfs_time "When it was made, seconds, low";
    0x10C [u32; 17], s_jnl_blocks "Backup of the journal inode: i_block, i_size_high, i_size";
    0x150 u32, s_blocks_count_hi "Blocks, high (with 64bit)";
    0x154 u32, s_r_blocks_count_hi "Reserved blocks, high (with 64bit)";
    0x158 u32, s_free_blocks_count_hi "Free blocks, high (with 64bit)";
    0x15C u16, s_min_extra_isize "Extra bytes that every inode has";
    0x15E u16, s_want_extra_isize "Extra bytes that new inodes should have";
    0x160 u32, s_flags "Signed or unsigned directory hash";
    0x164 u16, s_raid_stride "RAID stride, blocks";
    0x166 u16, s_mmp_update_interval "Seconds between writes of the MMP block";
    0x168 u64, s_mmp_block "Block of the multiple-mount protection";
    0x170 u32, s_raid_stripe_width "RAID stripe, blocks";
    0x174 u8, s_log_groups_per_flex "A flex group has 1 << this groups";
    0x175 u8, s_checksum_type "1: crc32c";
    0x176 u8, s_encryption_level "Unused";
    0x177 u8, s_reserved_pad "Unused";
    0x178 u64, s_kbytes_written set_s_kbytes_written "KiB ever written";
    0x180 u32, s_snapshot_inum "Retired: snapshots";
    0x184 u32, s_snapshot_id "Retired: snapshots";
    0x188 u64, s_snapshot_r_blocks_count "Retired: snapshots";
    0x190 u32, s_snapshot_list "Retired: snapshots";
    0x194 u32, s_error_count set_s_error_count "Errors seen";
    0x198 u32, s_first_error_time set_s_first_error_time "First error: seconds, low";
    0x19C u32, s_first_error_ino set_s_first_error_ino "First error: inode";
    0x1A0 u64, s_first_error_block set_s_first_error_block "First error: block";
    0x1A8 [u8; 32], s_first_error_func set_s_first_error_func "First error: function";
    0x1C8 u32, s_first_error_line set_s_first_error_line "First error: line";
    0x1CC u32, s_last_error_time set_s_last_error_time "Last error: seconds, low";
    0x1D0 u32, s_last_error_ino set_s_last_error_ino "Last error: inode";
    0x1D4 u32, s_last_error_line set_s_last_error_line "Last error: line";
    0x1D8 u64, s_last_error_block set_s_last_error_block "Last error: block";
    0x1E0 [u8; 32], s_last_error_func set_s_last_error_func "Last error: function";
    0x200 [u8; 64], s_mount_opts "Default mount options as text";
    0x240 u32, s_usr_quota_inum "Inode of the user quota";
    0x244 u32, s_grp_quota_inum "Inode of the group quota";
    0x248 u32, s_overhead_clusters set_s_overhead_clusters "Clusters of metadata; 0: not computed";
    0x24C [u32; 2], s_backup_bgs "Groups with a copy of the superblock (sparse_super2)";
    0x254 [u8; 4], s_encrypt_algos "Encryption in use";
    0x258 [u8; 16], s_encrypt_pw_salt "Encryption salt";
    0x268 u32, s_lpf_ino "Inode of lost+found; unused";
    0x26C u32, s_prj_quota_inum "Inode of the project quota";
    0x270 u32, s_checksum_seed "Seed of all checksums (with metadata_csum_seed): survives a change of the uuid";
    0x274 u8, s_wtime_hi "Last write, high";
    0x275 u8, s_mtime_hi "Last mount, high";
    0x276 u8, s_mkfs_time_hi "Made, high";
    0x277 u8, s_lastcheck_hi "Last check, high";
    0x278 u8, s_first_error_time_hi "First error, high";
    0x279 u8, s_last_error_time_hi "Last error, high";
    0x27A u8, s_first_error_errcode set_s_first_error_errcode "First error: code";
    0x27B u8, s_last_error_errcode set_s_last_error_errcode "Last error: code";
    0x27C u16, s_encoding "Character set of case-insensitive names";
    0x27E u16, s_encoding_flags "Strictness of that";
    0x280 u32, s_orphan_file_inum "Inode of the orphan file";
    0x284 u16, s_def_resuid_hi "User of the reserved blocks, high";
    0x286 u16, s_def_resgid_hi "Group of the reserved blocks, high";
    0x288 [u32; 93], s_reserved "Unused";
    0x3FC u32, s_checksum "crc32c of the bytes before it (metadata_csum)";
}

impl Superblock {
    /// Checks magic, checksum and geometry of the first 1024 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, Corrupt> {
        Corrupt::need(WHAT, bytes, SUPERBLOCK_SIZE)?;
        let mut raw = Box::new([0; SUPERBLOCK_SIZE]);
        raw.copy_from_slice(&bytes[..SUPERBLOCK_SIZE]);
        let sb = Superblock { raw };
        if sb.s_magic() != EXT4_SUPER_MAGIC {
            return Err(Corrupt::field(
                WHAT,
                "s_magic",
                0x38,
                "0xef53",
                sb.s_magic(),
            ));
        }
        sb.check_geometry()?;
        sb.verify()?;
        Ok(sb)
    }

    /// The bytes to write; call [`Superblock::update_checksum`] before.
    pub fn as_bytes(&self) -> &[u8; SUPERBLOCK_SIZE] {
        &self.raw
    }

    /// Makes the checksum right and returns the bytes to write.
    pub fn encode(&mut self) -> &[u8; SUPERBLOCK_SIZE] {
        self.update_checksum();
        &self.raw
    }

    /// Compares the stored checksum with the bytes (metadata_csum only).
    pub fn verify(&self) -> Result<(), Corrupt> {
        if !self.has_metadata_csum() {
            return Ok(());
        }
        if self.s_checksum_type() != EXT4_CRC32C_CHKSUM {
            let found = self.s_checksum_type();
            return Err(Corrupt::field(WHAT, "s_checksum_type", 0x175, "1", found));
        }
        Corrupt::checksum(WHAT, self.computed_checksum(), self.s_checksum())
    }

    /// Makes bytes and checksum agree (metadata_csum only), by changing `s_algorithm_usage_bitmap` and not the checksum.
    ///
    /// Everything that changes while a volume is open lies in the first 512 bytes, only the checksum would lie in the second:
    /// a power cut between the two sectors leaves a superblock that the kernel refuses. So the checksum stays what it
    /// was, and a field of the first sector, which nobody has read since compression was given up, takes the value that makes
    /// it right: a superblock is then old or new, but never torn.
    pub fn update_checksum(&mut self) {
        if self.has_metadata_csum() {
            crate::ext4::layout::put(&mut self.raw[..], BALANCE_AT, 0_u32);
            let wanted = self.computed_checksum() ^ self.s_checksum();
            let balance = (0..32)
                .filter(|bit| wanted >> bit & 1 == 1)
                .fold(0, |sum, bit| sum ^ BALANCE[bit]);
            crate::ext4::layout::put(&mut self.raw[..], BALANCE_AT, balance);
        }
    }

    fn computed_checksum(&self) -> u32 {
        crc32c_raw(!0, &self.raw[..0x3FC])
    }

    /// Every relation that later arithmetic relies on; what the kernel checks at mount, and a little more.
    fn check_geometry(&self) -> Result<(), Corrupt> {
        let ensure = |ok: bool, field, at, expected: &'static str, found: u64| {
            if ok {
                Ok(())
            } else {
                Err(Corrupt::field(WHAT, field, at, expected, found))
            }
        };
        let log = self.s_log_block_size();
        ensure(log <= 6, "s_log_block_size", 0x18, "at most 6", log.into())?;
        let block = u64::from(self.block_size());
        let bits = block * 8;
        let bigalloc = self.has_ro_compat(ro_compat::BIGALLOC);
        let log_cluster = self.s_log_cluster_size();
        if bigalloc {
            ensure(
                log_cluster >= log && log_cluster <= 20,
                "s_log_cluster_size",
                0x1C,
                "from s_log_block_size to 20",
                log_cluster.into(),
            )?;
        }
        let ratio = if bigalloc {
            1 << (log_cluster - log)
        } else {
            1
        };

        let inode = u64::from(self.inode_size());
        ensure(
            inode >= 128 && inode <= block && inode.is_power_of_two(),
            "s_inode_size",
            0x58,
            "a power of two from 128 to the block size",
            inode,
        )?;
        let first_ino = self.first_ino();
        ensure(
            first_ino >= EXT4_GOOD_OLD_FIRST_INO && first_ino <= self.s_inodes_count(),
            "s_first_ino",
            0x54,
            "at least 11, at most s_inodes_count",
            first_ino.into(),
        )?;
        let per_group = u64::from(self.s_inodes_per_group());
        ensure(
            per_group >= block / inode && per_group <= bits,
            "s_inodes_per_group",
            0x28,
            "from the inodes of a block to the bits of a block",
            per_group,
        )?;
        let blocks_per_group = u64::from(self.s_blocks_per_group());
        ensure(
            blocks_per_group >= 8 && blocks_per_group <= bits * ratio,
            "s_blocks_per_group",
            0x20,
            "from 8 to the bits of a block",
            blocks_per_group,
        )?;
        if bigalloc {
            let clusters = u64::from(self.s_clusters_per_group());
            ensure(
                clusters.checked_mul(ratio) == Some(blocks_per_group),
                "s_clusters_per_group",
                0x24,
                "s_blocks_per_group in clusters",
                clusters,
            )?;
        }
        let first = u64::from(self.s_first_data_block());
        ensure(
            first == u64::from(block == 1024) || (bigalloc && first == 0),
            "s_first_data_block",
            0x14,
            "1 with blocks of 1 KiB, else 0",
            first,
        )?;
        let blocks = self.s_blocks_count();
        ensure(
            blocks > first && blocks < 1 << 48,
            "s_blocks_count",
            0x04,
            "behind s_first_data_block, below 2^48",
            blocks,
        )?;
        let groups = (blocks - first).div_ceil(blocks_per_group);
        ensure(
            groups.checked_mul(per_group) == Some(self.s_inodes_count().into()),
            "s_inodes_count",
            0x00,
            "groups times s_inodes_per_group",
            self.s_inodes_count().into(),
        )?;
        if self.has_incompat(incompat::SIXTY_FOUR_BIT) {
            let size = u64::from(self.s_desc_size());
            ensure(
                (64..=1024).contains(&size) && size.is_power_of_two(),
                "s_desc_size",
                0xFE,
                "a power of two from 64 to 1024",
                size,
            )?;
        }
        let reserved = u64::from(self.s_reserved_gdt_blocks());
        ensure(
            reserved <= block / 4,
            "s_reserved_gdt_blocks",
            0xCE,
            "at most a quarter of the block size",
            reserved,
        )?;
        let flex = self.s_log_groups_per_flex();
        ensure(
            flex < 32,
            "s_log_groups_per_flex",
            0x174,
            "below 32",
            flex.into(),
        )?;
        if self.has_incompat(incompat::META_BG) {
            let meta = u64::from(self.s_first_meta_bg());
            ensure(
                meta <= groups.div_ceil(block / u64::from(self.desc_size())),
                "s_first_meta_bg",
                0x104,
                "at most the number of descriptor blocks",
                meta,
            )?;
        }
        Ok(())
    }

    /// Block size, bytes.
    pub fn block_size(&self) -> u32 {
        1024 << self.s_log_block_size()
    }

    /// log2 of the block size.
    pub fn block_bits(&self) -> u32 {
        10 + self.s_log_block_size()
    }

    /// Blocks of a cluster; 1 unless bigalloc.
    pub fn cluster_ratio(&self) -> u32 {
        if self.has_ro_compat(ro_compat::BIGALLOC) {
            1 << (self.s_log_cluster_size() - self.s_log_block_size())
        } else {
            1
        }
    }

    /// Block groups.
    pub fn groups_count(&self) -> u32 {
        let blocks = self.s_blocks_count() - u64::from(self.s_first_data_block());
        // At most s_inodes_count (check_geometry), so it fits.
        blocks.div_ceil(u64::from(self.s_blocks_per_group())) as u32
    }

    /// Where everything is.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self)
    }

    /// Bytes of a group descriptor.
    pub fn desc_size(&self) -> u16 {
        if self.has_incompat(incompat::SIXTY_FOUR_BIT) {
            self.s_desc_size()
        } else {
            32
        }
    }

    /// Bytes of an inode.
    pub fn inode_size(&self) -> u16 {
        if self.s_rev_level() == 0 {
            EXT4_GOOD_OLD_INODE_SIZE
        } else {
            self.s_inode_size_raw()
        }
    }

    /// First inode that is not reserved.
    pub fn first_ino(&self) -> u32 {
        if self.s_rev_level() == 0 {
            EXT4_GOOD_OLD_FIRST_INO
        } else {
            self.s_first_ino_raw()
        }
    }

    /// Inodes of a group.
    pub fn inodes_per_group(&self) -> u32 {
        self.s_inodes_per_group()
    }

    /// Blocks of a group (but the last).
    pub fn blocks_per_group(&self) -> u32 {
        self.s_blocks_per_group()
    }

    /// Block of the first group's first block.
    pub fn first_data_block(&self) -> u32 {
        self.s_first_data_block()
    }

    fn joined(&self, lo: u32, hi: u32) -> u64 {
        if self.has_incompat(incompat::SIXTY_FOUR_BIT) {
            u64::from(lo) | u64::from(hi) << 32
        } else {
            lo.into()
        }
    }

    /// Blocks of the volume.
    pub fn s_blocks_count(&self) -> u64 {
        self.joined(self.s_blocks_count_lo(), self.s_blocks_count_hi())
    }

    /// Blocks reserved for the superuser.
    pub fn s_r_blocks_count(&self) -> u64 {
        self.joined(self.s_r_blocks_count_lo(), self.s_r_blocks_count_hi())
    }

    /// The user who, beside root, may use the reserved blocks.
    pub fn def_resuid(&self) -> u32 {
        u32::from(self.s_def_resuid()) | u32::from(self.s_def_resuid_hi()) << 16
    }

    /// The group that may; 0 for none.
    pub fn def_resgid(&self) -> u32 {
        u32::from(self.s_def_resgid()) | u32::from(self.s_def_resgid_hi()) << 16
    }

    /// Free blocks (free clusters times the ratio, with bigalloc); advisory.
    pub fn s_free_blocks_count(&self) -> u64 {
        self.joined(self.s_free_blocks_count_lo(), self.s_free_blocks_count_hi())
    }

    /// Sets the free blocks.
    pub fn set_s_free_blocks_count(&mut self, blocks: u64) {
        crate::ext4::layout::put(&mut self.raw[..], 0x0C, blocks as u32);
        if self.has_incompat(incompat::SIXTY_FOUR_BIT) {
            crate::ext4::layout::put(&mut self.raw[..], 0x158, (blocks >> 32) as u32);
        }
    }

    fn set_time(&mut self, at: usize, at_hi: usize, secs: i64) {
        // 40 bits, as the kernel's ext4_update_tstamp clamps it.
        let secs = secs.clamp(0, (1 << 40) - 1) as u64;
        crate::ext4::layout::put(&mut self.raw[..], at, secs as u32);
        self.raw[at_hi] = (secs >> 32) as u8;
    }

    /// Last mount, seconds since 1970.
    pub fn mtime(&self) -> i64 {
        i64::from(self.s_mtime()) | i64::from(self.s_mtime_hi()) << 32
    }

    /// Sets the last mount.
    pub fn set_mtime(&mut self, secs: i64) {
        self.set_time(0x2C, 0x275, secs);
    }

    /// Last write, seconds since 1970.
    pub fn wtime(&self) -> i64 {
        i64::from(self.s_wtime()) | i64::from(self.s_wtime_hi()) << 32
    }

    /// Sets the last write.
    pub fn set_wtime(&mut self, secs: i64) {
        self.set_time(0x30, 0x274, secs);
    }

    /// Last check, seconds since 1970.
    pub fn lastcheck(&self) -> i64 {
        i64::from(self.s_lastcheck()) | i64::from(self.s_lastcheck_hi()) << 32
    }

    /// Whether any of the bits (`features::compat`) is set.
    pub fn has_compat(&self, bits: u32) -> bool {
        self.s_feature_compat() & bits != 0
    }

    /// Whether any of the bits (`features::incompat`) is set.
    pub fn has_incompat(&self, bits: u32) -> bool {
        self.s_feature_incompat() & bits != 0
    }

    /// Whether any of the bits (`features::ro_compat`) is set.
    pub fn has_ro_compat(&self, bits: u32) -> bool {
        self.s_feature_ro_compat() & bits != 0
    }

    /// The compat features that may come and go on a live volume: ext_attr, dir_index.
    pub fn set_compat(&mut self, bits: u32, on: bool) -> Result<(), Refused> {
        let free = compat::EXT_ATTR | compat::DIR_INDEX;
        self.set_feature(0x5C, self.s_feature_compat(), bits, free, on)
    }

    /// The incompat features that may come and go on a live volume: RECOVER and the guard bit.
    pub fn set_incompat(&mut self, bits: u32, on: bool) -> Result<(), Refused> {
        let free = incompat::RECOVER | crate::ext4::LOCKSTEP_INCOMPAT_GUARD;
        self.set_feature(0x60, self.s_feature_incompat(), bits, free, on)
    }

    /// The ro_compat features that may come and go on a live volume: large_file, dir_nlink, orphan_present.
    pub fn set_ro_compat(&mut self, bits: u32, on: bool) -> Result<(), Refused> {
        let free = ro_compat::LARGE_FILE | ro_compat::DIR_NLINK | ro_compat::ORPHAN_PRESENT;
        self.set_feature(0x64, self.s_feature_ro_compat(), bits, free, on)
    }

    /// Features that decide the layout stay as they are: `decode` has checked the geometry for them.
    fn set_feature(
        &mut self,
        at: usize,
        old: u32,
        bits: u32,
        free: u32,
        on: bool,
    ) -> Result<(), Refused> {
        if bits & !free != 0 {
            return Err(Refused::Invalid {
                what: "a feature that decides the layout",
            });
        }
        let new = if on { old | bits } else { old & !bits };
        crate::ext4::layout::put(&mut self.raw[..], at, new);
        Ok(())
    }

    /// Whether metadata is checksummed with crc32c.
    pub fn has_metadata_csum(&self) -> bool {
        self.has_ro_compat(ro_compat::METADATA_CSUM)
    }

    /// Whether group descriptors are checksummed with crc16 (metadata_csum wins if both are set, as in the kernel).
    pub fn has_gdt_csum(&self) -> bool {
        self.has_ro_compat(ro_compat::GDT_CSUM) && !self.has_metadata_csum()
    }

    /// Whether groups may be uninitialised: either kind of descriptor checksum.
    pub fn has_group_desc_csum(&self) -> bool {
        self.has_ro_compat(ro_compat::GDT_CSUM | ro_compat::METADATA_CSUM)
    }

    /// Whether the journal has to be replayed.
    pub fn has_recover(&self) -> bool {
        self.has_incompat(incompat::RECOVER)
    }

    /// Whether this is a half-copied mirror.
    pub fn has_guard(&self) -> bool {
        self.has_incompat(crate::ext4::LOCKSTEP_INCOMPAT_GUARD)
    }

    /// Whether directory entries carry a file type.
    pub fn has_filetype(&self) -> bool {
        self.has_incompat(incompat::FILETYPE)
    }

    /// Whether block numbers have 64 bits and descriptors 64 bytes.
    pub fn has_64bit(&self) -> bool {
        self.has_incompat(incompat::SIXTY_FOUR_BIT)
    }

    /// Whether directories may be indexed.
    pub fn has_dir_index(&self) -> bool {
        self.has_compat(compat::DIR_INDEX)
    }

    /// Whether directory indexes may have a third level and directories may pass 2 GiB.
    pub fn has_large_dir(&self) -> bool {
        self.has_incompat(incompat::LARGEDIR)
    }

    /// Whether i_blocks has 48 bits.
    pub fn has_huge_file(&self) -> bool {
        self.has_ro_compat(ro_compat::HUGE_FILE)
    }

    /// Whether directories may have more than 65,000 subdirectories.
    pub fn has_dir_nlink(&self) -> bool {
        self.has_ro_compat(ro_compat::DIR_NLINK)
    }

    /// Whether orphans are kept in a file.
    pub fn has_orphan_file(&self) -> bool {
        self.has_compat(compat::ORPHAN_FILE)
    }

    /// Whether groups' metadata is gathered in flex groups.
    pub fn has_flex_bg(&self) -> bool {
        self.has_incompat(incompat::FLEX_BG)
    }

    /// Whether descriptor blocks lie in their own meta groups.
    pub fn has_meta_bg(&self) -> bool {
        self.has_incompat(incompat::META_BG)
    }

    /// Whether mounts are guarded by the MMP block.
    pub fn has_mmp(&self) -> bool {
        self.has_incompat(incompat::MMP)
    }

    /// Whether hashes of names take bytes as unsigned. Neither flag: as the machine's `char`, signed here.
    pub fn unsigned_hash(&self) -> bool {
        self.s_flags() & EXT2_FLAGS_UNSIGNED_HASH != 0
    }

    /// Seed of every metadata checksum: `s_checksum_seed`, or the crc32c of the uuid.
    pub fn csum_seed(&self) -> u32 {
        if self.has_incompat(incompat::CSUM_SEED) {
            self.s_checksum_seed()
        } else {
            crc32c_raw(!0, &self.s_uuid())
        }
    }
}

impl fmt::Debug for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Superblock")
            .field("block_size", &self.block_size())
            .field("s_blocks_count", &self.s_blocks_count())
            .field("s_inodes_count", &self.s_inodes_count())
            .field("features", &crate::ext4::features::names(self))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
