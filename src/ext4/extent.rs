//! Extent trees: a header and up to `eh_max` entries of 12 bytes, in the 60 bytes of `i_block` (the root) or in a block
//! of its own (with a checksum behind the last slot). Owns one node's layout and checks; walking the tree is not here.

use crate::ext4::Corrupt;
use crate::ext4::checksum::crc32c_raw;
use crate::ext4::layout::{get, put};
use crate::units::{BlockNo, BlockRange, FileBlock};

const WHAT: &str = "extent node";

/// `eh_magic`.
pub const EXT4_EXT_MAGIC: u16 = 0xF30A;
/// Bytes of the header and of every entry.
pub const EXTENT_ENTRY_SIZE: usize = 12;
/// Most blocks of a written extent; `ee_len` above it is an unwritten extent of `ee_len` minus this many.
pub const EXT_INIT_MAX_LEN: u16 = 32768;
/// Most blocks of an unwritten extent.
pub const EXT_UNWRITTEN_MAX_LEN: u16 = EXT_INIT_MAX_LEN - 1;
/// Deepest tree (kernel: `EXT4_MAX_EXTENT_DEPTH`).
pub const EXT4_MAX_EXTENT_DEPTH: u16 = 5;
/// Entries of the root in an inode.
pub const ROOT_MAX: u16 = 4;

/// Head of a node (`ext4_extent_header`).
///
/// | offset | type | field | meaning |
/// |---|---|---|---|
/// | 0 | u16 | `eh_magic` | 0xF30A |
/// | 2 | u16 | `eh_entries` | entries in use |
/// | 4 | u16 | `eh_max` | slots; also says where the checksum is |
/// | 6 | u16 | `eh_depth` | 0: extents; else indexes, this many levels above the extents |
/// | 8 | u32 | `eh_generation` | unused by Linux, kept |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentHeader {
    /// Entries in use.
    pub eh_entries: u16,
    /// Slots.
    pub eh_max: u16,
    /// Levels below this node.
    pub eh_depth: u16,
    /// Unused, kept.
    pub eh_generation: u32,
}

/// One run of blocks (`ext4_extent`).
///
/// | offset | type | field | meaning |
/// |---|---|---|---|
/// | 0 | u32 | `ee_block` | first block in the file |
/// | 4 | u16 | `ee_len` | blocks; above 32768: unwritten, this many more |
/// | 6 | u16 | `ee_start_hi` | first block in the volume, bits 32..48 |
/// | 8 | u32 | `ee_start_lo` | first block in the volume, bits 0..32 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block in the file.
    pub ee_block: FileBlock,
    /// Blocks: 1..=32768, unwritten 1..=32767.
    pub len_blocks: u16,
    /// First block in the volume.
    pub start: BlockNo,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
}

/// A pointer to a node one level down (`ext4_extent_idx`).
///
/// | offset | type | field | meaning |
/// |---|---|---|---|
/// | 0 | u32 | `ei_block` | first file block below it |
/// | 4 | u32 | `ei_leaf_lo` | block of the node, low 32 bits |
/// | 8 | u16 | `ei_leaf_hi` | block of the node, high 16 bits |
/// | 10 | u16 | `ei_unused` | kept |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentIdx {
    /// First file block below it.
    pub ei_block: FileBlock,
    /// Block of the node.
    pub leaf: BlockNo,
    /// Unused, kept.
    pub ei_unused: u16,
}

const _: () = assert!(EXTENT_ENTRY_SIZE == 2 + 2 + 2 + 2 + 4);
const _: () = assert!(EXTENT_ENTRY_SIZE == 4 + 2 + 2 + 4);
const _: () = assert!(EXTENT_ENTRY_SIZE == 4 + 4 + 2 + 2);
const _: () = assert!(EXTENT_ENTRY_SIZE * (1 + ROOT_MAX as usize) == 60);

