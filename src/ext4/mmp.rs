//! The multiple-mount protection block (`mmp_struct`, 1024 bytes at the start of block `s_mmp_block`): whoever has the
//! volume open keeps changing `mmp_seq`. Owns layout and checksum; waiting and deciding is not here.

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::{Corrupt, Superblock};

const WHAT: &str = "MMP block";

/// Bytes of the structure.
pub const MMP_SIZE: usize = 1024;
/// `mmp_magic`.
pub const EXT4_MMP_MAGIC: u32 = 0x004D_4D50;
/// `mmp_seq`: unmounted.
pub const EXT4_MMP_SEQ_CLEAN: u32 = 0xFF4D_4D50;
/// `mmp_seq`: e2fsck is at work.
pub const EXT4_MMP_SEQ_FSCK: u32 = 0xE24D_4D50;
/// Greatest `mmp_seq` of a mount.
pub const EXT4_MMP_SEQ_MAX: u32 = 0xE24D_4D4F;
/// Least `mmp_check_interval`, seconds.
pub const EXT4_MMP_MIN_CHECK_INTERVAL: u16 = 5;

/// The block's first 1024 bytes, verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Mmp {
    raw: Box<[u8; MMP_SIZE]>,
}

layout! { Mmp, 0x000 .. 0x400;
    0x000 u32, mmp_magic "0x004D4D50";
    0x004 u32, mmp_seq set_mmp_seq "Changes while somebody has the volume: guards against a second mount";
    0x008 u64, mmp_time set_mmp_time "When it was written last, seconds";
    0x010 [u8; 64], mmp_nodename set_mmp_nodename "Host that wrote it";
    0x050 [u8; 32], mmp_bdevname set_mmp_bdevname "Device it was written through";
    0x070 u16, mmp_check_interval set_mmp_check_interval "Seconds that others have to watch it";
    0x072 u16, mmp_pad1 "Unused";
    0x074 [u32; 226], mmp_pad2 "Unused";
    0x3FC u32, mmp_checksum "crc32c of the bytes before it";
}

impl Mmp {
    /// Checks magic and checksum.
    pub fn decode(sb: &Superblock, bytes: &[u8]) -> Result<Mmp, Corrupt> {
        Corrupt::need(WHAT, bytes, MMP_SIZE)?;
        let mut raw = Box::new([0; MMP_SIZE]);
        raw.copy_from_slice(&bytes[..MMP_SIZE]);
        let mmp = Mmp { raw };
        if mmp.mmp_magic() != EXT4_MMP_MAGIC {
            let found = mmp.mmp_magic();
            return Err(Corrupt::field(WHAT, "mmp_magic", 0, "0x4d4d50", found));
        }
        if sb.has_metadata_csum() {
            Corrupt::checksum(WHAT, mmp.checksum(sb), mmp.mmp_checksum())?;
        }
        Ok(mmp)
    }

    fn checksum(&self, sb: &Superblock) -> u32 {
        crc32c_raw(sb.csum_seed(), &self.raw[..0x3FC])
    }

    /// Updates the checksum (metadata_csum only) and returns the bytes to write.
    pub fn encode(&mut self, sb: &Superblock) -> &[u8; MMP_SIZE] {
        if sb.has_metadata_csum() {
            let sum = self.checksum(sb);
            crate::ext4::layout::put(&mut self.raw[..], 0x3FC, sum);
        }
        &self.raw
    }

    /// Whether it says that nobody has the volume.
    pub fn is_clean(&self) -> bool {
        self.mmp_seq() == EXT4_MMP_SEQ_CLEAN
    }

    /// The host that wrote it last, for people.
    pub fn nodename(&self) -> String {
        let name = self.mmp_nodename();
        let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end]).into_owned()
    }
}
