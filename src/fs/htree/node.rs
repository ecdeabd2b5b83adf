//! One block of the index, in place: where its entries are, and the checksum behind them. Never I/O.
//!
//! An index entry is `{hash: u32, block: u32}`, little-endian; the first one's hash is implied (the block's own lower
//! bound) and its four bytes hold `{limit: u16, count: u16}` instead. With metadata_csum the checksum stands in the last
//! four of the eight bytes at entry `limit`, and covers the entries in use only.

use crate::fs::nouns::htree as noun;

/// Where the entries begin in an index block that is not the root: behind one unused directory entry.
const NODE_BASE: usize = 8;
/// Where `dx_root_info` begins in the root: behind `.` and `..`.
pub(super) const ROOT_INFO: usize = 24;
/// Where the entries begin in the root: behind `.`, `..` and `dx_root_info`, 8 bytes.
pub(super) const ROOT_BASE: usize = 32;
/// Bytes of an index entry, and of the checksum tail.
const ENTRY_BYTES: usize = 8;
/// Only the low 28 bits of an entry's block count.
const BLOCK_MASK: u32 = 0x0fff_ffff;

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// Which kind of index block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Root,
    Node,
}

impl Kind {
    /// Byte offset of the entries.
    pub fn base(self) -> usize {
        match self {
            Kind::Root => ROOT_BASE,
            Kind::Node => NODE_BASE,
        }
    }

    /// How many entries fit.
    pub fn limit(self, block_size: usize, checksummed: bool) -> usize {
        (block_size - self.base()) / ENTRY_BYTES - usize::from(checksummed)
    }
}

/// The shape of a verified index block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub base: usize,
    pub count: usize,
    pub limit: usize,
}

impl Shape {
    /// Checks limits, the checksum and the order of the hashes.
    pub fn check(block: &[u8], kind: Kind, seed: Option<u32>) -> Result<Shape, String> {
        let base = kind.base();
        let expected = kind.limit(block.len(), seed.is_some());
        let limit = usize::from(u16_at(block, base));
        let count = usize::from(u16_at(block, base + 2));
        if limit != expected {
            return Err(format!("index limit {limit}, expected {expected}"));
        }
        if count == 0 || count > limit {
            return Err(format!("index count {count}, limit {limit}"));
        }
        let shape = Shape { base, count, limit };
        if let Some(seed) = seed {
            let found = u32_at(block, shape.at(limit) + 4);
            let expected = noun::checksum(seed, block, base, count, limit);
            if found != expected {
                return Err(format!(
                    "index checksum {found:#010x}, expected {expected:#010x}"
                ));
            }
        }
        for i in 2..count {
            if shape.hash(block, i) < shape.hash(block, i - 1) {
                return Err(format!("index entry {i} is out of order"));
            }
        }
        Ok(shape)
    }

    fn at(&self, i: usize) -> usize {
        self.base + i * ENTRY_BYTES
    }

    /// The lower bound of entry `i`, its low bit set when its names' hash began in the block before; 0 for the first.
    pub fn hash(&self, block: &[u8], i: usize) -> u32 {
        if i == 0 { 0 } else { u32_at(block, self.at(i)) }
    }

    /// The block of the directory that entry `i` points to.
    pub fn block(&self, block: &[u8], i: usize) -> u32 {
        u32_at(block, self.at(i) + 4) & BLOCK_MASK
    }

    /// The last entry whose lower bound is at most `hash`.
    pub fn search(&self, block: &[u8], hash: u32) -> usize {
        let (mut low, mut high) = (1, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.hash(block, middle) > hash {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low - 1
    }

    /// The bytes of entries `from..to`.
    pub fn entries(&self, block: &[u8], from: usize, to: usize) -> Vec<u8> {
        block[self.at(from)..self.at(to)].to_vec()
    }
}

/// Makes `block` an index block with these entries (their first hash is ignored), and its checksum.
pub(super) fn fill(block: &mut [u8], kind: Kind, seed: Option<u32>, entries: &[u8]) {
    let base = kind.base();
    let limit = kind.limit(block.len(), seed.is_some());
    let count = entries.len() / ENTRY_BYTES;
    if kind == Kind::Node {
        // One unused directory entry over the whole block, for who reads it as entries.
        let rec_len = block.len() as u16;
        block[..NODE_BASE].fill(0);
        block[4..6].copy_from_slice(&rec_len.to_le_bytes());
    }
    block[base..].fill(0);
    block[base..base + entries.len()].copy_from_slice(entries);
    block[base..base + 2].copy_from_slice(&(limit as u16).to_le_bytes());
    block[base + 2..base + 4].copy_from_slice(&(count as u16).to_le_bytes());
    seal(block, kind, seed);
}

/// One index entry's bytes.
pub(super) fn entry(hash: u32, block: u32) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..4].copy_from_slice(&hash.to_le_bytes());
    bytes[4..].copy_from_slice(&block.to_le_bytes());
    bytes
}

/// Inserts an entry behind entry `after`; the block is verified and not full.
pub(super) fn insert_after(
    block: &mut [u8],
    kind: Kind,
    seed: Option<u32>,
    shape: &Shape,
    after: usize,
    new: [u8; ENTRY_BYTES],
) {
    let at = shape.at(after + 1);
    block.copy_within(at..shape.at(shape.count), at + ENTRY_BYTES);
    block[at..at + ENTRY_BYTES].copy_from_slice(&new);
    let count = (shape.count + 1) as u16;
    block[shape.base + 2..shape.base + 4].copy_from_slice(&count.to_le_bytes());
    seal(block, kind, seed);
}

/// Writes the checksum of an index block whose limit and count are right.
pub(super) fn seal(block: &mut [u8], kind: Kind, seed: Option<u32>) {
    if let Some(seed) = seed {
        let base = kind.base();
        let limit = kind.limit(block.len(), true);
        let count = usize::from(u16_at(block, base + 2)).min(limit);
        let sum = noun::checksum(seed, block, base, count, limit);
        let at = base + limit * ENTRY_BYTES + 4;
        block[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }
}
