//! Changing a tree: one primitive, `Tree::replace`, puts new entries in the place of old ones of a node, splitting nodes and
//! growing the tree as needed; inserting, converting and removing are windows of a leaf rewritten through it. All blocks that a
//! replacement can need are allocated before anything changes.

use super::node::{self, Entry, Extent};
use super::{Change, MAX_FILE_BLOCKS, Owner, Path, ROOT_BYTES, Step, descend};
use crate::ext4::Corrupt;
use crate::ext4::extent::{block_max, update_block};
use crate::fs::FsError;
use crate::fs::blocks::BlocksMut;
use crate::units::{BlockNo, BlockRange, FileBlock};

/// Maps the file blocks from `at` on to `range`. Merges with its neighbours where ext4 can say it in one extent.
///
/// # Errors
/// [`FsError::Corrupt`] when a node is damaged or part of the range is mapped already; [`FsError::NoSpace`] when a node could
/// not be allocated; `EFBIG` beyond the largest file or the deepest tree. Nothing is changed then if the range is at most
/// 32767 blocks long (longer ranges are inserted piece by piece, the pieces before the failing one stay).
pub fn insert<B: BlocksMut + ?Sized>(
    blocks: &mut B,
    owner: Owner,
    root: &mut [u8; ROOT_BYTES],
    at: FileBlock,
    range: BlockRange,
    unwritten: bool,
) -> Result<Change, FsError> {
    if u64::from(at.0) + range.len > MAX_FILE_BLOCKS {
        return Err(FsError::Refused(libc::EFBIG));
    }
    let mut tree = Tree::new(blocks, owner, root);
    let mut done = 0;
    while done < range.len {
        let len = (range.len - done).min(u64::from(Extent::limit(unwritten)));
        tree.insert(Extent {
            file: FileBlock(at.0 + done as u32),
            range: BlockRange::new(BlockNo(range.start.0 + done), len),
            unwritten,
        })?;
        done += len;
    }
    Ok(tree.change)
}

/// Marks what is unwritten among the `len` file blocks from `at` on as written; holes and written extents stay as they are.
///
/// # Errors
/// As [`insert`]; extents before the failing one stay converted.
pub fn convert<B: BlocksMut + ?Sized>(
    blocks: &mut B,
    owner: Owner,
    root: &mut [u8; ROOT_BYTES],
    at: FileBlock,
    len: u32,
) -> Result<Change, FsError> {
    let mut tree = Tree::new(blocks, owner, root);
    let end = (u64::from(at.0) + u64::from(len)).min(MAX_FILE_BLOCKS);
    let mut from = u64::from(at.0);
    while from < end {
        from = tree.convert(from, end)?;
    }
    Ok(tree.change)
}

/// A tree being changed.
pub(super) struct Tree<'a, B: BlocksMut + ?Sized> {
    pub(super) blocks: &'a mut B,
    pub(super) owner: Owner,
    pub(super) root: &'a mut [u8; ROOT_BYTES],
    pub(super) change: Change,
    /// Node blocks changed or freed so far.
    pub(super) touched: std::collections::BTreeSet<BlockNo>,
    /// Blocks allocated for nodes and not used yet.
    pool: Vec<BlockNo>,
}

