//! An inode: 128 bytes as in ext2, then `i_extra_isize` bytes of newer fields, then room for extended attributes.
//!
//! Owns layout, checksum, the times with their extra bits, the joined fields (size, blocks, owner, attribute block) and
//! device numbers. Every byte that is not ours is kept. Does not read `i_block`: that is [`crate::ext4::extent`], nor
//! the attributes behind the fields: [`crate::ext4::xattr`].

use std::fmt;

use crate::ext4::checksum::{crc32c_raw, inode_seed};
use crate::ext4::layout::{get, put};
use crate::ext4::{Corrupt, FileType, Refused, Superblock};
use crate::units::{BlockNo, Ino};

const WHAT: &str = "inode";

/// Bytes that every inode has.
pub const GOOD_OLD_INODE_SIZE: usize = 128;
/// `i_extra_isize` of a new inode: everything up to and including `i_projid`.
pub const EXTRA_ISIZE: u16 = 32;

/// `i_flags` (kernel: `EXT4_*_FL`).
pub mod flags {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    pub const SYNC: u32 = 0x0000_0008;
    pub const IMMUTABLE: u32 = 0x0000_0010;
    pub const APPEND: u32 = 0x0000_0020;
    pub const NODUMP: u32 = 0x0000_0040;
    pub const NOATIME: u32 = 0x0000_0080;
    pub const ENCRYPT: u32 = 0x0000_0800;
    /// The directory has a hash index.
    pub const INDEX: u32 = 0x0000_1000;
    pub const JOURNAL_DATA: u32 = 0x0000_4000;
    pub const NOTAIL: u32 = 0x0000_8000;
    pub const DIRSYNC: u32 = 0x0001_0000;
    pub const TOPDIR: u32 = 0x0002_0000;
    /// `i_blocks` counts blocks, not sectors.
    pub const HUGE_FILE: u32 = 0x0004_0000;
    /// `i_block` holds an extent tree.
    pub const EXTENTS: u32 = 0x0008_0000;
    pub const VERITY: u32 = 0x0010_0000;
    pub const EA_INODE: u32 = 0x0020_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
    pub const PROJINHERIT: u32 = 0x2000_0000;
    pub const CASEFOLD: u32 = 0x4000_0000;
    /// What a new file takes over from its directory (kernel: `EXT4_FL_INHERITED`).
    pub const INHERITED: u32 = 0x1
        | 0x2
        | 0x4
        | SYNC
        | NODUMP
        | NOATIME
        | 0x400
        | JOURNAL_DATA
        | NOTAIL
        | DIRSYNC
        | PROJINHERIT
        | CASEFOLD;
    /// What a regular file can not have (kernel: `EXT4_REG_FLMASK`).
    pub const DIRECTORY_ONLY: u32 = DIRSYNC | TOPDIR | CASEFOLD | PROJINHERIT;
}

/// Well-known inodes.
pub mod reserved {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    use crate::units::Ino;
    pub const BAD: Ino = Ino(1);
    pub const ROOT: Ino = Ino(2);
    pub const USR_QUOTA: Ino = Ino(3);
    pub const GRP_QUOTA: Ino = Ino(4);
    pub const BOOT_LOADER: Ino = Ino(5);
    pub const UNDEL_DIR: Ino = Ino(6);
    pub const RESIZE: Ino = Ino(7);
    pub const JOURNAL: Ino = Ino(8);
}

/// Seconds since 1970 (may be negative) and nanoseconds.
pub type Time = (i64, u32);

/// An inode of `s_inode_size` bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Inode {
    raw: Box<[u8]>,
}