impl ExtentHeader {
    /// Checks magic, depth, and that the slots fit into `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<ExtentHeader, Corrupt> {
        Corrupt::need(WHAT, bytes, EXTENT_ENTRY_SIZE)?;
        let magic: u16 = get(bytes, 0);
        if magic != EXT4_EXT_MAGIC {
            return Err(Corrupt::field(WHAT, "eh_magic", 0, "0xf30a", magic));
        }
        let header = ExtentHeader {
            eh_entries: get(bytes, 2),
            eh_max: get(bytes, 4),
            eh_depth: get(bytes, 6),
            eh_generation: get(bytes, 8),
        };
        let slots = bytes.len() / EXTENT_ENTRY_SIZE - 1;
        if header.eh_max == 0 || usize::from(header.eh_max) > slots {
            let expected = format!("1..={slots}");
            return Err(Corrupt::field(WHAT, "eh_max", 4, expected, header.eh_max));
        }
        if header.eh_entries > header.eh_max {
            let expected = format!("at most eh_max, {}", header.eh_max);
            return Err(Corrupt::field(
                WHAT,
                "eh_entries",
                2,
                expected,
                header.eh_entries,
            ));
        }
        if header.eh_depth > EXT4_MAX_EXTENT_DEPTH {
            return Err(Corrupt::field(
                WHAT,
                "eh_depth",
                6,
                "at most 5",
                header.eh_depth,
            ));
        }
        if header.eh_depth > 0 && header.eh_entries == 0 {
            return Err(Corrupt::field(
                WHAT,
                "eh_entries",
                2,
                "at least 1 in an index",
                0u16,
            ));
        }
        Ok(header)
    }

    /// Writes the 12 bytes.
    pub fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, EXT4_EXT_MAGIC);
        put(bytes, 2, self.eh_entries);
        put(bytes, 4, self.eh_max);
        put(bytes, 6, self.eh_depth);
        put(bytes, 8, self.eh_generation);
    }
}

impl Extent {
    /// From 12 bytes; checked for an empty or overflowing range only by [`ExtentNode::decode`].
    fn read(bytes: &[u8]) -> Extent {
        let ee_len: u16 = get(bytes, 4);
        let hi: u16 = get(bytes, 6);
        let lo: u32 = get(bytes, 8);
        let unwritten = ee_len > EXT_INIT_MAX_LEN;
        Extent {
            ee_block: FileBlock(get(bytes, 0)),
            len_blocks: if unwritten {
                ee_len - EXT_INIT_MAX_LEN
            } else {
                ee_len
            },
            start: BlockNo(u64::from(lo) | u64::from(hi) << 32),
            unwritten,
        }
    }

    /// Writes the 12 bytes.
    pub fn encode(&self, bytes: &mut [u8]) {
        debug_assert!(self.len_blocks > 0 && self.len_blocks <= EXT_INIT_MAX_LEN);
        debug_assert!(!self.unwritten || self.len_blocks <= EXT_UNWRITTEN_MAX_LEN);
        put(bytes, 0, self.ee_block.0);
        put(bytes, 4, self.ee_len());
        put(bytes, 6, (self.start.0 >> 32) as u16);
        put(bytes, 8, self.start.0 as u32);
    }

    /// As on disk: blocks, plus 32768 when unwritten.
    pub fn ee_len(&self) -> u16 {
        if self.unwritten {
            self.len_blocks.saturating_add(EXT_INIT_MAX_LEN)
        } else {
            self.len_blocks
        }
    }

    /// The file block behind the last one; 64 bits, since the last file block is 2^32 - 1.
    pub fn end(&self) -> u64 {
        u64::from(self.ee_block.0) + u64::from(self.len_blocks)
    }

    /// Whether it maps `block`.
    pub fn contains(&self, block: FileBlock) -> bool {
        self.ee_block <= block && u64::from(block.0) < self.end()
    }

    /// Where file block `block` is, if this extent maps it.
    pub fn map(&self, block: FileBlock) -> Option<BlockNo> {
        self.contains(block)
            .then(|| BlockNo(self.start.0 + u64::from(block.0 - self.ee_block.0)))
    }

    /// Its blocks in the volume.
    pub fn blocks(&self) -> BlockRange {
        BlockRange::new(self.start, self.len_blocks.into())
    }

