//! The jbd2 superblock, block 0 of the journal file: bytes <-> typed values. Big-endian. Owns the field offsets, the
//! feature bits and the superblock's checksum. Never does I/O.
//!
//! Source: the kernel's documentation of the journal (Documentation/filesystems/ext4/journal.rst).
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0x00 | 12 | s_header | magic, block type 3 (v1) or 4 (v2), sequence 0 |
//! | 0x0c | 4 | s_blocksize | bytes; must be the volume's block size |
//! | 0x10 | 4 | s_maxlen | blocks of the journal file |
//! | 0x14 | 4 | s_first | first block of the circular log |
//! | 0x18 | 4 | s_sequence | first tid that recovery expects; when the log is clean, the next tid |
//! | 0x1c | 4 | s_start | log block of that transaction; 0: the log is clean |
//! | 0x20 | 4 | s_errno | negative errno that aborted the journal |
//! | 0x24 | 4 | s_feature_compat | 1: commit blocks carry a crc32 (v1 checksum) |
//! | 0x28 | 4 | s_feature_incompat | revoke, 64bit, async_commit, csum_v2, csum_v3, fast_commit |
//! | 0x2c | 4 | s_feature_ro_compat | none known |
//! | 0x30 | 16 | s_uuid | seeds every checksum, so that blocks of another journal do not verify |
//! | 0x40 | 4 | s_nr_users | file systems that share it; more than one: an external journal |
//! | 0x50 | 1 | s_checksum_type | 4: crc32c |
//! | 0x54 | 4 | s_num_fc_blks | blocks of the fast-commit area at the end |
//! | 0x58 | 4 | s_head | log head at a clean close (kernel 6.5 on starts there) |
//! | 0xfc | 4 | s_checksum | crc32c of the 1024 bytes, this field as zero; guards against torn and foreign blocks |
//!
//! Everything that changes while the log is used lies in the first 512 bytes, with the checksum: one sector, so a torn
//! write leaves the old superblock or the new one.

use super::format::{BlockType, MAGIC, be32_at, crc32c_raw, put_be32};
use super::{CorruptKind, JournalError};
use crate::units::LogBlock;

/// Bytes of the superblock on disk, at the start of the journal's first block.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// jbd2 refuses logs below this many blocks (JBD2_MIN_JOURNAL_BLOCKS).
pub const MIN_LOG_BLOCKS: u32 = 1024;

const S_BLOCKSIZE: usize = 0x0c;
const S_MAXLEN: usize = 0x10;
const S_FIRST: usize = 0x14;
const S_SEQUENCE: usize = 0x18;
const S_START: usize = 0x1c;
const S_ERRNO: usize = 0x20;
const S_FEATURE_COMPAT: usize = 0x24;
const S_FEATURE_INCOMPAT: usize = 0x28;
const S_FEATURE_RO_COMPAT: usize = 0x2c;
const S_UUID: usize = 0x30;
const S_NR_USERS: usize = 0x40;
const S_CHECKSUM_TYPE: usize = 0x50;
const S_NUM_FC_BLKS: usize = 0x54;
const S_HEAD: usize = 0x58;
const S_CHECKSUM: usize = 0xfc;
const _: () = assert!(S_CHECKSUM + 4 <= 512, "one sector holds all that changes");
const _: () = assert!(S_HEAD + 4 <= S_CHECKSUM);

const CRC32C_CHKSUM: u8 = 4;

/// Commit blocks carry a crc32 over the transaction (v1 checksum).
pub const COMPAT_CHECKSUM: u32 = 0x1;
/// Revoke blocks may occur.
pub const INCOMPAT_REVOKE: u32 = 0x1;
/// Block numbers have 64 bits.
pub const INCOMPAT_64BIT: u32 = 0x2;
/// The commit block may be written with the transaction's blocks.
pub const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
/// Checksums, 16-bit in tags.
pub const INCOMPAT_CSUM_V2: u32 = 0x8;
/// Checksums, 32-bit in tags.
pub const INCOMPAT_CSUM_V3: u32 = 0x10;
/// A fast-commit area follows the log.
pub const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3f;

/// Which checksums the log's blocks carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// None.
    None,
    /// crc32 of a transaction's descriptor and data blocks, in its commit block.
    V1,
    /// crc32c in every header block; 16 bits of it in tags.
    V2,
    /// crc32c in every header block and in tags.
    V3,
}

/// How the log's blocks are to be read: what the features and the uuid say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFormat {
    /// Bytes of a block.
    pub block_size: usize,
    /// 64-bit block numbers in tags and revoke records.
    pub bit64: bool,
    /// Which checksums there are.
    pub checksums: Checksums,
    /// crc32c of s_uuid: the start of every v2 and v3 checksum.
    pub seed: u32,
    /// s_uuid, which the first tag of a descriptor repeats.
    pub uuid: [u8; 16],
}

/// A checked jbd2 superblock. Keeps its raw bytes, so that what is not known here survives a rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    raw: Box<[u8]>,
}