layout! { Inode, 0x00 .. 0x80;
    0x00 u16, i_mode set_i_mode "Type and permissions";
    0x02 u16, i_uid_lo "Owner, low 16 bits";
    0x04 u32, i_size_lo "Size in bytes, low 32 bits";
    0x08 u32, i_atime_lo "Last access, seconds";
    0x0C u32, i_ctime_lo "Last change of the inode, seconds";
    0x10 u32, i_mtime_lo "Last change of the contents, seconds";
    0x14 u32, i_dtime set_i_dtime "When it was deleted; next inode of the orphan list while it is on that";
    0x18 u16, i_gid_lo "Group, low 16 bits";
    0x1A u16, i_links_count set_i_links_count "Names; 1 for directories with 65,000 or more (dir_nlink)";
    0x1C u32, i_blocks_lo "Blocks, low 32 bits";
    0x20 u32, i_flags set_i_flags "Flags";
    0x24 u32, l_i_version "Version, low 32 bits";
    0x28 [u8; 60], i_block set_i_block "Extent tree, block map, target of a short symlink, or device number";
    0x64 u32, i_generation set_i_generation "Tells users of a re-used number apart; mixed into checksums";
    0x68 u32, i_file_acl_lo "Block of extended attributes, low 32 bits";
    0x6C u32, i_size_high "Size in bytes, high 32 bits";
    0x70 u32, i_obso_faddr "Retired: fragments";
    0x74 u16, l_i_blocks_high "Blocks, high 16 bits (huge_file)";
    0x76 u16, l_i_file_acl_high "Block of extended attributes, high 16 bits";
    0x78 u16, l_i_uid_high "Owner, high 16 bits";
    0x7A u16, l_i_gid_high "Group, high 16 bits";
    0x7C u16, l_i_checksum_lo "crc32c, low 16 bits";
    0x7E u16, l_i_reserved "Unused";
}

/// The fields behind byte 128, each there only if `i_extra_isize` reaches behind it:
///
/// | offset | type | field | meaning |
/// |---|---|---|---|
/// | 0x80 | u16 | `i_extra_isize` | bytes of these fields that are in use |
/// | 0x82 | u16 | `i_checksum_hi` | crc32c, high 16 bits |
/// | 0x84 | u32 | `i_ctime_extra` | nanoseconds << 2, bits 32 and 33 of the seconds |
/// | 0x88 | u32 | `i_mtime_extra` | as above |
/// | 0x8C | u32 | `i_atime_extra` | as above |
/// | 0x90 | u32 | `i_crtime` | creation, seconds |
/// | 0x94 | u32 | `i_crtime_extra` | as above |
/// | 0x98 | u32 | `i_version_hi` | version, high 32 bits |
/// | 0x9C | u32 | `i_projid` | project |
mod extra {
    pub(super) const I_EXTRA_ISIZE: usize = 0x80;
    pub(super) const I_CHECKSUM_HI: usize = 0x82;
    pub(super) const I_CTIME_EXTRA: usize = 0x84;
    pub(super) const I_MTIME_EXTRA: usize = 0x88;
    pub(super) const I_ATIME_EXTRA: usize = 0x8C;
    pub(super) const I_CRTIME: usize = 0x90;
    pub(super) const I_CRTIME_EXTRA: usize = 0x94;
    pub(super) const I_VERSION_HI: usize = 0x98;
    pub(super) const I_PROJID: usize = 0x9C;
    const _: () = assert!(I_PROJID + 4 == super::GOOD_OLD_INODE_SIZE + super::EXTRA_ISIZE as usize);
}

impl Inode {
    /// An inode of zeros for a new file, with as many extra fields as the volume's inodes have room for.
    pub fn new(sb: &Superblock) -> Inode {
        let size = usize::from(sb.inode_size());
        let mut raw = vec![0; size].into_boxed_slice();
        if size > GOOD_OLD_INODE_SIZE {
            let want = sb.s_want_extra_isize().max(EXTRA_ISIZE);
            let room = (size - GOOD_OLD_INODE_SIZE) as u16;
            put(&mut raw, extra::I_EXTRA_ISIZE, want.min(room) & !3);
        }
        Inode { raw }
    }

    /// Checks size, `i_extra_isize` and checksum. `bytes` start with the inode.
    pub fn decode(sb: &Superblock, ino: Ino, bytes: &[u8]) -> Result<Inode, Corrupt> {
        let inode = Inode::decode_unverified(sb, bytes)?;
        inode.verify(sb, ino)?;
        Ok(inode)
    }

