//! The hash index of a directory (htree): finding the block of entries that a name's hash belongs to, and growing the
//! index. Owns the algorithms; the bytes of index blocks are in `node`, those of entries in `dir`. Never re-packs or
//! shrinks the index: removing a name leaves it as it is, as in the kernel.
//!
//! Block 0 is the root; below it are at most one level of index blocks, two with large_dir; below them the blocks of
//! entries. An index entry's hash is the lower bound of the hashes below it. Its low bit (hashes are even) says that the
//! names with this very hash began in the block before it: a search that ends in a block goes on into such neighbours.
//!
//! Invariants: a block is split only after everything that can fail for want of space has been done, so `NoSpace`
//! leaves a clean directory; hashes along a level never fall; every walk is bounded by the directory's size.

mod grow;
mod node;

pub(crate) use grow::convert;

use node::{Kind, ROOT_INFO, Shape};

use crate::ext4::inode::flags;
use crate::fs::FsError;
use crate::fs::dir::{self, DirFile, DirFileMut, Found, Layout, Slot};
use crate::fs::nouns::htree as noun;
use crate::journal::Image;
use crate::units::{FileBlock, Ino};

/// Hash versions on disk that we know: legacy, half MD4, TEA.
const KNOWN_HASHES: std::ops::RangeInclusive<u8> = 0..=2;
/// Bytes of `dx_root_info`.
const INFO_LENGTH: u8 = 8;

/// The root of an index, verified.
pub(crate) struct Tree {
    root: Image,
    hasher: noun::Hasher,
    /// Levels of index blocks, the root included.
    levels: usize,
    /// How many levels the volume allows.
    max_levels: usize,
}

/// One index block on the way down.
#[derive(Clone)]
struct Frame {
    block: FileBlock,
    kind: Kind,
    image: Image,
    shape: Shape,
    /// The entry taken.
    at: usize,
}

impl Frame {
    fn is_full(&self) -> bool {
        self.shape.count >= self.shape.limit
    }
}

/// The way from the root to one block of entries.
#[derive(Clone)]
pub(crate) struct Path {
    frames: Vec<Frame>,
    leaf: FileBlock,
    /// Blocks of entries that this walk may still enter.
    left: u32,
}

/// Checks the root's limits and checksum.
pub(crate) fn verify_root(layout: &Layout, root: &[u8]) -> Result<(), FsError> {
    check_root(layout, root).map(|_| ())
}

fn check_root(layout: &Layout, root: &[u8]) -> Result<Shape, FsError> {
    let bad = |detail: String| layout.corrupt(FileBlock(0), detail);
    if root.len() != layout.block_size {
        return Err(bad("not one block long".to_owned()));
    }
    let info_length = root[ROOT_INFO + 5];
    if info_length != INFO_LENGTH {
        return Err(bad(format!("dx_root_info of {info_length} bytes")));
    }
    Shape::check(root, Kind::Root, layout.seed).map_err(bad)
}

/// The hash that a directory would be indexed by.
pub(crate) fn default_hasher(dir: &impl DirFile) -> noun::Hasher {
    let version = dir.sb().s_def_hash_version();
    let half_md4 = 1;
    let known = KNOWN_HASHES.contains(&version);
    noun::Hasher::new(dir.sb(), if known { version } else { half_md4 })
}

/// Writes the root's checksum.
pub(crate) fn seal_root(layout: &Layout, root: &mut [u8]) -> Result<(), FsError> {
    node::seal(root, Kind::Root, layout.seed);
    Ok(())
}

impl Tree {
    /// Reads the root; `None` when its hash is one we do not know.
    pub fn open(dir: &impl DirFile, layout: &Layout) -> Result<Option<Tree>, FsError> {
        let root = dir.get(FileBlock(0))?;
        check_root(layout, &root)?;
        let version = root[ROOT_INFO + 4];
        if !KNOWN_HASHES.contains(&version) {
            return Ok(None);
        }
        let flags = root[ROOT_INFO + 7];
        if flags & 1 != 0 {
            return Err(layout.corrupt(FileBlock(0), format!("dx_root flags {flags:#x}")));
        }
        let levels = usize::from(root[ROOT_INFO + 6]) + 1;
        let max_levels = if dir.sb().has_large_dir() { 3 } else { 2 };
        if levels > max_levels {
            return Err(layout.corrupt(
                FileBlock(0),
                format!("{levels} levels of index, at most {max_levels} are allowed"),
            ));
        }
        Ok(Some(Tree {
            root,
            hasher: noun::Hasher::new(dir.sb(), version),
            levels,
            max_levels,
        }))
    }

