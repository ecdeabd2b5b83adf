//! The hash index of a directory (htree): finding the block of entries that a name's hash belongs to, and growing the
//! index. Owns the algorithms; the bytes of index blocks are
//! `ext4::htree`, those of entries `ext4::dirent`. Never re-packs or
//! shrinks the index: removing a name leaves it as it is, as in the kernel.
//!
//! Block 0 is the root; below it are at most one level of index blocks, two with large_dir; below them the blocks of
//! entries. An index entry's hash is the lower bound of the hashes below it. Its low bit (hashes are even) says that the
//! names with this very hash began in the block before it: a search that ends in a block goes on into such neighbours.
//!
//! Invariants: a block is split only after everything that can fail for want of space has been done, so `NoSpace`
//! leaves a clean directory; hashes along a level never fall; every walk is bounded by the directory's size.

mod grow;

pub(crate) use grow::convert;

use std::sync::Arc;

use crate::ext4::htree as noun;
use crate::ext4::{Corrupt, DxBlock, Hasher};
use crate::fs::FsError;
use crate::fs::dir::{DirFile, DirFileMut, Found, Layout, New, Slot};
use crate::journal::Image;
use crate::units::FileBlock;

/// The root of an index, verified.
pub(crate) struct Tree {
    root: Arc<DxBlock>,
    hash: NameHash,
    /// Levels of index blocks, the root included.
    levels: usize,
    /// How many levels the volume allows.
    max_levels: usize,
}

/// One index block on the way down.
#[derive(Clone)]
struct Frame {
    block: FileBlock,
    dx: Arc<DxBlock>,
    /// The entry taken.
    at: usize,
}

/// The way from the root to one block of entries.
#[derive(Clone)]
pub(crate) struct Path {
    frames: Vec<Frame>,
    leaf: FileBlock,
    /// Blocks of entries that this walk may still enter.
    left: u32,
}

/// Checks the checksum of an index block.
pub(crate) fn verify(layout: &Layout, block: FileBlock, bytes: &[u8]) -> Result<(), FsError> {
    noun::verify(&layout.dirs, layout.seed, bytes).map_err(|why| layout.corrupt(block, why))
}

/// Writes the checksum of an index block.
pub(crate) fn seal(layout: &Layout, block: FileBlock, bytes: &mut [u8]) -> Result<(), FsError> {
    noun::update(&layout.dirs, layout.seed, bytes).map_err(|why| layout.corrupt(block, why))
}

/// What a directory's names are sorted by.
pub(crate) struct NameHash(Hasher);

impl NameHash {
    /// The hash that a directory would be indexed by.
    pub fn default_of(dir: &impl DirFile) -> NameHash {
        let version = Hasher::default_version(dir.sb());
        NameHash(Hasher::new(dir.sb(), version))
    }

    /// The hash of a name; even.
    pub fn of(&self, name: &[u8]) -> u32 {
        #[cfg(test)]
        if CONSTANT_HASH.get() {
            return 0x1234_5678;
        }
        self.0.hash(name).major
    }
}

