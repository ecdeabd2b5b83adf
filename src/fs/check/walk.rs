//! The way through an inode's map: an extent tree or the block map of ext2 and ext3. Owns the order of the walk and the rules of
//! a tree as a whole (depth, bounds of a subtree, checksums); claims nothing itself. Bounded on any bytes: the depth is, and
//! a visitor says whether to go into a block, which it refuses when the block was seen before.

use std::fmt;

use crate::ext4::extent::{self, Entries, ExtentHeader, ExtentNode};
use crate::ext4::indirect;
use crate::ext4::{Corrupt, Inode, Superblock};
use crate::fs::check::Reader;
use crate::units::{BlockNo, BlockRange, Ino};

/// Who is told of what a map holds.
pub(in crate::fs) trait Visitor {
    /// A block of the map itself; `level`: how many levels of such blocks are below it. `false`: don't go into it.
    fn node(&mut self, block: BlockNo, level: u32) -> bool;
    /// A run of the file.
    fn data(&mut self, at: u32, blocks: BlockRange, unwritten: bool);
    /// Something is wrong with the map, in `block` of the volume or in the inode.
    fn wrong(
        &mut self,
        block: Option<BlockNo>,
        expected: &dyn fmt::Display,
        found: &dyn fmt::Display,
    );
    /// The same, as a decoder says it.
    fn corrupt(&mut self, block: Option<BlockNo>, corrupt: &Corrupt);
    /// A block can not be read.
    fn unreadable(&mut self, block: BlockNo, error: &dyn fmt::Display);
}

/// Whose map is walked.
pub(in crate::fs) struct Walk<'a> {
    pub reader: &'a dyn Reader,
    pub sb: &'a Superblock,
    pub blocks_count: u64,
}

/// What bounds a node of an extent tree.
#[derive(Clone, Copy)]
struct Bounds {
    /// Depth that the node must have; the root's is its own.
    depth: Option<u16>,
    /// First file block that the node may map.
    start: u64,
    /// The file block behind the last it may map; `None` where nothing bounds it.
    end: Option<u64>,
    /// The file block behind the file's last.
    eof: u64,
    /// Whether written blocks may lie behind the end of the file: one that is being cut.
    beyond: bool,
}

