//! The hash index of a directory: a root in block 0 and interior nodes, disguised from older readers as entries.
//!
//! Owns the layout of one index block, its checksum and its limits. Finding the way through several blocks and splitting
//! them is not here; hashes are [`crate::ext4::dx_hash`], leaves are [`crate::ext4::dirent`].
//!
//! Root (`dx_root`):
//!
//! | offset | type | field | meaning |
//! |---|---|---|---|
//! | 0 | 12 bytes | `dot` | the entry "." |
//! | 12 | 12 bytes | `dotdot` | the entry "..", its `rec_len` reaching to the block's end |
//! | 24 | u32 | `reserved_zero` | 0: guards against taking a linear block for a root |
//! | 28 | u8 | `hash_version` | 0 legacy, 1 half MD4, 2 TEA |
//! | 29 | u8 | `info_length` | 8 |
//! | 30 | u8 | `indirect_levels` | levels of interior nodes below the root |
//! | 31 | u8 | `unused_flags` | kept |
//! | 32 | 8 bytes each | `entries` | as below |
//!
//! Node (`dx_node`): an unused entry of 8 bytes whose `rec_len` is the whole block, then the entries.
//!
//! Entries (`dx_entry`): `hash` u32, `block` u32 (28 bits: block of the directory), sorted. The first has no hash: in its
//! place are `limit` u16 (slots) and `count` u16 (in use). A hash with bit 0 set says that names with that hash (bit 0
//! cleared) begin in the block before. With metadata_csum, behind the last slot: `dt_reserved` u32, `dt_checksum` u32.

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::dirent::{DirLayout, entry_size};
use crate::ext4::dx_hash::HashVersion;
use crate::ext4::layout::{get, put};
use crate::ext4::{Corrupt, FileType};
use crate::units::{FileBlock, Ino};

const ROOT: &str = "directory index root";
const NODE: &str = "directory index node";

/// Bytes of an entry.
pub const DX_ENTRY_SIZE: usize = 8;
/// Bytes of the checksum behind the slots.
pub const DX_TAIL_SIZE: usize = 8;
/// Offset of the first entry in a root.
const ROOT_ENTRIES: usize = 32;
/// Offset of the first entry in a node.
const NODE_ENTRIES: usize = 8;
/// The bits of `block` that are a block number.
pub const DX_BLOCK_MASK: u32 = 0x0fff_ffff;

const _: () = assert!(entry_size(1) + entry_size(2) + 4 + 1 + 1 + 1 + 1 == ROOT_ENTRIES);
const _: () = assert!(entry_size(0) == NODE_ENTRIES);
const _: () = assert!(DX_ENTRY_SIZE == 4 + 4 && DX_TAIL_SIZE == 4 + 4);

/// Levels of interior nodes below the root that a volume may have (kernel: `ext4_dir_htree_level` minus one).
pub fn max_indirect_levels(large_dir: bool) -> u8 {
    if large_dir { 2 } else { 1 }
}

/// A pointer to a leaf or to a node one level down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DxEntry {
    /// Least hash below it; 0 in the first entry of a block. Bit 0: the hash goes on from the block before.
    pub hash: u32,
    /// Block of the directory.
    pub block: FileBlock,
}

/// What a root says beyond its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DxInfo {
    /// How names are hashed.
    pub hash_version: HashVersion,
    /// Levels of interior nodes below the root.
    pub indirect_levels: u8,
    /// Unused, kept.
    pub unused_flags: u8,
}

/// An index block, checked: count within limit, hashes sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DxBlock {
    /// In the root only.
    pub info: Option<DxInfo>,
    /// Slots.
    pub limit: u16,
    /// The entries in use, at least one.
    pub entries: Vec<DxEntry>,
}

/// Slots of a root.
pub fn root_limit(layout: &DirLayout, block_size: usize) -> u16 {
    limit(layout, block_size, ROOT_ENTRIES)
}

/// Slots of a node.
pub fn node_limit(layout: &DirLayout, block_size: usize) -> u16 {
    limit(layout, block_size, NODE_ENTRIES)
}

fn limit(layout: &DirLayout, block_size: usize, start: usize) -> u16 {
    let tail = if layout.tail { DX_TAIL_SIZE } else { 0 };
    (block_size.saturating_sub(start + tail) / DX_ENTRY_SIZE) as u16
}

