//! Extent trees: which blocks of the volume hold which blocks of a file.
//!
//! Owns the tree that hangs off the 60 bytes `i_block` of an inode: looking up, inserting, converting and removing
//! ranges, with node splits, growth and shrinking. It never writes the inode (the caller stores the 60 bytes, `i_blocks` and
//! the inode's checksum) and never frees or reads data blocks: removed data is handed back. Generic over
//! [`Blocks`]/[`BlocksMut`], so it knows nothing of caches and transactions.
//!
//! Invariants: entries are sorted and do not overlap; an index entry's key is the first key below it; no node but the root is
//! empty; every node read was checked (magic, depth, counts, order, bounds, checksum) before use, and depth falls by one per
//! level, so a walk ends on any input. An edit that fails for want of space has changed nothing that it has not reported.
//!
//! Format: kernel `Documentation/filesystems/ext4/ifork.rst`.

mod edit;
#[cfg(test)]
mod foreign;
mod node;
mod remove;
#[cfg(test)]
mod tests;

use crate::ext4::checksum::inode_seed;
use crate::ext4::{self, Superblock};
use crate::fs::FsError;
use crate::fs::blocks::Blocks;
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange, FileBlock, Ino};

pub use edit::{convert, insert};
pub use node::{Extent, MAX_DEPTH, MAX_UNWRITTEN, MAX_WRITTEN};
pub use remove::{Removed, remove};

/// Bytes of `i_block`.
pub const ROOT_BYTES: usize = 60;
/// One past the last block that a file can have (`EXT_MAX_BLOCKS`).
pub const MAX_FILE_BLOCKS: u64 = 0xffff_ffff;

/// Whose tree it is; both numbers go into the checksum of every node block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The inode's number.
    pub ino: Ino,
    /// The inode's `i_generation`.
    pub generation: u32,
}

impl Owner {
    /// Seed of the node blocks' checksums.
    fn seed(&self, sb: &Superblock) -> u32 {
        inode_seed(sb.csum_seed(), self.ino, self.generation)
    }

    fn corrupt(&self, block: Option<BlockNo>, detail: String) -> FsError {
        FsError::Corrupt {
            what: "extent tree",
            ino: Some(self.ino),
            block,
            detail,
        }
    }
}

/// Where a file block is. Lengths are in blocks, at least 1 and at most what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing is allocated for at least this many blocks.
    Hole(u32),
    /// Allocated, adjacent in the volume.
    Mapped {
        /// The volume block of the file block asked for.
        block: BlockNo,
        /// Number of blocks.
        len: u32,
        /// Reads as zeros; the bytes on disk mean nothing.
        unwritten: bool,
    },
}

/// Metadata blocks that an edit took and gave back. The caller keeps `i_blocks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Index and leaf blocks allocated.
    pub metadata_allocated: u32,
    /// Index and leaf blocks freed.
    pub metadata_freed: u32,
}

/// One node on the way from the root to a leaf.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The node's block; `None` is the inode.
    block: Option<BlockNo>,
    /// Index node: the entry that was followed. Leaf: how many extents begin at or before the block looked for.
    at: usize,
    /// Entries it holds and has room for.
    entries: usize,
    max: usize,
    /// Its parent's key for it (0 for the root), and where the next node begins.
    lower: u64,
    upper: u64,
}

/// The way to a leaf, root first, and the leaf.
struct Path {
    steps: Vec<Step>,
    leaf: Image,
}

impl Path {
    /// The leaf's step.
    fn last(&self) -> Step {
        *self.steps.last().expect("a path has its root")
    }
}

/// Makes `root` an empty tree.
pub fn init(root: &mut [u8; ROOT_BYTES]) {
    node::init(root, 0, node::ROOT_MAX);
}

/// Levels below the root; 0 when every extent is in the inode. Only a hint for a tree that was not checked.
pub fn depth(root: &[u8; ROOT_BYTES]) -> usize {
    node::depth(root).min(MAX_DEPTH)
}

/// Most metadata blocks that one `insert` or `convert` (of a range within one extent) changes: nodes, and the bitmaps,
/// descriptors and superblock behind the nodes' allocation. The data's own allocation is not in it.
pub fn insert_credits(root: &[u8; ROOT_BYTES]) -> usize {
    let depth = depth(root);
    let new = depth + 1;
    depth + new + 2 * new + 1
}

/// Looks up `at`; the answer covers at most `max_len` blocks. A hole may go on behind the length given.
///
/// # Errors
/// [`FsError::Corrupt`] when a node on the way is not what it should be, or the blocks found are not a file's.
pub fn map<B: Blocks + ?Sized>(
    blocks: &B,
    owner: Owner,
    root: &[u8; ROOT_BYTES],
    at: FileBlock,
    max_len: u32,
) -> Result<Mapping, FsError> {
    let path = descend(blocks, owner, root, at.0)?;
    let step = path.last();
    let from = u64::from(at.0);
    if step.at > 0 {
        let e = node::extent(&path.leaf, step.at - 1);
        if let Some(part) = e.part(from, from + u64::from(max_len.max(1)))
            && part.file == at
        {
            check_data(blocks, owner, &part)?;
            return Ok(Mapping::Mapped {
                block: part.range.start,
                len: part.range.len as u32,
                unwritten: part.unwritten,
            });
        }
    }
    let next = if step.at < step.entries {
        u64::from(node::key(&path.leaf, step.at))
    } else {
        step.upper
    };
    let len = next
        .saturating_sub(from)
        .clamp(1, u64::from(max_len.max(1)));
    Ok(Mapping::Hole(len as u32))
}