    /// As `decode`, but for the checksum: an inode that is not in use has none.
    pub fn decode_unverified(sb: &Superblock, bytes: &[u8]) -> Result<Inode, Corrupt> {
        let size = usize::from(sb.inode_size());
        Corrupt::need(WHAT, bytes, size)?;
        let inode = Inode {
            raw: bytes[..size].into(),
        };
        let isize = inode.i_extra_isize();
        if usize::from(isize) > size - GOOD_OLD_INODE_SIZE || !isize.is_multiple_of(4) {
            let expected = format!("a multiple of 4, at most {}", size - GOOD_OLD_INODE_SIZE);
            return Err(Corrupt::field(
                WHAT,
                "i_extra_isize",
                extra::I_EXTRA_ISIZE,
                expected,
                isize,
            ));
        }
        Ok(inode)
    }

    /// The bytes to write, `s_inode_size` many; call [`Inode::update_checksum`] before.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// Updates the checksum and returns the bytes to write.
    pub fn encode(&mut self, sb: &Superblock, ino: Ino) -> &[u8] {
        self.update_checksum(sb, ino);
        &self.raw
    }

    /// Whether the bytes up to `end` are in use as fields (kernel: `EXT4_FITS_IN_INODE`).
    fn fits(&self, end: usize) -> bool {
        end <= GOOD_OLD_INODE_SIZE + usize::from(self.i_extra_isize())
    }

    fn extra(&self, at: usize) -> Option<u32> {
        self.fits(at + 4).then(|| get(&self.raw, at))
    }

    fn set_extra(&mut self, at: usize, value: u32) -> bool {
        let fits = self.fits(at + 4);
        if fits {
            put(&mut self.raw, at, value);
        }
        fits
    }

    /// Bytes of the newer fields in use; 0 in inodes of 128 bytes.
    pub fn i_extra_isize(&self) -> u16 {
        if self.raw.len() > GOOD_OLD_INODE_SIZE {
            get(&self.raw, extra::I_EXTRA_ISIZE)
        } else {
            0
        }
    }

    // ---- checksum

    /// The seed of what belongs to this inode: extent blocks, directory blocks.
    pub fn seed(&self, sb: &Superblock, ino: Ino) -> u32 {
        inode_seed(sb.csum_seed(), ino, self.i_generation())
    }

    /// crc32c of the inode with its checksum fields taken as zeros; `csum_seed` is the volume's.
    pub fn checksum(&self, csum_seed: u32, ino: Ino) -> u32 {
        let mut sum = inode_seed(csum_seed, ino, self.i_generation());
        sum = crc32c_raw(sum, &self.raw[..0x7C]);
        sum = crc32c_raw(sum, &[0; 2]);
        sum = crc32c_raw(sum, &self.raw[0x7E..0x80]);
        if self.raw.len() > GOOD_OLD_INODE_SIZE {
            sum = crc32c_raw(sum, &self.raw[0x80..0x82]);
            let mut rest = 0x82;
            if self.has_checksum_hi() {
                sum = crc32c_raw(sum, &[0; 2]);
                rest = 0x84;
            }
            sum = crc32c_raw(sum, &self.raw[rest..]);
        }
        sum
    }

    fn has_checksum_hi(&self) -> bool {
        self.fits(extra::I_CHECKSUM_HI + 2)
    }

    /// Compares the stored checksum (metadata_csum only); only its low half where there is no room for the other.
    pub fn verify(&self, sb: &Superblock, ino: Ino) -> Result<(), Corrupt> {
        if !sb.has_metadata_csum() {
            return Ok(());
        }
        let computed = self.checksum(sb.csum_seed(), ino);
        let lo = u32::from(self.l_i_checksum_lo());
        if self.has_checksum_hi() {
            let hi: u16 = get(&self.raw, extra::I_CHECKSUM_HI);
            Corrupt::checksum(WHAT, computed, lo | u32::from(hi) << 16)
        } else {
            Corrupt::checksum(WHAT, computed & 0xffff, lo)
        }
    }