impl DxBlock {
    /// The root in a directory's block 0.
    pub fn decode_root(
        layout: &DirLayout,
        large_dir: bool,
        block: &[u8],
    ) -> Result<DxBlock, Corrupt> {
        Corrupt::need(ROOT, block, ROOT_ENTRIES + DX_ENTRY_SIZE)?;
        let dot = layout.entry(block, 0)?;
        if dot.name != b"." || dot.rec_len != entry_size(1) || dot.ino.is_none() {
            return Err(Corrupt::field(
                ROOT,
                "dot",
                0,
                "the entry \".\"",
                dot.rec_len as u64,
            ));
        }
        let dotdot = layout.entry(block, entry_size(1))?;
        let rest = block.len() - entry_size(1);
        if dotdot.name != b".." || dotdot.rec_len != rest || dotdot.ino.is_none() {
            let found = dotdot.rec_len as u64;
            return Err(Corrupt::field(
                ROOT,
                "dotdot",
                12,
                "the entry \"..\", to the end",
                found,
            ));
        }
        let zero: u32 = get(block, 24);
        if zero != 0 {
            return Err(Corrupt::field(ROOT, "reserved_zero", 24, "0", zero));
        }
        let Some(hash_version) = HashVersion::from_code(block[28]) else {
            return Err(Corrupt::field(
                ROOT,
                "hash_version",
                28,
                "0, 1 or 2",
                block[28],
            ));
        };
        if block[29] != 8 {
            return Err(Corrupt::field(ROOT, "info_length", 29, "8", block[29]));
        }
        let most = max_indirect_levels(large_dir);
        if block[30] > most {
            let expected = format!("at most {most}");
            return Err(Corrupt::field(
                ROOT,
                "indirect_levels",
                30,
                expected,
                block[30],
            ));
        }
        let info = DxInfo {
            hash_version,
            indirect_levels: block[30],
            unused_flags: block[31],
        };
        let limit = root_limit(layout, block.len());
        DxBlock::decode_entries(ROOT, Some(info), limit, block, ROOT_ENTRIES)
    }

    /// An interior node.
    pub fn decode_node(layout: &DirLayout, block: &[u8]) -> Result<DxBlock, Corrupt> {
        Corrupt::need(NODE, block, NODE_ENTRIES + DX_ENTRY_SIZE)?;
        let fake = layout.entry(block, 0)?;
        if fake.ino.is_some() || fake.rec_len != block.len() {
            let found = fake.rec_len as u64;
            return Err(Corrupt::field(NODE, "fake", 0, "one unused entry", found));
        }
        let limit = node_limit(layout, block.len());
        DxBlock::decode_entries(NODE, None, limit, block, NODE_ENTRIES)
    }

    fn decode_entries(
        what: &'static str,
        info: Option<DxInfo>,
        limit: u16,
        block: &[u8],
        start: usize,
    ) -> Result<DxBlock, Corrupt> {
        let found: u16 = get(block, start);
        if found != limit {
            return Err(Corrupt::field(
                what,
                "limit",
                start,
                limit.to_string(),
                found,
            ));
        }
        let count: u16 = get(block, start + 2);
        if count == 0 || count > limit {
            return Err(Corrupt::field(
                what,
                "count",
                start + 2,
                format!("1..={limit}"),
                count,
            ));
        }
        let mut entries = Vec::with_capacity(count.into());
        let mut least = 0;
        for (i, slot) in block[start..]
            .chunks_exact(DX_ENTRY_SIZE)
            .take(count.into())
            .enumerate()
        {
            let hash = if i == 0 { 0 } else { get(slot, 0) };
            if hash < least {
                let at = start + i * DX_ENTRY_SIZE;
                return Err(Corrupt::field(
                    what,
                    "hash",
                    at,
                    format!("at least {least:#x}"),
                    hash,
                ));
            }
            least = hash;
            let block = get::<u32>(slot, 4) & DX_BLOCK_MASK;
            entries.push(DxEntry {
                hash,
                block: FileBlock(block),
            });
        }
        Ok(DxBlock {
            info,
            limit,
            entries,
        })
    }

    /// Position of the entry below which names of this hash are: the last with a hash not above it.
    pub fn position(&self, hash: u32) -> usize {
        self.entries[1..].partition_point(|e| e.hash <= hash)
    }

    /// Whether every slot is in use.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= usize::from(self.limit)
    }

    /// Writes info, count, limit and entries into a block that is a root or node already ([`init_root`],
    /// [`init_node`]); the slots behind them stay. The checksum is to be updated afterwards.
    pub fn encode(&self, block: &mut [u8]) {
        assert!(
            (1..=usize::from(self.limit)).contains(&self.entries.len()),
            "an index block has between one entry and its limit"
        );
        let start = match self.info {
            Some(info) => {
                block[28] = info.hash_version.code();
                block[29] = 8;
                block[30] = info.indirect_levels;
                block[31] = info.unused_flags;
                ROOT_ENTRIES
            }
            None => NODE_ENTRIES,
        };
        for (slot, entry) in block[start..]
            .chunks_exact_mut(DX_ENTRY_SIZE)
            .zip(&self.entries)
        {
            put(slot, 0, entry.hash);
            put(slot, 4, entry.block.0);
        }
        put(block, start, self.limit);
        put(block, start + 2, self.entries.len() as u16);
    }
}

