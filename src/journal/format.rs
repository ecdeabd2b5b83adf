//! The blocks of the log: header, descriptor with tags, revoke, commit; bytes <-> typed values and their checksums.
//! Big-endian throughout. Never does I/O; no input makes it panic.
//!
//! Source: the kernel's documentation of the journal (Documentation/filesystems/ext4/journal.rst).
//!
//! | block | offset | size | field |
//! |---|---|---|---|
//! | every | 0x00 | 4 | h_magic 0xc03b3998 |
//! | | 0x04 | 4 | h_blocktype |
//! | | 0x08 | 4 | h_sequence: the tid |
//! | descriptor | 0x0c | | tags, the first followed by s_uuid; the data blocks follow in order |
//! | revoke | 0x0c | 4 | r_count: bytes used, header included |
//! | | 0x10 | | block numbers, 4 or 8 bytes each; behind r_count our payload |
//! | commit | 0x0c | 1 | h_chksum_type (v1 checksum only) |
//! | | 0x0d | 1 | h_chksum_size |
//! | | 0x10 | 32 | h_chksum |
//! | | 0x30 | 8 | h_commit_sec |
//! | | 0x38 | 4 | h_commit_nsec |
//!
//! With v2 and v3 checksums the last four bytes of descriptor and revoke blocks are a crc32c of the block.
//!
//! Tag, v3: t_blocknr 4, t_flags 4, t_blocknr_high 4, t_checksum 4. Else: t_blocknr 4, t_checksum 2, t_flags 2, then
//! t_blocknr_high 4 with 64bit, then with v2 two bytes of padding.

use super::superblock::{Checksums, LogFormat};
use crate::units::BlockNo;

/// h_magic.
pub const MAGIC: u32 = 0xc03b_3998;
/// Bytes of a block's header.
pub const HEADER_SIZE: usize = 12;
/// Bytes of a revoke block's header: the header and r_count.
pub const REVOKE_HEADER_SIZE: usize = 16;
/// Bytes of the checksum at the end of descriptor and revoke blocks.
pub const TAIL_SIZE: usize = 4;
/// Bytes of a commit block that mean something; the rest is zeros.
pub const COMMIT_SIZE: usize = 0x3c;

const UUID_SIZE: usize = 16;
const H_CHKSUM_TYPE: usize = 0x0c;
const H_CHKSUM_SIZE: usize = 0x0d;
const H_CHKSUM: usize = 0x10;
const H_COMMIT_SEC: usize = 0x30;
const H_COMMIT_NSEC: usize = 0x38;
const _: () = assert!(H_COMMIT_NSEC + 4 == COMMIT_SIZE);
const CRC32_CHKSUM: u8 = 1;

/// The first four bytes of the data were the magic and are zeros in the log.
pub const FLAG_ESCAPE: u32 = 1;
/// No uuid follows the tag.
pub const FLAG_SAME_UUID: u32 = 2;
/// Never written since long ago.
pub const FLAG_DELETED: u32 = 4;
/// The descriptor's last tag.
pub const FLAG_LAST_TAG: u32 = 8;

/// h_blocktype; unknown values are representable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockType(pub u32);

impl BlockType {
    /// Tags, followed by data blocks.
    pub const DESCRIPTOR: BlockType = BlockType(1);
    /// The end of a transaction.
    pub const COMMIT: BlockType = BlockType(2);
    /// The superblock without features.
    pub const SUPERBLOCK_V1: BlockType = BlockType(3);
    /// The superblock.
    pub const SUPERBLOCK_V2: BlockType = BlockType(4);
    /// Blocks whose older images must not be replayed.
    pub const REVOKE: BlockType = BlockType(5);
}

/// The first bytes of every block of the log that is not data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// h_blocktype.
    pub block_type: BlockType,
    /// h_sequence.
    pub tid: u32,
}

impl Header {
    /// The header, or `None` when the block has not jbd2's magic: then it is data, or an older thing.
    pub fn decode(block: &[u8]) -> Option<Header> {
        (block.len() >= HEADER_SIZE && be32_at(block, 0) == MAGIC).then(|| Header {
            block_type: BlockType(be32_at(block, 4)),
            tid: be32_at(block, 8),
        })
    }

    /// Writes the header to the start of `block`.
    pub fn encode(&self, block: &mut [u8]) {
        put_be32(block, 0, MAGIC);
        put_be32(block, 4, self.block_type.0);
        put_be32(block, 8, self.tid);
    }
}

/// One tag of a descriptor: the data block that follows belongs at home block `block`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Its home.
    pub block: BlockNo,
    /// Whether the magic was taken out.
    pub escaped: bool,
    /// t_checksum: v3 32 bits, v2 16 bits, else 0.
    pub checksum: u32,
}

impl LogFormat {
    /// Bytes at the end of descriptor and revoke blocks that are the checksum.
    pub fn tail_size(&self) -> usize {
        match self.checksums {
            Checksums::V2 | Checksums::V3 => TAIL_SIZE,
            Checksums::None | Checksums::V1 => 0,
        }
    }