impl Walk<'_> {
    /// Visits everything that an inode's map holds.
    pub fn visit(&self, ino: Ino, inode: &Inode, beyond: bool, visitor: &mut dyn Visitor) {
        let i_block = inode.i_block();
        if !inode.has_extents() {
            self.block_map(&i_block, visitor);
            return;
        }
        let size = u64::from(self.sb.block_size());
        let bytes = u64::from(inode.i_size_lo()) | u64::from(inode.i_size_high()) << 32;
        let eof = bytes.div_ceil(size);
        let bounds = Bounds {
            depth: None,
            start: 0,
            end: None,
            eof,
            beyond,
        };
        self.extents(inode.seed(self.sb, ino), None, &i_block, bounds, visitor);
    }

    fn read(&self, block: BlockNo, visitor: &mut dyn Visitor) -> Option<Vec<u8>> {
        let mut bytes = vec![0; self.sb.block_size() as usize];
        match self.reader.read(block, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(e) => {
                visitor.unreadable(block, &e);
                None
            }
        }
    }

    fn extents(
        &self,
        seed: u32,
        at: Option<BlockNo>,
        bytes: &[u8],
        bounds: Bounds,
        visitor: &mut dyn Visitor,
    ) {
        let header = match ExtentHeader::decode(bytes) {
            Ok(header) => header,
            Err(e) => return visitor.corrupt(at, &e),
        };
        let slots = bytes.len() / extent::EXTENT_ENTRY_SIZE - 1;
        // Two slots may be given up, not more: what the kernel and e2fsck agree on.
        if usize::from(header.eh_max) + 2 < slots {
            visitor.wrong(
                at,
                &format_args!("from {} to {slots} slots", slots - 2),
                &format_args!("a node of {} slots", header.eh_max),
            );
            return;
        }
        if let Some(depth) = bounds.depth
            && header.eh_depth != depth
        {
            let found = format_args!("a node of depth {}", header.eh_depth).to_string();
            return visitor.wrong(at, &format_args!("depth {depth}"), &found);
        }
        if at.is_some() {
            if header.eh_entries == 0 {
                visitor.wrong(at, &"entries below the root", &"an empty node");
            }
            if self.sb.has_metadata_csum()
                && let Err(e) = extent::verify_block(seed, bytes)
            {
                visitor.corrupt(at, &e);
            }
        }
        let node = match ExtentNode::decode(bytes, self.blocks_count) {
            Ok(node) => node,
            Err(e) => return visitor.corrupt(at, &e),
        };
        if at.is_some()
            && let Some(first) = node.first_block()
            && u64::from(first.0) != bounds.start
        {
            visitor.wrong(
                at,
                &format_args!("file block {}, as the index above says", bounds.start),
                &format_args!("a node that begins with file block {first}"),
            );
        }
        match &node.entries {
            Entries::Leaf(extents) => {
                for e in extents {
                    if let Some(end) = bounds.end
                        && e.end() > end
                        && !(e.unwritten && e.end() > bounds.eof)
                    {
                        visitor.wrong(
                            at,
                            &format_args!("an end at file block {end} at most"),
                            &format_args!("an extent to file block {}", e.end()),
                        );
                    }
                    visitor.data(e.ee_block.0, e.blocks(), e.unwritten);
                }
            }
            Entries::Index(indexes) => {
                for (i, index) in indexes.iter().enumerate() {
                    let start = u64::from(index.ei_block.0);
                    let end = match indexes.get(i + 1) {
                        Some(next) => Some(u64::from(next.ei_block.0)),
                        None if at.is_some() => bounds.end,
                        None => Some(bounds.eof).filter(|eof| *eof > start && !bounds.beyond),
                    };
                    if !visitor.node(index.leaf, u32::from(header.eh_depth) - 1) {
                        continue;
                    }
                    let Some(bytes) = self.read(index.leaf, visitor) else {
                        continue;
                    };
                    let below = Bounds {
                        depth: Some(header.eh_depth - 1),
                        start,
                        end,
                        ..bounds
                    };
                    self.extents(seed, Some(index.leaf), &bytes, below, visitor);
                }
            }
        }
    }

    fn block_map(&self, i_block: &[u8; 60], visitor: &mut dyn Visitor) {
        let per_block = u64::from(self.sb.block_size() / 4);
        let direct = u64::from(indirect::EXT4_NDIR_BLOCKS);
        self.pointers(None, i_block, 0..indirect::EXT4_NDIR_BLOCKS, 0, 0, visitor);
        let mut first = direct;
        let mut span = per_block;
        for level in 1..=3 {
            let slot = indirect::EXT4_NDIR_BLOCKS + level - 1;
            self.pointers(None, i_block, slot..slot + 1, level, first, visitor);
            first += span;
            span *= per_block;
        }
    }

    /// Pointers to data (`level` 0) or to blocks of pointers, of which the first maps file block `first`.
    fn pointers(
        &self,
        at: Option<BlockNo>,
        bytes: &[u8],
        slots: std::ops::Range<u32>,
        level: u32,
        first: u64,
        visitor: &mut dyn Visitor,
    ) {
        let per_block = self.sb.block_size() / 4;
        let span = u64::from(per_block).pow(level);
        for (n, slot) in slots.enumerate() {
            let block = match indirect::pointer(bytes, slot, self.blocks_count) {
                Ok(None) => continue,
                Ok(Some(block)) => block,
                Err(e) => {
                    visitor.corrupt(at, &e);
                    continue;
                }
            };
            if block.0 < u64::from(self.sb.s_first_data_block()) {
                visitor.wrong(at, &"a block of a group", &format_args!("block {block}"));
                continue;
            }
            let file_block = first + n as u64 * span;
            if level == 0 {
                let Ok(file_block) = u32::try_from(file_block) else {
                    visitor.wrong(at, &"file blocks below 2^32", &format_args!("{file_block}"));
                    return;
                };
                visitor.data(file_block, BlockRange::new(block, 1), false);
            } else if visitor.node(block, level - 1)
                && let Some(below) = self.read(block, visitor)
            {
                self.pointers(
                    Some(block),
                    &below,
                    0..per_block,
                    level - 1,
                    file_block,
                    visitor,
                );
            }
        }
    }
}