    /// Most blocks an extent of this kind can have.
    pub fn max_len(unwritten: bool) -> u16 {
        if unwritten {
            EXT_UNWRITTEN_MAX_LEN
        } else {
            EXT_INIT_MAX_LEN
        }
    }
}

impl ExtentIdx {
    fn read(bytes: &[u8]) -> ExtentIdx {
        let lo: u32 = get(bytes, 4);
        let hi: u16 = get(bytes, 8);
        ExtentIdx {
            ei_block: FileBlock(get(bytes, 0)),
            leaf: BlockNo(u64::from(lo) | u64::from(hi) << 32),
            ei_unused: get(bytes, 10),
        }
    }

    /// Writes the 12 bytes.
    pub fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, self.ei_block.0);
        put(bytes, 4, self.leaf.0 as u32);
        put(bytes, 8, (self.leaf.0 >> 32) as u16);
        put(bytes, 10, self.ei_unused);
    }
}

/// The entries of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Depth 0.
    Leaf(Vec<Extent>),
    /// Depth above 0.
    Index(Vec<ExtentIdx>),
}

/// A whole node, checked: entries sorted, not overlapping, inside file and volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentNode {
    /// Slots (`eh_max`).
    pub eh_max: u16,
    /// Levels below this node (`eh_depth`).
    pub eh_depth: u16,
    /// Unused, kept.
    pub eh_generation: u32,
    /// The entries in use.
    pub entries: Entries,
}

impl ExtentNode {
    /// An empty leaf with `eh_max` slots.
    pub fn empty(eh_max: u16) -> ExtentNode {
        ExtentNode {
            eh_max,
            eh_depth: 0,
            eh_generation: 0,
            entries: Entries::Leaf(Vec::new()),
        }
    }