#[cfg(test)]
thread_local! {
    static CONSTANT_HASH: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// For tests: all names have one hash.
#[cfg(test)]
pub(crate) fn with_constant_hash(test: impl FnOnce()) {
    CONSTANT_HASH.set(true);
    test();
    CONSTANT_HASH.set(false);
}

impl Tree {
    /// Reads the root; `None` when its hash is one we do not know.
    pub fn open(dir: &impl DirFile, layout: &Layout) -> Result<Option<Tree>, FsError> {
        let first = FileBlock(0);
        let image = dir.get(first)?;
        layout.check_len(first, &image)?;
        verify(layout, first, &image)?;
        let large_dir = dir.sb().has_large_dir();
        let root = match DxBlock::decode_root(&layout.dirs, large_dir, &image) {
            Ok(root) => root,
            Err(Corrupt::Field {
                field: "hash_version",
                ..
            }) => return Ok(None),
            Err(why) => return Err(layout.corrupt(first, why)),
        };
        let Some(info) = root.info else {
            return Err(layout.corrupt(first, "a root without dx_root_info"));
        };
        if info.unused_flags & 1 != 0 {
            let detail = format!("dx_root flags {:#x}", info.unused_flags);
            return Err(layout.corrupt(first, detail));
        }
        Ok(Some(Tree {
            root: Arc::new(root),
            hash: NameHash(Hasher::new(dir.sb(), info.hash_version)),
            levels: usize::from(info.indirect_levels) + 1,
            max_levels: usize::from(noun::max_indirect_levels(large_dir)) + 1,
        }))
    }

    /// The hash of a name; even.
    pub fn hash(&self, name: &[u8]) -> u32 {
        self.hash.of(name)
    }

    /// Goes down to the first block of entries that may hold `hash`.
    pub fn probe(&self, dir: &impl DirFile, layout: &Layout, hash: u32) -> Result<Path, FsError> {
        let mut frames = Vec::with_capacity(self.levels);
        let mut block = FileBlock(0);
        for level in 0..self.levels {
            let mut frame = self.frame(dir, layout, block, level)?;
            frame.at = frame.dx.position(hash);
            block = child(layout, &frame)?;
            frames.push(frame);
        }
        Ok(Path {
            frames,
            leaf: block,
            left: layout.blocks,
        })
    }

    fn frame(
        &self,
        dir: &impl DirFile,
        layout: &Layout,
        block: FileBlock,
        level: usize,
    ) -> Result<Frame, FsError> {
        let dx = if level == 0 {
            self.root.clone()
        } else {
            let image = dir.get(block)?;
            layout.check_len(block, &image)?;
            let node = DxBlock::decode_node(&layout.dirs, &image)
                .map_err(|why| layout.corrupt(block, why))?;
            verify(layout, block, &image)?;
            Arc::new(node)
        };
        Ok(Frame { block, dx, at: 0 })
    }

    /// Moves to the next block of entries and returns its lower bound (low bit: continued); `None` at the end.
    pub fn advance(
        &self,
        dir: &impl DirFile,
        layout: &Layout,
        path: &mut Path,
    ) -> Result<Option<u32>, FsError> {
        let Some(level) = path
            .frames
            .iter()
            .rposition(|frame| frame.at + 1 < frame.dx.entries.len())
        else {
            return Ok(None);
        };
        if path.left == 0 {
            return Err(layout.corrupt(path.leaf, "the index names more blocks than there are"));
        }
        path.left -= 1;
        path.frames.truncate(level + 1);
        let frame = &mut path.frames[level];
        frame.at += 1;
        let bound = frame.dx.entries[frame.at].hash;
        let mut block = child(layout, frame)?;
        for level in level + 1..self.levels {
            let frame = self.frame(dir, layout, block, level)?;
            block = child(layout, &frame)?;
            path.frames.push(frame);
        }
        path.leaf = block;
        Ok(Some(bound))
    }

    /// The lower bound of the block of entries behind this one, without reading it.
    pub fn next_bound(&self, path: &Path) -> Option<u32> {
        path.frames
            .iter()
            .rfind(|frame| frame.at + 1 < frame.dx.entries.len())
            .map(|frame| frame.dx.entries[frame.at + 1].hash)
    }

    /// Finds a name.
    pub fn lookup(
        &self,
        dir: &impl DirFile,
        layout: &Layout,
        name: &[u8],
    ) -> Result<Option<Found>, FsError> {
        let hash = self.hash(name);
        let path = self.probe(dir, layout, hash)?;
        self.search(dir, layout, path, hash, name)
    }

    /// Looks for a name in the block that `path` leads to and those that continue its hash.
    fn search(
        &self,
        dir: &impl DirFile,
        layout: &Layout,
        mut path: Path,
        hash: u32,
        name: &[u8],
    ) -> Result<Option<Found>, FsError> {
        loop {
            let image = leaf(dir, layout, path.leaf)?;
            if let Some(found) = layout.find(path.leaf, &image, name)? {
                return Ok(Some(found));
            }
            let continued = self
                .next_bound(&path)
                .is_some_and(|bound| bound & 1 != 0 && bound & !1 == hash);
            if !continued || self.advance(dir, layout, &mut path)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Adds a name: `EEXIST`, or `NoSpace` when the index can not grow.
    pub fn insert(
        mut self,
        dir: &mut impl DirFileMut,
        layout: &Layout,
        new: &New<'_>,
    ) -> Result<Slot, FsError> {
        let hash = self.hash(new.name);
        let mut path = self.probe(dir, layout, hash)?;
        if self
            .search(dir, layout, path.clone(), hash, new.name)?
            .is_some()
        {
            return Err(FsError::Refused(libc::EEXIST));
        }
        let image = leaf(dir, layout, path.leaf)?;
        let has_room = layout.dirs.has_room(&image, new.name.len());
        if has_room.map_err(|why| layout.corrupt(path.leaf, why))? {
            return layout.add(path.leaf, dir.modify(path.leaf)?, new);
        }
        if let Some(slot) = grow::repack(dir, layout, path.leaf, &image, new)? {
            return Ok(slot);
        }
        // Each round splits one index block or adds a level, at most once per level.
        for _ in 0..=2 * self.max_levels {
            if path.frames.last().is_some_and(|frame| !frame.dx.is_full()) {
                return grow::split_leaf(dir, layout, &self, &path, hash, new);
            }
            grow::split_index(dir, layout, &self, &path)?;
            let layout = Layout::of(dir);
            self = Tree::open(dir, &layout)?
                .ok_or_else(|| layout.corrupt(FileBlock(0), "the index's hash changed"))?;
            path = self.probe(dir, &layout, hash)?;
        }
        Err(layout.corrupt(FileBlock(0), "the index can not be split"))
    }
}

impl Path {
    /// The block of entries.
    pub fn leaf(&self) -> FileBlock {
        self.leaf
    }

    /// The lower bound of its hashes, as the index says (low bit: continued).
    pub fn bound(&self) -> u32 {
        // An entry 0 has the bound of the index block it is in.
        self.frames
            .iter()
            .rfind(|frame| frame.at > 0)
            .map_or(0, |frame| frame.dx.entries[frame.at].hash)
    }
}

/// The block that a frame's entry points to, checked: inside the directory, and not the root.
fn child(layout: &Layout, frame: &Frame) -> Result<FileBlock, FsError> {
    let child = frame.dx.entries[frame.at].block;
    if child.0 == 0 || child.0 >= layout.blocks {
        let detail = format!(
            "index entry {} points to block {child} of {}",
            frame.at, layout.blocks
        );
        return Err(layout.corrupt(frame.block, detail));
    }
    Ok(child)
}

/// Reads and checks a block of entries.
pub(crate) fn leaf(
    dir: &impl DirFile,
    layout: &Layout,
    block: FileBlock,
) -> Result<Image, FsError> {
    let image = dir.get(block)?;
    layout.verify(block, &image)?;
    Ok(image)
}