/// Calls `each` for every extent that shares a block with file blocks `from..to`, in order and whole, until it says `false`.
///
/// # Errors
/// As [`map`], and whatever `each` returns.
pub fn for_each<B: Blocks + ?Sized>(
    blocks: &B,
    owner: Owner,
    root: &[u8; ROOT_BYTES],
    from: FileBlock,
    to: u64,
    each: &mut dyn FnMut(Extent) -> Result<bool, FsError>,
) -> Result<(), FsError> {
    let mut next = u64::from(from.0);
    while next < to.min(MAX_FILE_BLOCKS) {
        let path = descend(blocks, owner, root, next as u32)?;
        let step = path.last();
        for i in step.at.saturating_sub(1)..step.entries {
            let e = node::extent(&path.leaf, i);
            if u64::from(e.file.0) >= to {
                return Ok(());
            }
            if e.end() <= next {
                continue;
            }
            check_data(blocks, owner, &e)?;
            if !each(e)? {
                return Ok(());
            }
        }
        // `upper` is above `next`: the leaf was chosen for a key at or before it, the following one begins later.
        next = step.upper.max(next + 1);
    }
    Ok(())
}

/// Every index and leaf block of the tree, parents before children.
///
/// # Errors
/// As [`map`]; also when a block occurs twice.
pub fn metadata_blocks<B: Blocks + ?Sized>(
    blocks: &B,
    owner: Owner,
    root: &[u8; ROOT_BYTES],
) -> Result<Vec<BlockNo>, FsError> {
    let mut found = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut next = 0u64;
    while next < MAX_FILE_BLOCKS {
        let path = descend(blocks, owner, root, next as u32)?;
        for step in &path.steps {
            if let Some(block) = step.block
                // A node is new when the walk enters it at its first key.
                && (next == 0 || step.lower == next)
            {
                if !seen.insert(block) {
                    return Err(owner.corrupt(Some(block), "a node with two parents".into()));
                }
                found.push(block);
            }
        }
        next = path.last().upper.max(next + 1);
    }
    Ok(found)
}

/// The way to the leaf that holds, or would hold, `target`.
fn descend<B: Blocks + ?Sized>(
    blocks: &B,
    owner: Owner,
    root: &[u8; ROOT_BYTES],
    target: u32,
) -> Result<Path, FsError> {
    let mut steps = Vec::with_capacity(MAX_DEPTH + 1);
    let (mut lower, mut upper) = (0, MAX_FILE_BLOCKS);
    let mut expect_depth = None;
    let mut block: Option<BlockNo> = None;
    // The root has no Arc of its own; a leaf in the inode is copied, 60 bytes.
    let mut image: Option<Image> = None;
    loop {
        let bytes: &[u8] = match &image {
            Some(image) => image,
            None => root,
        };
        check_node(blocks, owner, bytes, block, expect_depth, lower, upper)?;
        let (entries, max) = (node::entries(bytes), node::max(bytes));
        let (depth, position) = (node::depth(bytes), node::position(bytes, target));
        let mut step = Step {
            block,
            at: position,
            entries,
            max,
            lower,
            upper,
        };
        if depth == 0 {
            steps.push(step);
            let leaf = image.unwrap_or_else(|| Image::from(root.as_slice()));
            return Ok(Path { steps, leaf });
        }
        step.at = position.saturating_sub(1);
        steps.push(step);
        lower = u64::from(node::key(bytes, step.at));
        if step.at + 1 < entries {
            upper = u64::from(node::key(bytes, step.at + 1));
        }
        let child = node::child(bytes, step.at);
        if blocks.is_system(BlockRange::new(child, 1)) {
            return Err(owner.corrupt(block, format!("node {child} lies in the volume's metadata")));
        }
        block = Some(child);
        expect_depth = Some(depth - 1);
        image = Some(blocks.get(child)?);
    }
}

fn check_node<B: Blocks + ?Sized>(
    blocks: &B,
    owner: Owner,
    bytes: &[u8],
    block: Option<BlockNo>,
    depth: Option<usize>,
    lower: u64,
    upper: u64,
) -> Result<(), FsError> {
    let sb = blocks.sb();
    let room = match block {
        None => node::ROOT_MAX,
        Some(_) => usize::from(ext4::extent::block_max(sb.block_size())),
    };
    let expect = node::Expect {
        depth,
        room,
        lower,
        upper,
        first_data_block: u64::from(sb.s_first_data_block()),
        blocks_count: sb.s_blocks_count(),
    };
    node::check(bytes, &expect).map_err(|detail| owner.corrupt(block, detail))?;
    if block.is_some() && sb.has_metadata_csum() {
        ext4::extent::verify_block(owner.seed(sb), bytes)
            .map_err(|e| owner.corrupt(block, e.to_string()))?;
    }
    Ok(())
}

fn check_data<B: Blocks + ?Sized>(blocks: &B, owner: Owner, e: &Extent) -> Result<(), FsError> {
    if blocks.is_system(e.range) {
        let detail = format!("file block {} lies in the volume's metadata", e.file);
        return Err(owner.corrupt(Some(e.range.start), detail));
    }
    Ok(())
}