    /// Checks everything but the checksum. `bytes` are the 60 of `i_block` or a block; `blocks_count` the volume's.
    pub fn decode(bytes: &[u8], blocks_count: u64) -> Result<ExtentNode, Corrupt> {
        let header = ExtentHeader::decode(bytes)?;
        let used = bytes[EXTENT_ENTRY_SIZE..]
            .chunks_exact(EXTENT_ENTRY_SIZE)
            .take(header.eh_entries.into());
        let mut at = 0;
        let mut next: u64 = 0; // the first file block that the next entry may have
        let entries = if header.eh_depth == 0 {
            let mut extents = Vec::with_capacity(header.eh_entries.into());
            for slot in used {
                at += EXTENT_ENTRY_SIZE;
                let extent = Extent::read(slot);
                if extent.len_blocks == 0 {
                    return Err(Corrupt::field(WHAT, "ee_len", at + 4, "at least 1", 0u16));
                }
                if u64::from(extent.ee_block.0) < next || extent.end() > 1 << 32 {
                    let expected = format!("{next} or more, its end at most 2^32");
                    return Err(Corrupt::field(
                        WHAT,
                        "ee_block",
                        at,
                        expected,
                        extent.ee_block.0,
                    ));
                }
                in_volume(
                    "ee_start",
                    at + 6,
                    extent.start,
                    extent.len_blocks,
                    blocks_count,
                )?;
                next = extent.end();
                extents.push(extent);
            }
            Entries::Leaf(extents)
        } else {
            let mut indexes = Vec::with_capacity(header.eh_entries.into());
            for slot in used {
                at += EXTENT_ENTRY_SIZE;
                let index = ExtentIdx::read(slot);
                if u64::from(index.ei_block.0) < next {
                    let expected = format!("{next} or more");
                    return Err(Corrupt::field(
                        WHAT,
                        "ei_block",
                        at,
                        expected,
                        index.ei_block.0,
                    ));
                }
                in_volume("ei_leaf", at + 4, index.leaf, 1, blocks_count)?;
                next = u64::from(index.ei_block.0) + 1;
                indexes.push(index);
            }
            Entries::Index(indexes)
        };
        Ok(ExtentNode {
            eh_max: header.eh_max,
            eh_depth: header.eh_depth,
            eh_generation: header.eh_generation,
            entries,
        })
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        match &self.entries {
            Entries::Leaf(extents) => extents.len(),
            Entries::Index(indexes) => indexes.len(),
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every slot is in use.
    pub fn is_full(&self) -> bool {
        self.len() >= usize::from(self.eh_max)
    }

    /// First file block of the first entry.
    pub fn first_block(&self) -> Option<FileBlock> {
        match &self.entries {
            Entries::Leaf(extents) => extents.first().map(|e| e.ee_block),
            Entries::Index(indexes) => indexes.first().map(|i| i.ei_block),
        }
    }

    /// Position of the last entry that starts at or before `block`.
    pub fn position(&self, block: FileBlock) -> Option<usize> {
        let behind = match &self.entries {
            Entries::Leaf(extents) => extents.partition_point(|e| e.ee_block <= block),
            Entries::Index(indexes) => indexes.partition_point(|i| i.ei_block <= block),
        };
        behind.checked_sub(1)
    }

    /// Writes header and entries; the slots behind them and the checksum stay as they are. At most `eh_max` entries,
    /// and `bytes` as large as the node that was decoded.
    pub fn encode(&self, bytes: &mut [u8]) {
        assert!(
            self.len() <= usize::from(self.eh_max),
            "more entries than slots"
        );
        ExtentHeader {
            eh_entries: self.len() as u16,
            eh_max: self.eh_max,
            eh_depth: self.eh_depth,
            eh_generation: self.eh_generation,
        }
        .encode(bytes);
        let slots = bytes[EXTENT_ENTRY_SIZE..].chunks_exact_mut(EXTENT_ENTRY_SIZE);
        match &self.entries {
            Entries::Leaf(extents) => slots.zip(extents).for_each(|(s, e)| e.encode(s)),
            Entries::Index(indexes) => slots.zip(indexes).for_each(|(s, i)| i.encode(s)),
        }
    }

    /// The 60 bytes of `i_block` for a root.
    pub fn encode_root(&self) -> [u8; 60] {
        let mut bytes = [0; 60];
        self.encode(&mut bytes);
        bytes
    }
}

fn in_volume(
    field: &'static str,
    at: usize,
    start: BlockNo,
    len: u16,
    blocks_count: u64,
) -> Result<(), Corrupt> {
    if start.0 == 0 || start.0 + u64::from(len) > blocks_count {
        return Err(Corrupt::field(
            WHAT,
            field,
            at,
            format!("inside 1..{blocks_count}"),
            start.0,
        ));
    }
    Ok(())
}

/// Slots of an extent block: what fits behind the header, the checksum in the rest (or, where nothing is left over, see
/// the kernel's `ext4_ext_space_block`: block sizes leave 4 bytes or more in all supported cases).
pub fn block_max(block_size: u32) -> u16 {
    ((block_size as usize - EXTENT_ENTRY_SIZE) / EXTENT_ENTRY_SIZE) as u16
}

/// Offset of the checksum (`ext4_extent_tail`, 4 bytes) in an extent block: behind the last slot.
fn tail_offset(block: &[u8]) -> Result<usize, Corrupt> {
    let header = ExtentHeader::decode(block)?;
    let at = EXTENT_ENTRY_SIZE * (1 + usize::from(header.eh_max));
    Corrupt::need("extent block's checksum", block, at + 4)?;
    Ok(at)
}

/// Compares the checksum of an extent block (metadata_csum only; not for the root in the inode).
/// `seed` is [`crate::ext4::checksum::inode_seed`].
pub fn verify_block(seed: u32, block: &[u8]) -> Result<(), Corrupt> {
    let at = tail_offset(block)?;
    Corrupt::checksum(
        "extent block",
        crc32c_raw(seed, &block[..at]),
        get(block, at),
    )
}

/// Stores the checksum of an extent block (metadata_csum only).
pub fn update_block(seed: u32, block: &mut [u8]) -> Result<(), Corrupt> {
    let at = tail_offset(block)?;
    let sum = crc32c_raw(seed, &block[..at]);
    put(block, at, sum);
    Ok(())
}

#[cfg(test)]
mod tests;
