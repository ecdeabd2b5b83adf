//! One node of an extent tree as bytes: the 60-byte root in the inode or a block. Little-endian. Owns reading, checking
//! and splicing of the 12-byte entries in place ([`crate::ext4::ExtentNode`] decodes whole nodes into vectors, too dear for a
//! look-up per request). Never does I/O, never trusts a count that it has not checked.
//!
//! ```text
//! 0   u16 eh_magic 0xF30A        every entry, 12 bytes each, sorted by the file block:
//! 2   u16 eh_entries               extent (depth 0): u32 ee_block, u16 ee_len, u16 ee_start_hi, u32 ee_start_lo
//! 4   u16 eh_max                   index  (depth>0): u32 ei_block, u32 ei_leaf_lo, u16 ei_leaf_hi, u16 unused
//! 6   u16 eh_depth               behind the last possible entry, in blocks only:
//! 8   u32 eh_generation            u32 et_checksum (metadata_csum)
//! ```

use crate::ext4;
use crate::units::{BlockNo, BlockRange, FileBlock};

const MAGIC: u16 = ext4::extent::EXT4_EXT_MAGIC;
/// Bytes of a header and of an entry.
const ENTRY_BYTES: usize = ext4::extent::EXTENT_ENTRY_SIZE;
/// Entries that fit into the inode.
pub(super) const ROOT_MAX: usize = ext4::extent::ROOT_MAX as usize;
/// Deepest tree ext4 allows (levels below the root).
pub const MAX_DEPTH: usize = ext4::extent::EXT4_MAX_EXTENT_DEPTH as usize;
/// Longest written extent, in blocks; `ee_len` says so with its top bit alone.
pub const MAX_WRITTEN: u32 = ext4::extent::EXT_INIT_MAX_LEN as u32;
/// Longest unwritten extent, in blocks: `ee_len` is the length + 32768.
pub const MAX_UNWRITTEN: u32 = ext4::extent::EXT_UNWRITTEN_MAX_LEN as u32;

/// The raw bytes of one entry.
pub(super) type Entry = [u8; ENTRY_BYTES];

/// A run of file blocks that lie in a run of volume blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block of the file.
    pub file: FileBlock,
    /// Where the blocks are.
    pub range: BlockRange,
    /// Allocated but reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The file block after the last one (up to 2^32).
    pub fn end(&self) -> u64 {
        u64::from(self.file.0) + self.range.len
    }

    /// The longest extent of this kind, in blocks.
    pub fn limit(unwritten: bool) -> u32 {
        if unwritten {
            MAX_UNWRITTEN
        } else {
            MAX_WRITTEN
        }
    }

    /// The part of the extent from `from` to `to` (file blocks, both inside); `None` when empty.
    pub(super) fn part(&self, from: u64, to: u64) -> Option<Extent> {
        let first = u64::from(self.file.0);
        let (from, to) = (from.max(first), to.min(self.end()));
        (from < to).then(|| Extent {
            file: FileBlock(from as u32),
            range: BlockRange::new(BlockNo(self.range.start.0 + (from - first)), to - from),
            unwritten: self.unwritten,
        })
    }

    /// The two as one, where ext4 allows that.
    pub(super) fn joined(&self, next: &Extent) -> Option<Extent> {
        let len = self.range.len + next.range.len;
        let joins = self.unwritten == next.unwritten
            && self.end() == u64::from(next.file.0)
            && self.range.end() == next.range.start
            && len <= u64::from(Extent::limit(self.unwritten));
        joins.then(|| Extent {
            range: BlockRange::new(self.range.start, len),
            ..*self
        })
    }

    pub(super) fn encode(&self) -> Entry {
        let mut e = [0; ENTRY_BYTES];
        let len = self.range.len as u16;
        let ee_len = if self.unwritten { len | 0x8000 } else { len };
        let start = self.range.start.0;
        e[0..4].copy_from_slice(&self.file.0.to_le_bytes());
        e[4..6].copy_from_slice(&ee_len.to_le_bytes());
        e[6..8].copy_from_slice(&((start >> 32) as u16).to_le_bytes());
        e[8..12].copy_from_slice(&(start as u32).to_le_bytes());
        e
    }

    fn decode(e: &[u8]) -> Extent {
        let ee_len = u16_at(e, 4);
        let unwritten = ee_len > 0x8000;
        let len = if unwritten { ee_len - 0x8000 } else { ee_len };
        let start = u64::from(u16_at(e, 6)) << 32 | u64::from(u32_at(e, 8));
        Extent {
            file: FileBlock(u32_at(e, 0)),
            range: BlockRange::new(BlockNo(start), u64::from(len)),
            unwritten,
        }
    }
}