    /// Stores the checksum (metadata_csum only).
    pub fn update_checksum(&mut self, sb: &Superblock, ino: Ino) {
        if !sb.has_metadata_csum() {
            return;
        }
        let sum = self.checksum(sb.csum_seed(), ino);
        put(&mut self.raw, 0x7C, sum as u16);
        if self.has_checksum_hi() {
            put(&mut self.raw, extra::I_CHECKSUM_HI, (sum >> 16) as u16);
        }
    }

    // ---- what it is

    /// Type, by the mode.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.i_mode())
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Whether it is a regular file.
    pub fn is_reg(&self) -> bool {
        self.file_type() == FileType::Regular
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.file_type() == FileType::Symlink
    }

    /// Whether any of the [`flags`] is set.
    pub fn has_flag(&self, bits: u32) -> bool {
        self.i_flags() & bits != 0
    }

    /// Sets or clears [`flags`].
    pub fn put_flag(&mut self, bits: u32, on: bool) {
        let old = self.i_flags();
        self.set_i_flags(if on { old | bits } else { old & !bits });
    }

    /// Whether `i_block` holds an extent tree.
    pub fn has_extents(&self) -> bool {
        self.has_flag(flags::EXTENTS)
    }

    /// Whether it is a symlink whose target is in `i_block` (kernel: `ext4_inode_is_fast_symlink`).
    pub fn is_fast_symlink(&self, sb: &Superblock) -> bool {
        if !self.is_symlink() || self.has_flag(flags::INLINE_DATA) {
            return false;
        }
        if self.has_flag(flags::EA_INODE) {
            return self.i_size(sb) < 60;
        }
        let attributes = if self.i_file_acl(sb).is_some() {
            u64::from(sb.block_size()) * u64::from(sb.cluster_ratio()) / 512
        } else {
            0
        };
        self.i_blocks(sb) == attributes
    }

    /// The target of a symlink that has it in `i_block`; `None` if it is in a block.
    pub fn symlink_target(&self, sb: &Superblock) -> Result<Option<&[u8]>, Corrupt> {
        if !self.is_fast_symlink(sb) {
            return Ok(None);
        }
        let i_block = &self.raw[0x28..0x64];
        let size = self.i_size(sb);
        match i_block.get(..size as usize) {
            Some(target) if size < 60 => Ok(Some(target)),
            _ => Err(Corrupt::field(
                WHAT,
                "i_size",
                4,
                "below 60 in a fast symlink",
                size,
            )),
        }
    }

    // ---- owner

    /// Owner.
    pub fn i_uid(&self) -> u32 {
        u32::from(self.i_uid_lo()) | u32::from(self.l_i_uid_high()) << 16
    }

    /// Sets the owner.
    pub fn set_i_uid(&mut self, uid: u32) {
        put(&mut self.raw, 0x02, uid as u16);
        put(&mut self.raw, 0x78, (uid >> 16) as u16);
    }

    /// Group.
    pub fn i_gid(&self) -> u32 {
        u32::from(self.i_gid_lo()) | u32::from(self.l_i_gid_high()) << 16
    }

    /// Sets the group.
    pub fn set_i_gid(&mut self, gid: u32) {
        put(&mut self.raw, 0x18, gid as u16);
        put(&mut self.raw, 0x7A, (gid >> 16) as u16);
    }

    /// Project; 0 where there is no room for it.
    pub fn i_projid(&self) -> u32 {
        self.extra(extra::I_PROJID).unwrap_or(0)
    }

    /// Sets the project; `false` where there is no room for it.
    pub fn set_i_projid(&mut self, project: u32) -> bool {
        self.set_extra(extra::I_PROJID, project)
    }

    // ---- size and blocks

    /// Size in bytes. The high half counts for regular files, and for directories with large_dir.
    pub fn i_size(&self, sb: &Superblock) -> u64 {
        let lo = u64::from(self.i_size_lo());
        if sb.has_large_dir() || self.is_reg() {
            lo | u64::from(self.i_size_high()) << 32
        } else {
            lo
        }
    }