/// Makes a block the root of a new index over one leaf: ".", "..", and an entry for `leaf`.
pub fn init_root(
    layout: &DirLayout,
    block: &mut [u8],
    ino: Ino,
    parent: Ino,
    hash_version: HashVersion,
    leaf: FileBlock,
) {
    block.fill(0);
    let no_tail = DirLayout {
        tail: false,
        ..*layout
    };
    no_tail.init_dir(block, ino, parent);
    debug_assert_eq!(
        block[7],
        if layout.filetype {
            FileType::Directory.code()
        } else {
            0
        }
    );
    DxBlock {
        info: Some(DxInfo {
            hash_version,
            indirect_levels: 0,
            unused_flags: 0,
        }),
        limit: root_limit(layout, block.len()),
        entries: vec![DxEntry {
            hash: 0,
            block: leaf,
        }],
    }
    .encode(block);
}

/// Makes a block an interior node with these entries (at least one; the first one's hash is not stored).
pub fn init_node(layout: &DirLayout, block: &mut [u8], entries: Vec<DxEntry>) {
    block.fill(0);
    let no_tail = DirLayout {
        tail: false,
        ..*layout
    };
    no_tail.init_empty(block);
    DxBlock {
        info: None,
        limit: node_limit(layout, block.len()),
        entries,
    }
    .encode(block);
}

/// Where the entries of an index block start, judged by its disguise; `None` for a leaf (kernel: `get_dx_countlimit`).
fn entries_start(block: &[u8]) -> Option<usize> {
    if block.len() < ROOT_ENTRIES + DX_ENTRY_SIZE + DX_TAIL_SIZE {
        return None;
    }
    let inode: u32 = get(block, 0);
    let rec_len = |at| usize::from(get::<u16>(block, at));
    if inode == 0 && rec_len(4) == block.len() {
        return Some(NODE_ENTRIES);
    }
    let root = rec_len(4) == 12
        && rec_len(16) == block.len() - 12
        && get::<u32>(block, 24) == 0
        && block[29] == 8;
    root.then_some(ROOT_ENTRIES)
}

/// Whether a block of an indexed directory is a root or node rather than a leaf. Only for readers that go through all
/// blocks; whoever comes from above knows.
pub fn is_index_block(block: &[u8]) -> bool {
    entries_start(block).is_some()
}

/// Checksum of an index block, and where it is stored.
fn checksum(seed: u32, block: &[u8]) -> Result<(u32, usize), Corrupt> {
    let what = "directory index block";
    let Some(start) = entries_start(block) else {
        let head: u64 = get::<u32>(block.get(4..8).unwrap_or(&[0; 4]), 0).into();
        return Err(Corrupt::field(
            what,
            "rec_len",
            4,
            "that of a root or node",
            head,
        ));
    };
    let limit = usize::from(get::<u16>(block, start));
    let count = usize::from(get::<u16>(block, start + 2));
    let tail = start + limit * DX_ENTRY_SIZE;
    if count > limit || tail + DX_TAIL_SIZE > block.len() {
        let expected = "room for a checksum behind the slots";
        return Err(Corrupt::field(what, "limit", start, expected, limit as u64));
    }
    let mut sum = crc32c_raw(seed, &block[..start + count * DX_ENTRY_SIZE]);
    sum = crc32c_raw(sum, &block[tail..tail + 4]);
    sum = crc32c_raw(sum, &[0; 4]);
    Ok((sum, tail + 4))
}

/// Compares the checksum of a root or node (metadata_csum only). `seed` is the directory's.
pub fn verify(layout: &DirLayout, seed: u32, block: &[u8]) -> Result<(), Corrupt> {
    if !layout.tail {
        return Ok(());
    }
    let (sum, at) = checksum(seed, block)?;
    Corrupt::checksum("directory index block", sum, get(block, at))
}

/// Stores the checksum of a root or node (metadata_csum only).
pub fn update(layout: &DirLayout, seed: u32, block: &mut [u8]) -> Result<(), Corrupt> {
    if layout.tail {
        let (sum, at) = checksum(seed, block)?;
        put(block, at, sum);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