impl Superblock {
    /// Decodes and verifies the first bytes of the journal's block 0: magic, version, checksum, known features, sane
    /// geometry. `block_size` is the volume's, `file_blocks` the length of the journal file.
    pub fn decode(
        bytes: &[u8],
        block_size: u32,
        file_blocks: u64,
    ) -> Result<Superblock, JournalError> {
        let raw = bytes
            .get(..SUPERBLOCK_SIZE)
            .ok_or_else(|| sb_corrupt(CorruptKind::Length, SUPERBLOCK_SIZE, bytes.len()))?;
        let sb = Superblock { raw: raw.into() };
        if be32_at(raw, 0) != MAGIC {
            return Err(sb_corrupt(CorruptKind::Magic, MAGIC, be32_at(raw, 0)));
        }
        let kind = be32_at(raw, 4);
        if kind != BlockType::SUPERBLOCK_V1.0 && kind != BlockType::SUPERBLOCK_V2.0 {
            return Err(sb_corrupt(CorruptKind::BlockType, 4u32, kind));
        }
        if sb.is_v2() {
            sb.check_features()?;
        }
        if be32_at(raw, S_BLOCKSIZE) != block_size {
            return Err(sb_corrupt(
                CorruptKind::Field("s_blocksize"),
                block_size,
                be32_at(raw, S_BLOCKSIZE),
            ));
        }
        if sb.s_maxlen() < MIN_LOG_BLOCKS || u64::from(sb.s_maxlen()) > file_blocks {
            return Err(sb_corrupt(
                CorruptKind::Field("s_maxlen"),
                file_blocks,
                sb.s_maxlen(),
            ));
        }
        if sb.s_first() == 0 || sb.s_first() >= sb.log_end() / 2 {
            return Err(sb_corrupt(
                CorruptKind::Field("s_first"),
                1u32,
                sb.s_first(),
            ));
        }
        let start = sb.s_start().0;
        if start != 0 && (start < sb.s_first() || start >= sb.log_end()) {
            return Err(sb_corrupt(
                CorruptKind::Field("s_start"),
                sb.s_first(),
                start,
            ));
        }
        Ok(sb)
    }