    /// Bytes of one tag, without the uuid.
    pub fn tag_size(&self) -> usize {
        match (self.checksums, self.bit64) {
            (Checksums::V3, _) => 16,
            (Checksums::V2, true) => 14,
            (Checksums::V2, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        }
    }

    /// Bytes of one revoke record.
    pub fn revoke_size(&self) -> usize {
        if self.bit64 { 8 } else { 4 }
    }

    /// How many tags a descriptor block holds when the first carries the uuid.
    pub fn tags_per_descriptor(&self) -> usize {
        (self.block_size - HEADER_SIZE - UUID_SIZE - self.tail_size()) / self.tag_size()
    }

    /// Where a descriptor or revoke block's content ends.
    pub fn content_end(&self) -> usize {
        self.block_size - self.tail_size()
    }

    /// t_checksum of a data block as it stands in the log (escaped).
    pub fn tag_checksum(&self, tid: u32, data: &[u8]) -> u32 {
        let full = || crc32c_raw(crc32c_raw(self.seed, &tid.to_be_bytes()), data);
        match self.checksums {
            Checksums::V3 => full(),
            Checksums::V2 => full() & 0xffff,
            Checksums::None | Checksums::V1 => 0,
        }
    }

    /// Writes the checksum at the end of a descriptor or revoke block.
    pub fn seal(&self, block: &mut [u8]) {
        if self.tail_size() > 0 {
            let at = self.block_size - TAIL_SIZE;
            put_be32(block, at, 0);
            let sum = crc32c_raw(self.seed, block);
            put_be32(block, at, sum);
        }
    }

    /// Whether the checksum at the end of a descriptor or revoke block matches; (expected, found) when not.
    pub fn check_seal(&self, block: &[u8]) -> Result<(), (u32, u32)> {
        if self.tail_size() == 0 {
            return Ok(());
        }
        let at = self.block_size - TAIL_SIZE;
        let sum = crc32c_raw(crc32c_raw(self.seed, &block[..at]), &[0; TAIL_SIZE]);
        let found = be32_at(block, at);
        if sum == found {
            Ok(())
        } else {
            Err((sum, found))
        }
    }

    /// Builds a descriptor block. At most `tags_per_descriptor` tags, at least one.
    pub fn encode_descriptor(&self, tid: u32, tags: &[Tag]) -> Vec<u8> {
        let mut block = vec![0; self.block_size];
        Header {
            block_type: BlockType::DESCRIPTOR,
            tid,
        }
        .encode(&mut block);
        let mut at = HEADER_SIZE;
        for (i, tag) in tags.iter().enumerate() {
            let mut flags = 0;
            if tag.escaped {
                flags |= FLAG_ESCAPE;
            }
            if i > 0 {
                flags |= FLAG_SAME_UUID;
            }
            if i + 1 == tags.len() {
                flags |= FLAG_LAST_TAG;
            }
            put_be32(&mut block, at, tag.block.0 as u32);
            if self.checksums == Checksums::V3 {
                put_be32(&mut block, at + 4, flags);
                put_be32(&mut block, at + 8, (tag.block.0 >> 32) as u32);
                put_be32(&mut block, at + 12, tag.checksum);
            } else {
                put_be16(&mut block, at + 4, tag.checksum as u16);
                put_be16(&mut block, at + 6, flags as u16);
                if self.bit64 {
                    put_be32(&mut block, at + 8, (tag.block.0 >> 32) as u32);
                }
            }
            at += self.tag_size();
            if i == 0 {
                block[at..at + UUID_SIZE].copy_from_slice(&self.uuid);
                at += UUID_SIZE;
            }
        }
        self.seal(&mut block);
        block
    }

    /// The tags of a descriptor block, up to the one that says it is the last. The checksum is not looked at.
    pub fn decode_tags(&self, block: &[u8]) -> Vec<Tag> {
        let size = self.tag_size();
        let end = self.content_end().min(block.len());
        let mut tags = Vec::new();
        let mut at = HEADER_SIZE;
        while at + size <= end {
            let low = u64::from(be32_at(block, at));
            let (flags, checksum, high) = if self.checksums == Checksums::V3 {
                (be32_at(block, at + 4), be32_at(block, at + 12), at + 8)
            } else {
                let sum = match self.checksums {
                    Checksums::V2 => u32::from(be16_at(block, at + 4)),
                    _ => 0,
                };
                (u32::from(be16_at(block, at + 6)), sum, at + 8)
            };
            let high = if self.bit64 {
                u64::from(be32_at(block, high))
            } else {
                0
            };
            tags.push(Tag {
                block: BlockNo(high << 32 | low),
                escaped: flags & FLAG_ESCAPE != 0,
                checksum,
            });
            at += size;
            if flags & FLAG_SAME_UUID == 0 {
                at += UUID_SIZE;
            }
            if flags & FLAG_LAST_TAG != 0 {
                break;
            }
        }
        tags
    }

    /// Builds a revoke block with `payload` behind its records. The caller has counted that both fit.
    pub fn encode_revoke(&self, tid: u32, records: &[BlockNo], payload: &[u8]) -> Vec<u8> {
        let mut block = vec![0; self.block_size];
        Header {
            block_type: BlockType::REVOKE,
            tid,
        }
        .encode(&mut block);
        let mut at = REVOKE_HEADER_SIZE;
        for record in records {
            if self.bit64 {
                block[at..at + 8].copy_from_slice(&record.0.to_be_bytes());
            } else {
                put_be32(&mut block, at, record.0 as u32);
            }
            at += self.revoke_size();
        }
        put_be32(&mut block, HEADER_SIZE, at as u32);
        block[at..at + payload.len()].copy_from_slice(payload);
        self.seal(&mut block);
        block
    }

    /// The records of a revoke block and the bytes behind them; `Err(r_count)` when r_count can not be.
    pub fn decode_revoke<'a>(&self, block: &'a [u8]) -> Result<(Vec<BlockNo>, &'a [u8]), u32> {
        let count = be32_at(block, HEADER_SIZE);
        let end = self.content_end().min(block.len());
        if (count as usize) < REVOKE_HEADER_SIZE || count as usize > end {
            return Err(count);
        }
        let (records, rest) =
            block[REVOKE_HEADER_SIZE..end].split_at(count as usize - REVOKE_HEADER_SIZE);
        let records = records
            .chunks_exact(self.revoke_size())
            .map(|r| {
                BlockNo(if self.bit64 {
                    u64::from(be32_at(r, 0)) << 32 | u64::from(be32_at(r, 4))
                } else {
                    u64::from(be32_at(r, 0))
                })
            })
            .collect();
        Ok((records, rest))
    }