impl<'a, B: BlocksMut + ?Sized> Tree<'a, B> {
    pub(super) fn new(
        blocks: &'a mut B,
        owner: Owner,
        root: &'a mut [u8; ROOT_BYTES],
    ) -> Tree<'a, B> {
        Tree {
            blocks,
            owner,
            root,
            change: Change::default(),
            touched: std::collections::BTreeSet::new(),
            pool: Vec::new(),
        }
    }

    pub(super) fn descend(&self, target: u32) -> Result<Path, FsError> {
        descend(&*self.blocks, self.owner, self.root, target)
    }

    fn insert(&mut self, new: Extent) -> Result<(), FsError> {
        let path = self.descend(new.file.0)?;
        let step = path.last();
        let mut end_of_hole = step.upper;
        let (mut lo, mut hi) = (step.at, step.at);
        let mut window = vec![new];
        if step.at < step.entries {
            let right = node::extent(&path.leaf, step.at);
            end_of_hole = u64::from(right.file.0);
            if let Some(joined) = new.joined(&right) {
                window[0] = joined;
                hi += 1;
            }
        }
        let mut begin_of_hole = 0;
        if step.at > 0 {
            let left = node::extent(&path.leaf, step.at - 1);
            begin_of_hole = left.end();
            if let Some(joined) = left.joined(&window[0]) {
                window[0] = joined;
                lo -= 1;
            } else if let Some(joined) = left.joined(&new) {
                // All three together are too long for one extent.
                window = vec![joined];
                (lo, hi) = (step.at - 1, step.at);
            }
        }
        if new.end() > end_of_hole || begin_of_hole > u64::from(new.file.0) {
            let detail = format!("file block {} is mapped already", new.file);
            return Err(self.owner.corrupt(step.block, detail));
        }
        self.rewrite(path, lo, hi, &window)
    }

    /// Converts within the extent at or after `from`; returns where to go on.
    fn convert(&mut self, from: u64, end: u64) -> Result<u64, FsError> {
        let path = self.descend(from as u32)?;
        let step = path.last();
        // The extent over `from`, or the first one behind it in this leaf.
        let mut i = step.at.saturating_sub(1);
        while i < step.entries {
            let e = node::extent(&path.leaf, i);
            if u64::from(e.file.0) >= end {
                return Ok(end);
            }
            if e.end() > from && e.unwritten {
                break;
            }
            i += 1;
        }
        if i >= step.entries {
            return Ok(step.upper.max(from + 1));
        }
        let e = node::extent(&path.leaf, i);
        let next = e.end().min(end);
        let written = e.part(from, end).map(|part| Extent {
            unwritten: false,
            ..part
        });
        let pieces = [
            (i > 0).then(|| node::extent(&path.leaf, i - 1)),
            e.part(0, from),
            written,
            e.part(end, e.end()),
            (i + 1 < step.entries).then(|| node::extent(&path.leaf, i + 1)),
        ];
        let lo = i - usize::from(pieces[0].is_some());
        let hi = i + 1 + usize::from(pieces[4].is_some());
        let mut window: Vec<Extent> = Vec::with_capacity(5);
        for piece in pieces.into_iter().flatten() {
            match window.last().and_then(|last| last.joined(&piece)) {
                Some(joined) => *window.last_mut().expect("just seen") = joined,
                None => window.push(piece),
            }
        }
        self.rewrite(path, lo, hi, &window)?;
        Ok(next)
    }

    /// Puts `window` in the place of extents `lo..hi` of the path's leaf.
    pub(super) fn rewrite(
        &mut self,
        path: Path,
        lo: usize,
        hi: usize,
        window: &[Extent],
    ) -> Result<(), FsError> {
        let Path { mut steps, leaf } = path;
        // A second holder of the image would make `modify` copy the block.
        drop(leaf);
        self.reserve(&steps, lo, hi, window.len())?;
        let entries: Vec<Entry> = window.iter().map(Extent::encode).collect();
        let level = steps.len() - 1;
        let done = self.replace(&mut steps, level, lo, hi, &entries);
        // Empty unless the replacement failed half-way.
        while let Some(block) = self.pool.pop() {
            self.blocks.free(BlockRange::new(block, 1))?;
        }
        done
    }

    /// Allocates what `replace` will need, or nothing.
    fn reserve(&mut self, steps: &[Step], lo: usize, hi: usize, new: usize) -> Result<(), FsError> {
        let mut need = 0;
        let mut growth = (new + lo).saturating_sub(hi);
        for (level, step) in steps.iter().enumerate().rev() {
            if step.entries + growth <= step.max {
                break;
            }
            if level == 0 && steps.len() > node::MAX_DEPTH {
                return Err(FsError::Refused(libc::EFBIG));
            }
            need += 1;
            growth = 1;
        }
        let goal = match steps.iter().rev().find_map(|s| s.block) {
            Some(block) => block,
            None => self.home(),
        };
        for _ in 0..need {
            match self.blocks.alloc_node(goal) {
                Ok(range) => self.pool.push(range.start),
                Err(error) => {
                    while let Some(block) = self.pool.pop() {
                        self.blocks.free(BlockRange::new(block, 1))?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// First block of the inode's group: where its first node should be.
    fn home(&self) -> BlockNo {
        let sb = self.blocks.sb();
        let group = u64::from(self.owner.ino.0.saturating_sub(1))
            / u64::from(sb.s_inodes_per_group().max(1));
        BlockNo(u64::from(sb.s_first_data_block()) + group * u64::from(sb.s_blocks_per_group()))
    }

    fn take(&mut self) -> Result<BlockNo, FsError> {
        let block = self.pool.pop();
        block.ok_or_else(|| {
            let detail = "more nodes are full than were counted".into();
            self.owner.corrupt(None, detail)
        })
    }

    /// Changes a node and its checksum.
    pub(super) fn edit<R>(
        &mut self,
        block: Option<BlockNo>,
        change: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, FsError> {
        let Some(block) = block else {
            return Ok(change(self.root));
        };
        self.touched.insert(block);
        let seed = self.seed();
        let bytes = self.blocks.modify(block)?;
        let result = change(bytes);
        match seal(seed, bytes) {
            Ok(()) => Ok(result),
            Err(e) => Err(self.owner.corrupt(Some(block), e.to_string())),
        }
    }

    /// Makes a fresh block a node with these entries.
    fn create(&mut self, block: BlockNo, depth: usize, entries: &[Entry]) -> Result<(), FsError> {
        self.touched.insert(block);
        let seed = self.seed();
        let max = self.block_max();
        let bytes = self.blocks.create(block)?;
        node::init(bytes, depth, max);
        node::splice(bytes, 0, 0, entries);
        seal(seed, bytes).map_err(|e| self.owner.corrupt(Some(block), e.to_string()))?;
        self.change.metadata_allocated += 1;
        Ok(())
    }

    /// Seed of the node blocks' checksums, where the volume has checksums.
    fn seed(&self) -> Option<u32> {
        let sb = self.blocks.sb();
        sb.has_metadata_csum().then(|| self.owner.seed(sb))
    }

    fn block_max(&self) -> usize {
        usize::from(block_max(self.blocks.sb().block_size()))
    }

    /// Replaces entries `lo..hi` of the node at `level` by `new` (at least as many as make it non-empty, or none).
    fn replace(
        &mut self,
        steps: &mut Vec<Step>,
        level: usize,
        lo: usize,
        hi: usize,
        new: &[Entry],
    ) -> Result<(), FsError> {
        let step = steps[level];
        let total = step.entries - (hi - lo) + new.len();
        if total == 0 {
            return self.drop_node(steps, level);
        }
        if total > step.max {
            return match level {
                0 => self.grow(steps, lo, hi, new),
                _ => self.split(steps, level, lo, hi, new),
            };
        }
        let first = self.edit(step.block, |bytes| {
            node::splice(bytes, lo, hi, new);
            node::key(bytes, 0)
        })?;
        if lo == 0 {
            self.lead(steps, level, first)?;
        }
        Ok(())
    }

    /// A node lost its last entry: it goes, and so does its parent's pointer to it.
    fn drop_node(&mut self, steps: &mut Vec<Step>, level: usize) -> Result<(), FsError> {
        let Some(block) = steps[level].block else {
            super::init(self.root);
            return Ok(());
        };
        self.touched.insert(block);
        self.blocks.free(BlockRange::new(block, 1))?;
        self.change.metadata_freed += 1;
        let at = steps[level - 1].at;
        self.replace(steps, level - 1, at, at + 1, &[])
    }

    /// The node at `level` now begins with `key`: so must every index entry above that leads to it.
    fn lead(&mut self, steps: &[Step], level: usize, key: u32) -> Result<(), FsError> {
        for (i, step) in steps[..level].iter().enumerate().rev() {
            if steps[i + 1].lower == u64::from(key) {
                break;
            }
            self.edit(step.block, |bytes| node::set_key(bytes, step.at, key))?;
            if step.at > 0 {
                break;
            }
        }
        Ok(())
    }

    /// The inode is full: its entries move to a block of their own, and the tree is one level deeper.
    fn grow(
        &mut self,
        steps: &mut Vec<Step>,
        lo: usize,
        hi: usize,
        new: &[Entry],
    ) -> Result<(), FsError> {
        let block = self.take()?;
        let (entries, depth) = (node::all(self.root), node::depth(self.root));
        let key = node::key(self.root, 0);
        self.create(block, depth, &entries)?;
        node::init(self.root, depth + 1, node::ROOT_MAX);
        node::splice(self.root, 0, 0, &[node::encode_index(key, block)]);
        let moved = Step {
            block: Some(block),
            max: self.block_max(),
            lower: u64::from(key),
            ..steps[0]
        };
        steps[0].at = 0;
        steps[0].entries = 1;
        steps.insert(1, moved);
        self.replace(steps, 1, lo, hi, new)
    }

    /// A full block becomes two. Appending leaves the old one full, so that files written in order get full nodes.
    fn split(
        &mut self,
        steps: &mut Vec<Step>,
        level: usize,
        lo: usize,
        hi: usize,
        new: &[Entry],
    ) -> Result<(), FsError> {
        let block = self.take()?;
        let step = steps[level];
        let (right, key, first, depth) = self.edit(step.block, |bytes| {
            let mut entries = node::all(bytes);
            entries.splice(lo..hi, new.iter().copied());
            let cut = if hi == step.entries {
                step.max
            } else {
                entries.len() / 2
            };
            let right = entries.split_off(cut);
            node::splice(bytes, 0, step.entries, &entries);
            let key = u32::from_le_bytes([right[0][0], right[0][1], right[0][2], right[0][3]]);
            (right, key, node::key(bytes, 0), node::depth(bytes))
        })?;
        self.create(block, depth, &right)?;
        if lo == 0 {
            self.lead(steps, level, first)?;
        }
        let at = steps[level - 1].at + 1;
        self.replace(steps, level - 1, at, at, &[node::encode_index(key, block)])
    }
}

fn seal(seed: Option<u32>, node: &mut [u8]) -> Result<(), Corrupt> {
    seed.map_or(Ok(()), |seed| update_block(seed, node))
}