    /// The hash of a name; even.
    pub fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash(name)
    }

    /// Goes down to the first block of entries that may hold `hash`.
    pub fn probe(&self, dir: &impl DirFile, layout: &Layout, hash: u32) -> Result<Path, FsError> {
        let mut frames = Vec::with_capacity(self.levels);
        let mut block = FileBlock(0);
        for level in 0..self.levels {
            let mut frame = self.frame(dir, layout, block, level)?;
            frame.at = frame.shape.search(&frame.image, hash);
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
        if level == 0 {
            return Ok(Frame {
                block,
                kind: Kind::Root,
                image: self.root.clone(),
                shape: check_root(layout, &self.root)?,
                at: 0,
            });
        }
        let image = dir.get(block)?;
        if image.len() != layout.block_size || !layout.is_index_block(flags::INDEX, block, &image) {
            return Err(layout.corrupt(block, "not an index block"));
        }
        let shape = Shape::check(&image, Kind::Node, layout.seed)
            .map_err(|detail| layout.corrupt(block, detail))?;
        Ok(Frame {
            block,
            kind: Kind::Node,
            image,
            shape,
            at: 0,
        })
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
            .rposition(|frame| frame.at + 1 < frame.shape.count)
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
        let bound = frame.shape.hash(&frame.image, frame.at);
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
            .rfind(|frame| frame.at + 1 < frame.shape.count)
            .map(|frame| frame.shape.hash(&frame.image, frame.at + 1))
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
            let entry = dir::block::find(&image, layout.usable, name)
                .map_err(|detail| layout.corrupt(path.leaf, detail))?;
            if let Some(entry) = entry {
                return layout.found(path.leaf, &entry).map(Some);
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
        name: &[u8],
        ino: Ino,
        file_type: u8,
    ) -> Result<Slot, FsError> {
        let hash = self.hash(name);
        let need = dir::block::size_of(name.len());
        let mut path = self.probe(dir, layout, hash)?;
        if self
            .search(dir, layout, path.clone(), hash, name)?
            .is_some()
        {
            return Err(FsError::Refused(libc::EEXIST));
        }
        let image = leaf(dir, layout, path.leaf)?;
        let bad = |detail| layout.corrupt(path.leaf, detail);
        if let Some(offset) = dir::block::room(&image, layout.usable, need).map_err(bad)? {
            return dir::insert_into(dir, layout, path.leaf, offset, name, ino, file_type);
        }
        let used = dir::block::used_bytes(&image, layout.usable).map_err(bad)?;
        if used + need <= layout.usable {
            // There is room, in pieces. Cookies of an indexed directory are hashes, so entries may move.
            return grow::repack(dir, layout, path.leaf, name, ino, file_type);
        }
        // Each round splits one index block or adds a level, at most once per level.
        for _ in 0..=2 * self.max_levels {
            if path.frames.last().is_some_and(|frame| !frame.is_full()) {
                return grow::split_leaf(dir, layout, &self, &path, hash, name, ino, file_type);
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
            .map_or(0, |frame| frame.shape.hash(&frame.image, frame.at))
    }
}

/// The block that a frame's entry points to, checked: inside the directory, and not the root.
fn child(layout: &Layout, frame: &Frame) -> Result<FileBlock, FsError> {
    let number = frame.shape.block(&frame.image, frame.at);
    if number == 0 || number >= layout.blocks {
        return Err(layout.corrupt(
            frame.block,
            format!(
                "index entry {} points to block {number} of {}",
                frame.at, layout.blocks
            ),
        ));
    }
    Ok(FileBlock(number))
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