    /// Sets the size, bytes.
    pub fn set_i_size(&mut self, size: u64) {
        put(&mut self.raw, 0x04, size as u32);
        put(&mut self.raw, 0x6C, (size >> 32) as u32);
    }

    /// Space in sectors of 512 bytes, index blocks and the attribute block included (kernel: `ext4_inode_blocks`).
    pub fn i_blocks(&self, sb: &Superblock) -> u64 {
        let lo = u64::from(self.i_blocks_lo());
        if !sb.has_huge_file() {
            return lo;
        }
        let blocks = lo | u64::from(self.l_i_blocks_high()) << 32;
        if self.has_flag(flags::HUGE_FILE) {
            blocks << (sb.block_bits() - 9)
        } else {
            blocks
        }
    }

    /// Sets the space, sectors; counts in blocks once sectors do not fit.
    pub fn set_i_blocks(&mut self, sb: &Superblock, sectors: u64) -> Result<(), Refused> {
        let (value, huge) = if sectors <= u64::from(u32::MAX) {
            (sectors, false)
        } else if !sb.has_huge_file() {
            return Err(Refused::TooManyBlocks { sectors });
        } else if sectors < 1 << 48 {
            (sectors, false)
        } else {
            (sectors >> (sb.block_bits() - 9), true)
        };
        if value >= 1 << 48 {
            return Err(Refused::TooManyBlocks { sectors });
        }
        put(&mut self.raw, 0x1C, value as u32);
        put(&mut self.raw, 0x74, (value >> 32) as u16);
        self.put_flag(flags::HUGE_FILE, huge);
        Ok(())
    }

    /// Block of extended attributes, if there is one.
    pub fn i_file_acl(&self, sb: &Superblock) -> Option<BlockNo> {
        let mut block = u64::from(self.i_file_acl_lo());
        if sb.has_64bit() {
            block |= u64::from(self.l_i_file_acl_high()) << 32;
        }
        (block != 0).then_some(BlockNo(block))
    }

    /// Sets or removes the block of extended attributes.
    pub fn set_i_file_acl(&mut self, block: Option<BlockNo>) {
        let block = block.map_or(0, |b| b.0);
        put(&mut self.raw, 0x68, block as u32);
        put(&mut self.raw, 0x76, (block >> 32) as u16);
    }

    /// The part of the inode behind the fields, where attributes are kept.
    pub fn ibody(&self) -> &[u8] {
        let start = self.ibody_offset();
        &self.raw[start..]
    }

    /// As `ibody`, to be changed.
    pub fn ibody_mut(&mut self) -> &mut [u8] {
        let start = self.ibody_offset();
        &mut self.raw[start..]
    }

    fn ibody_offset(&self) -> usize {
        if self.i_extra_isize() == 0 {
            return self.raw.len(); // no fields, so no attributes either
        }
        GOOD_OLD_INODE_SIZE + usize::from(self.i_extra_isize())
    }

    // ---- version

    /// Counter of changes.
    pub fn i_version(&self) -> u64 {
        let hi = self.extra(extra::I_VERSION_HI).unwrap_or(0);
        u64::from(self.l_i_version()) | u64::from(hi) << 32
    }

    /// Sets the counter of changes, as far as there is room.
    pub fn set_i_version(&mut self, version: u64) {
        put(&mut self.raw, 0x24, version as u32);
        self.set_extra(extra::I_VERSION_HI, (version >> 32) as u32);
    }

    // ---- times

    fn time(&self, at: usize, at_extra: usize) -> Time {
        decode_time(get(&self.raw, at), self.extra(at_extra))
    }

    fn set_time(&mut self, at: usize, at_extra: usize, time: Time) {
        let has_extra = self.fits(at_extra + 4);
        let (secs, more) = encode_time(time, has_extra);
        put(&mut self.raw, at, secs);
        self.set_extra(at_extra, more);
    }