    fn check_features(&self) -> Result<(), JournalError> {
        let incompat = self.s_feature_incompat();
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(JournalError::Unsupported(format!(
                "jbd2 incompatible features {:#x}",
                incompat & !INCOMPAT_KNOWN
            )));
        }
        if self.s_feature_ro_compat() != 0 {
            return Err(JournalError::Unsupported(format!(
                "jbd2 read-only compatible features {:#x}",
                self.s_feature_ro_compat()
            )));
        }
        if be32_at(&self.raw, S_NR_USERS) > 1 {
            return Err(JournalError::Unsupported(
                "an external journal that several file systems share".into(),
            ));
        }
        let both = INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;
        let v1 = self.s_feature_compat() & COMPAT_CHECKSUM != 0;
        if incompat & both == both || (v1 && incompat & both != 0) {
            return Err(sb_corrupt(
                CorruptKind::Field("checksum features"),
                "one of v1, v2, v3",
                format!("{incompat:#x}/{:#x}", self.s_feature_compat()),
            ));
        }
        if incompat & both != 0 {
            if self.raw[S_CHECKSUM_TYPE] != CRC32C_CHKSUM {
                return Err(sb_corrupt(
                    CorruptKind::Field("s_checksum_type"),
                    CRC32C_CHKSUM,
                    self.raw[S_CHECKSUM_TYPE],
                ));
            }
            let found = be32_at(&self.raw, S_CHECKSUM);
            if found != self.checksum() {
                return Err(sb_corrupt(CorruptKind::Checksum, self.checksum(), found));
            }
        }
        Ok(())
    }

    /// Why a log that is not clean can not be replayed here, if so.
    pub fn refuse_replay(&self) -> Result<(), JournalError> {
        for (bit, name) in [
            (INCOMPAT_FAST_COMMIT, "fast_commit"),
            (INCOMPAT_ASYNC_COMMIT, "async_commit"),
        ] {
            if self.s_feature_incompat() & bit != 0 {
                return Err(JournalError::Unsupported(format!(
                    "replay of a log with {name}; run e2fsck on the volume first"
                )));
            }
        }
        Ok(())
    }

    fn is_v2(&self) -> bool {
        be32_at(&self.raw, 4) == BlockType::SUPERBLOCK_V2.0
    }

    fn checksum(&self) -> u32 {
        let crc = crc32c_raw(!0, &self.raw[..S_CHECKSUM]);
        let crc = crc32c_raw(crc, &[0; 4]);
        crc32c_raw(crc, &self.raw[S_CHECKSUM + 4..])
    }

    /// Blocks of the journal file that belong to the log, its superblock included.
    pub fn s_maxlen(&self) -> u32 {
        be32_at(&self.raw, S_MAXLEN)
    }
    /// First block of the circular log.
    pub fn s_first(&self) -> u32 {
        be32_at(&self.raw, S_FIRST)
    }
    /// The block behind the circular log: s_maxlen, less a fast-commit area.
    pub fn log_end(&self) -> u32 {
        if self.s_feature_incompat() & INCOMPAT_FAST_COMMIT == 0 {
            return self.s_maxlen();
        }
        // 0 means the default of 256 blocks.
        let fc = match be32_at(&self.raw, S_NUM_FC_BLKS) {
            0 => 256,
            n => n,
        };
        self.s_maxlen().saturating_sub(fc)
    }
    /// The first tid recovery expects; of a clean log the next tid.
    pub fn s_sequence(&self) -> u32 {
        be32_at(&self.raw, S_SEQUENCE)
    }
    /// Where recovery starts; 0 when there is nothing to recover.
    pub fn s_start(&self) -> LogBlock {
        LogBlock(be32_at(&self.raw, S_START))
    }
    /// The negative errno of the abort that was recorded; 0 when there was none.
    pub fn s_errno(&self) -> i32 {
        be32_at(&self.raw, S_ERRNO) as i32
    }
    /// Where the log's head was at the last clean close; `None` when not recorded or out of range.
    pub fn s_head(&self) -> Option<LogBlock> {
        let head = be32_at(&self.raw, S_HEAD);
        (self.is_v2() && head >= self.s_first() && head < self.log_end()).then_some(LogBlock(head))
    }
    /// s_feature_compat; 0 in a version 1 superblock.
    pub fn s_feature_compat(&self) -> u32 {
        self.feature(S_FEATURE_COMPAT)
    }
    /// s_feature_incompat; 0 in a version 1 superblock.
    pub fn s_feature_incompat(&self) -> u32 {
        self.feature(S_FEATURE_INCOMPAT)
    }
    /// s_feature_ro_compat; 0 in a version 1 superblock.
    pub fn s_feature_ro_compat(&self) -> u32 {
        self.feature(S_FEATURE_RO_COMPAT)
    }

    fn feature(&self, offset: usize) -> u32 {
        if self.is_v2() {
            be32_at(&self.raw, offset)
        } else {
            0
        }
    }

    /// How the log's blocks are to be read.
    pub fn format(&self) -> LogFormat {
        let incompat = self.s_feature_incompat();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.raw[S_UUID..S_UUID + 16]);
        let checksums = if incompat & INCOMPAT_CSUM_V3 != 0 {
            Checksums::V3
        } else if incompat & INCOMPAT_CSUM_V2 != 0 {
            Checksums::V2
        } else if self.s_feature_compat() & COMPAT_CHECKSUM != 0 {
            Checksums::V1
        } else {
            Checksums::None
        };
        LogFormat {
            block_size: be32_at(&self.raw, S_BLOCKSIZE) as usize,
            bit64: incompat & INCOMPAT_64BIT != 0,
            checksums,
            seed: crc32c_raw(!0, &uuid),
            uuid,
        }
    }

    /// Turns on what this program writes (revoke, 64bit, csum_v3) and off what it does not; a version 1 superblock
    /// becomes version 2. Only while the log is clean: it changes how blocks are read.
    pub fn use_own_features(&mut self) {
        if !self.is_v2() {
            put_be32(&mut self.raw, 4, BlockType::SUPERBLOCK_V2.0);
            self.raw[S_FEATURE_COMPAT..].fill(0);
            put_be32(&mut self.raw, S_NR_USERS, 1);
        }
        let compat = self.s_feature_compat() & !COMPAT_CHECKSUM;
        put_be32(&mut self.raw, S_FEATURE_COMPAT, compat);
        put_be32(
            &mut self.raw,
            S_FEATURE_INCOMPAT,
            INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_CSUM_V3,
        );
        self.raw[S_CHECKSUM_TYPE] = CRC32C_CHKSUM;
    }

    /// Sets the checkpoint tail: `start` 0 for a clean log.
    pub fn set_tail(&mut self, start: LogBlock, sequence: u32) {
        put_be32(&mut self.raw, S_START, start.0);
        put_be32(&mut self.raw, S_SEQUENCE, sequence);
    }

    /// Records where the next transaction of a clean log goes.
    pub fn set_head(&mut self, head: LogBlock) {
        if self.is_v2() {
            put_be32(&mut self.raw, S_HEAD, head.0);
        }
    }

    /// Records why the journal was aborted (negative errno), or clears it (0).
    pub fn set_errno(&mut self, errno: i32) {
        put_be32(&mut self.raw, S_ERRNO, errno as u32);
    }

    /// The 1024 bytes, with a fresh checksum where the features ask for one.
    pub fn encode(&mut self) -> &[u8] {
        if self.s_feature_incompat() & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0 {
            let sum = self.checksum();
            put_be32(&mut self.raw, S_CHECKSUM, sum);
        }
        &self.raw
    }
}

fn sb_corrupt(
    kind: CorruptKind,
    expected: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> JournalError {
    JournalError::corrupt(LogBlock(0), kind, expected, found)
}