    /// Builds a commit block. The commit time stays 0: the kernel uses it only to take a damaged block whose time is
    /// older than the transaction before for a leftover; equal times make it report the damage instead.
    pub fn encode_commit(&self, tid: u32) -> Vec<u8> {
        let mut block = vec![0; self.block_size];
        Header {
            block_type: BlockType::COMMIT,
            tid,
        }
        .encode(&mut block);
        if self.tail_size() > 0 {
            let sum = crc32c_raw(self.seed, &block);
            put_be32(&mut block, H_CHKSUM, sum);
        }
        block
    }

    /// The commit block's time and whether its checksum holds. `v1` is the crc32 of the transaction's blocks.
    pub fn decode_commit(&self, block: &[u8], v1: u32) -> Commit {
        let found = be32_at(block, H_CHKSUM);
        let valid = match self.checksums {
            Checksums::None => true,
            Checksums::V1 => {
                let (kind, size) = (block[H_CHKSUM_TYPE], block[H_CHKSUM_SIZE]);
                (kind == CRC32_CHKSUM && size == 4 && found == v1)
                    // Written before the feature was turned on.
                    || (kind == 0 && size == 0 && found == 0)
            }
            Checksums::V2 | Checksums::V3 => {
                // A torn write may have left older bytes behind the first sector: they say nothing.
                let sum = self.commit_checksum(block);
                let mut first = vec![0; block.len()];
                first[..COMMIT_SIZE].copy_from_slice(&block[..COMMIT_SIZE]);
                sum == found || self.commit_checksum(&first) == found
            }
        };
        Commit {
            secs: u64::from(be32_at(block, H_COMMIT_SEC)) << 32
                | u64::from(be32_at(block, H_COMMIT_SEC + 4)),
            nanos: be32_at(block, H_COMMIT_NSEC),
            valid,
            found,
        }
    }

    fn commit_checksum(&self, block: &[u8]) -> u32 {
        let crc = crc32c_raw(self.seed, &block[..H_CHKSUM]);
        let crc = crc32c_raw(crc, &[0; 4]);
        crc32c_raw(crc, &block[H_CHKSUM + 4..])
    }
}

/// What a commit block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// h_commit_sec.
    pub secs: u64,
    /// h_commit_nsec.
    pub nanos: u32,
    /// Whether the checksum holds.
    pub valid: bool,
    /// The checksum that was found.
    pub found: u32,
}

/// Whether a data block has to be escaped: it begins with the magic.
pub fn needs_escape(data: &[u8]) -> bool {
    data.len() >= 4 && be32_at(data, 0) == MAGIC
}

/// Puts the magic back where escaping took it out.
pub fn unescape(data: &mut [u8]) {
    put_be32(data, 0, MAGIC);
}

/// The kernel's crc32c: no inversion, neither before nor after.
pub fn crc32c_raw(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// The kernel's crc32_be (polynomial 0x04c11db7, most significant bit first), of v1 checksums.
pub fn crc32_be(seed: u32, data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = (i as u32) << 24;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000_0000 != 0 {
                    crc << 1 ^ 0x04c1_1db7
                } else {
                    crc << 1
                };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    data.iter().fold(seed, |crc, byte| {
        crc << 8 ^ TABLE[((crc >> 24) as u8 ^ byte) as usize]
    })
}

pub(super) fn be32_at(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(b) => u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
        None => 0,
    }
}

pub(super) fn be16_at(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(b) => u16::from_be_bytes([b[0], b[1]]),
        None => 0,
    }
}

pub(super) fn put_be32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn put_be16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