    /// Last access.
    pub fn i_atime(&self) -> Time {
        self.time(0x08, extra::I_ATIME_EXTRA)
    }

    /// Sets the last access.
    pub fn set_i_atime(&mut self, time: Time) {
        self.set_time(0x08, extra::I_ATIME_EXTRA, time);
    }

    /// Last change of the inode.
    pub fn i_ctime(&self) -> Time {
        self.time(0x0C, extra::I_CTIME_EXTRA)
    }

    /// Sets the last change of the inode.
    pub fn set_i_ctime(&mut self, time: Time) {
        self.set_time(0x0C, extra::I_CTIME_EXTRA, time);
    }

    /// Last change of the contents.
    pub fn i_mtime(&self) -> Time {
        self.time(0x10, extra::I_MTIME_EXTRA)
    }

    /// Sets the last change of the contents.
    pub fn set_i_mtime(&mut self, time: Time) {
        self.set_time(0x10, extra::I_MTIME_EXTRA, time);
    }

    /// Creation; `None` where there is no room for it.
    pub fn i_crtime(&self) -> Option<Time> {
        self.fits(extra::I_CRTIME + 4)
            .then(|| self.time(extra::I_CRTIME, extra::I_CRTIME_EXTRA))
    }

    /// Sets the creation, where there is room for it.
    pub fn set_i_crtime(&mut self, time: Time) {
        if self.fits(extra::I_CRTIME + 4) {
            self.set_time(extra::I_CRTIME, extra::I_CRTIME_EXTRA, time);
        }
    }

    // ---- device numbers

    /// Major and minor number of a device node, in the old (16 bits, first word) or new (32 bits, second) encoding.
    pub fn rdev(&self) -> (u32, u32) {
        let old: u32 = get(&self.raw, 0x28);
        if old != 0 {
            (old >> 8 & 0xff, old & 0xff)
        } else {
            split_dev(get(&self.raw, 0x2C))
        }
    }

    /// Sets the device number, in the old encoding where it fits, as the kernel does.
    pub fn set_rdev(&mut self, major: u32, minor: u32) {
        let mut i_block = [0; 60];
        if major < 256 && minor < 256 {
            put(&mut i_block, 0, major << 8 | minor);
        } else {
            put(&mut i_block, 4, join_dev(major, minor));
        }
        self.set_i_block(i_block);
    }
}

/// Major and minor of the kernel's 32-bit device number (`new_decode_dev`), which FUSE uses too.
pub fn split_dev(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, dev & 0xff | dev >> 12 & 0xf_ff00)
}

/// The kernel's 32-bit device number (`new_encode_dev`): 12 bits of major, 20 of minor.
pub fn join_dev(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Seconds are signed; two more bits above them and nanoseconds are in the extra word, where there is one.
fn decode_time(secs: u32, extra: Option<u32>) -> Time {
    let low = i64::from(secs as i32);
    match extra {
        Some(extra) => (
            low + (i64::from(extra & 3) << 32),
            (extra >> 2).min(999_999_999),
        ),
        None => (low, 0),
    }
}

/// Clamped to what can be stored: 1901..2446 with the extra word, 1901..2038 without.
fn encode_time((secs, nanos): Time, has_extra: bool) -> (u32, u32) {
    let low = i64::from(i32::MIN);
    if !has_extra {
        return (secs.clamp(low, i32::MAX.into()) as i32 as u32, 0);
    }
    let secs = secs.clamp(low, i64::from(i32::MAX) + (3 << 32));
    let epoch = (secs - i64::from(secs as i32)) >> 32;
    (
        secs as u32,
        (epoch as u32 & 3) | nanos.min(999_999_999) << 2,
    )
}

impl fmt::Debug for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inode")
            .field("i_mode", &format_args!("{:#o}", self.i_mode()))
            .field("i_links_count", &self.i_links_count())
            .field("i_size_lo", &self.i_size_lo())
            .field("i_flags", &format_args!("{:#x}", self.i_flags()))
            .field("i_generation", &self.i_generation())
            .field("i_mtime", &self.i_mtime())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