/// An index entry: everything from `key` to the next entry's key is below `child`.
pub(super) fn encode_index(key: u32, child: BlockNo) -> Entry {
    let mut e = [0; ENTRY_BYTES];
    e[0..4].copy_from_slice(&key.to_le_bytes());
    e[4..8].copy_from_slice(&(child.0 as u32).to_le_bytes());
    e[8..10].copy_from_slice(&((child.0 >> 32) as u16).to_le_bytes());
    e
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn at(i: usize) -> usize {
    ENTRY_BYTES * (i + 1)
}

/// Entries that the node has room for, as it says itself.
pub(super) fn max(node: &[u8]) -> usize {
    usize::from(u16_at(node, 4))
}

/// Number of entries; only of a checked node.
pub(super) fn entries(node: &[u8]) -> usize {
    usize::from(u16_at(node, 2))
}

/// Levels below this node.
pub(super) fn depth(node: &[u8]) -> usize {
    usize::from(u16_at(node, 6))
}

/// First file block of entry `i`.
pub(super) fn key(node: &[u8], i: usize) -> u32 {
    u32_at(node, at(i))
}

/// Extent `i` of a leaf.
pub(super) fn extent(node: &[u8], i: usize) -> Extent {
    Extent::decode(&node[at(i)..at(i + 1)])
}

/// The block that entry `i` of an index node points to.
pub(super) fn child(node: &[u8], i: usize) -> BlockNo {
    let e = at(i);
    BlockNo(u64::from(u16_at(node, e + 8)) << 32 | u64::from(u32_at(node, e + 4)))
}

/// How many entries begin at or before `block`.
pub(super) fn position(node: &[u8], block: u32) -> usize {
    let (mut lo, mut hi) = (0, entries(node));
    while lo < hi {
        let mid = lo + (hi - lo) / 2;
        if key(node, mid) <= block {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    lo
}

/// Makes the bytes an empty node.
pub(super) fn init(node: &mut [u8], depth: usize, max: usize) {
    node[..at(max)].fill(0);
    node[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    node[4..6].copy_from_slice(&(max as u16).to_le_bytes());
    node[6..8].copy_from_slice(&(depth as u16).to_le_bytes());
}

/// Replaces entries `lo..hi` by `new`; the caller has made sure that they fit.
pub(super) fn splice(node: &mut [u8], lo: usize, hi: usize, new: &[Entry]) {
    let n = entries(node);
    let total = n - (hi - lo) + new.len();
    node.copy_within(at(hi)..at(n), at(lo + new.len()));
    for (i, e) in new.iter().enumerate() {
        node[at(lo + i)..at(lo + i + 1)].copy_from_slice(e);
    }
    if total < n {
        node[at(total)..at(n)].fill(0);
    }
    node[2..4].copy_from_slice(&(total as u16).to_le_bytes());
}

/// Changes the first file block of entry `i`.
pub(super) fn set_key(node: &mut [u8], i: usize, key: u32) {
    node[at(i)..at(i) + 4].copy_from_slice(&key.to_le_bytes());
}

/// The raw entries, in order.
pub(super) fn all(node: &[u8]) -> Vec<Entry> {
    (0..entries(node))
        .map(|i| {
            let mut e = [0; ENTRY_BYTES];
            e.copy_from_slice(&node[at(i)..at(i + 1)]);
            e
        })
        .collect()
}

/// What a node must agree with.
pub(super) struct Expect {
    /// Levels below; `None` for a root, which says so itself.
    pub depth: Option<usize>,
    /// Most entries that the space has room for.
    pub room: usize,
    /// No key is below this one.
    pub lower: u64,
    /// Everything ends at or before this file block.
    pub upper: u64,
    /// The volume's data: first and one past the last block.
    pub first_data_block: u64,
    /// Number of blocks of the volume.
    pub blocks_count: u64,
}

/// Checks magic, depth, counts, order, overlaps and block numbers. After this every accessor above is in bounds.
pub(super) fn check(node: &[u8], expect: &Expect) -> Result<(), String> {
    let magic = u16_at(node, 0);
    if magic != MAGIC {
        return Err(format!("eh_magic is {magic:#06x}, not {MAGIC:#06x}"));
    }
    let (n, max, depth) = (entries(node), max(node), depth(node));
    match expect.depth {
        Some(d) if d != depth => return Err(format!("eh_depth is {depth}, expected {d}")),
        None if depth > MAX_DEPTH => {
            return Err(format!("eh_depth is {depth}, more than {MAX_DEPTH}"));
        }
        _ => {}
    }
    if max > expect.room || max == 0 || n > max {
        return Err(format!(
            "eh_entries {n}, eh_max {max}, room for {}",
            expect.room
        ));
    }
    if depth > 0 && n == 0 {
        return Err("an index node without entries".into());
    }
    let in_volume = |start: u64, len: u64| {
        start > expect.first_data_block
            && start
                .checked_add(len)
                .is_some_and(|e| e <= expect.blocks_count)
    };
    let mut least = expect.lower;
    for i in 0..n {
        let first = u64::from(key(node, i));
        if first < least {
            return Err(format!(
                "entry {i} begins at file block {first}, before {least}"
            ));
        }
        if depth > 0 {
            let child = child(node, i);
            if first >= expect.upper {
                return Err(format!(
                    "index {i} begins at {first}, behind its parent's end"
                ));
            }
            if !in_volume(child.0, 1) {
                return Err(format!(
                    "index {i} points to block {child}, outside the volume"
                ));
            }
            least = first + 1;
        } else {
            let e = extent(node, i);
            if e.range.len == 0 {
                return Err(format!("extent {i} is empty"));
            }
            if e.end() > expect.upper {
                return Err(format!(
                    "extent {i} ends at {}, overlapping the next",
                    e.end()
                ));
            }
            if !in_volume(e.range.start.0, e.range.len) {
                return Err(format!(
                    "extent {i} lies at {}, outside the volume",
                    e.range
                ));
            }
            least = e.end();
        }
    }
    Ok(())
}
