//! Numbers with units. Owns the newtypes that keep a volume block from being taken for a file block, a
//! transaction id for a block number, an index for a length. Never does I/O and never touches bytes on disk.

pub mod planted;

use std::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $show:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $show, self.0)
            }
        }
    };
}

unit!(
    /// A block of the volume's address space (the parts, concatenated), counted in ext4 blocks from 0.
    BlockNo(u64), "{}"
);
unit!(
    /// A block of one file, counted from the file's start (ext4 calls it the logical block).
    FileBlock(u32), "{}"
);
unit!(
    /// A block of the journal file; 0 is the jbd2 superblock.
    LogBlock(u32), "{}"
);
unit!(
    /// An ext4 inode number, from 1.
    Ino(u32), "{}"
);
unit!(
    /// An ext4 block group, from 0.
    GroupNo(u32), "{}"
);
unit!(
    /// A transaction: 64 bits, the low 32 being jbd2's `tid`. Gaps are legal; 0 is before every transaction.
    Txid(u64), "{}"
);

impl Txid {
    /// jbd2's 32-bit `tid` of this transaction.
    pub fn tid(self) -> u32 {
        self.0 as u32
    }

    /// The transaction id with the low 32 bits `tid` that is nearest to `self` (at most 2^31 away).
    pub fn nearest(self, tid: u32) -> Txid {
        let delta = tid.wrapping_sub(self.tid()) as i32;
        Txid(self.0.wrapping_add_signed(i64::from(delta)))
    }

    /// The id after this one.
    pub fn next(self) -> Txid {
        Txid(self.0 + 1)
    }
}

/// Random id of one read-write opening of a volume by one master.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u128);

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// `len` blocks of the volume from `start` on. Never empty where a docstring does not say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: BlockNo,
    /// Number of blocks.
    pub len: u64,
}

impl BlockRange {
    /// The range of `len` blocks from `start` on.
    pub fn new(start: BlockNo, len: u64) -> BlockRange {
        BlockRange { start, len }
    }

    /// The block after the last one.
    pub fn end(&self) -> BlockNo {
        BlockNo(self.start.0 + self.len)
    }

    /// Whether `block` lies in the range.
    pub fn contains(&self, block: BlockNo) -> bool {
        self.start <= block && block < self.end()
    }

    /// Whether the two ranges share a block.
    pub fn overlaps(&self, other: &BlockRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Every block of the range, in order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockNo> + use<> {
        (self.start.0..self.end().0).map(BlockNo)
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end())
    }
}

/// Joins sorted or unsorted ranges into the fewest sorted ranges that cover the same blocks.
pub fn coalesce(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.retain(|r| r.len > 0);
    ranges.sort_unstable();
    let mut joined: Vec<BlockRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end() => {
                let end = last.end().max(range.end());
                last.len = end.0 - last.start.0;
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tid_that_wrapped_belongs_to_the_next_epoch() {
        let before = Txid(0x1_ffff_fffe);
        assert_eq!(before.nearest(1), Txid(0x2_0000_0001));
        assert_eq!(before.nearest(0xffff_fff0), Txid(0x1_ffff_fff0));
    }

    #[test]
    fn coalesce_joins_touching_and_overlapping_ranges() {
        let r = |s, l| BlockRange::new(BlockNo(s), l);
        assert_eq!(
            coalesce(vec![r(10, 5), r(1, 2), r(3, 1), r(12, 10), r(40, 0)]),
            vec![r(1, 3), r(10, 12)]
        );
    }
}
