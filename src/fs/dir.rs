//! Directories: names to inodes. Owns the algorithms over a directory's blocks: linear search and, through
//! [`htree`](crate::fs::htree), the hash index. Never allocates blocks, never touches inodes other than the directory's
//! flags, never decides whether a caller may do what it asks.
//!
//! Invariants: every change leaves a directory that e2fsck calls clean once the operation has returned, with an error
//! too (a change of several blocks begins only when nothing but I/O can stop it); a name is in a directory at most once;
//! every walk over a corrupt directory ends.
//!
//! What a change touches, in blocks of the directory: `remove`, `replace`: one; `insert`: at most the leaf, a new leaf,
//! and per index level the node, a new node and its parent.

mod read;

pub use read::{ReadEntry, read};

use crate::ext4::checksum::inode_seed;
use crate::ext4::dirent::Entry;
use crate::ext4::inode::flags::INDEX;
use crate::ext4::{Corrupt, DirLayout, EditError, FileType, Refused, Superblock};
use crate::fs::{FsError, htree};
use crate::journal::Image;
use crate::units::{FileBlock, Ino};

/// A directory's blocks and what of its inode they depend on. The engine implements it over extents.
pub trait DirFile {
    /// The volume's superblock.
    fn sb(&self) -> &Superblock;
    /// The directory.
    fn ino(&self) -> Ino;
    /// Its `i_generation` (part of every block's checksum).
    fn generation(&self) -> u32;
    /// Its `i_flags`.
    fn flags(&self) -> u32;
    /// `i_size` in blocks.
    fn blocks_count(&self) -> u32;
    /// The newest contents of one of its blocks; a hole is `FsError::Corrupt`.
    fn get(&self, block: FileBlock) -> Result<Image, FsError>;
}

/// Changing a directory within one operation of the running transaction.
pub trait DirFileMut: DirFile {
    /// The block's bytes, to be changed in place.
    fn modify(&mut self, block: FileBlock) -> Result<&mut [u8], FsError>;
    /// A new zeroed block at the end; `i_size` and `i_blocks` grow. `FsError::NoSpace` changes nothing.
    fn append(&mut self) -> Result<FileBlock, FsError>;
    /// Sets `i_flags`.
    fn set_flags(&mut self, flags: u32) -> Result<(), FsError>;
}

/// Where an entry is: a hint that stays good until the directory changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The block of the directory.
    pub block: FileBlock,
    /// The entry's byte offset in it.
    pub offset: u16,
}

/// A name that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode it names.
    pub ino: Ino,
    /// What the entry says it is; `Unknown` where the volume does not record it (no filetype feature).
    pub file_type: FileType,
    /// Where it is.
    pub slot: Slot,
}

/// What the superblock and the inode say about a directory's blocks.
pub(crate) struct Layout {
    pub ino: Ino,
    /// Bytes of a block.
    pub block_size: usize,
    /// How blocks of entries are laid out.
    pub dirs: DirLayout,
    /// The inode's checksum seed.
    pub seed: u32,
    /// The `dir_index` feature.
    pub dir_index: bool,
    /// The directory says it has an index and the volume allows it.
    pub indexed: bool,
    /// The directory says it has an index.
    pub flagged: bool,
    /// Blocks of the directory.
    pub blocks: u32,
}

impl Layout {
    pub fn of(dir: &impl DirFile) -> Layout {
        let sb = dir.sb();
        let dir_index = sb.has_dir_index();
        let flagged = dir.flags() & INDEX != 0;
        Layout {
            ino: dir.ino(),
            block_size: sb.block_size() as usize,
            dirs: DirLayout::new(sb),
            seed: inode_seed(sb.csum_seed(), dir.ino(), dir.generation()),
            dir_index,
            indexed: dir_index && flagged,
            flagged,
            blocks: dir.blocks_count(),
        }
    }

    /// The error for a block that ext4 does not allow.
    pub fn corrupt(&self, block: FileBlock, detail: impl std::fmt::Display) -> FsError {
        FsError::Corrupt {
            what: "directory",
            ino: Some(self.ino),
            block: None,
            detail: format!("block {block} of the directory: {detail}"),
        }
    }

    /// The error for a change within a block that could not be made.
    pub fn edit_error(&self, block: FileBlock, why: EditError) -> FsError {
        match why {
            EditError::Refused(Refused::Exists) => FsError::Refused(libc::EEXIST),
            EditError::Refused(Refused::NotFound) => FsError::Refused(libc::ENOENT),
            other => self.corrupt(block, other),
        }
    }

    /// Checks the tail of a block of entries.
    pub fn verify(&self, block: FileBlock, bytes: &[u8]) -> Result<(), FsError> {
        self.check_len(block, bytes)?;
        self.dirs
            .verify(self.seed, bytes)
            .map_err(|why| self.corrupt(block, why))
    }

    /// Every block has the volume's size, whoever supplies it.
    pub fn check_len(&self, block: FileBlock, bytes: &[u8]) -> Result<(), FsError> {
        if bytes.len() != self.block_size {
            return Err(self.corrupt(block, "not one block long"));
        }
        Ok(())
    }

    /// Writes the tail of a block of entries.
    pub fn seal(&self, block: FileBlock, bytes: &mut [u8]) -> Result<(), FsError> {
        self.dirs
            .update(self.seed, bytes)
            .map_err(|why| self.corrupt(block, why))
    }

    /// An entry in use as the caller sees it; `None` for one that is not.
    pub fn found(&self, block: FileBlock, entry: &Entry<'_>) -> Result<Option<Found>, FsError> {
        let Some(ino) = entry.ino else {
            return Ok(None);
        };
        if entry.name.is_empty() || entry.name.iter().any(|&b| b == 0 || b == b'/') {
            let detail = format!("the name at byte {} is none", entry.offset);
            return Err(self.corrupt(block, detail));
        }
        Ok(Some(Found {
            ino,
            file_type: entry.file_type,
            slot: Slot {
                block,
                offset: entry.offset as u16,
            },
        }))
    }

    /// The entry in use with this name in one block.
    pub fn find(
        &self,
        block: FileBlock,
        bytes: &[u8],
        name: &[u8],
    ) -> Result<Option<Found>, FsError> {
        let entry = self
            .dirs
            .find(bytes, name)
            .map_err(|why| self.corrupt(block, why))?;
        match entry {
            Some(entry) => self.found(block, &entry),
            None => Ok(None),
        }
    }

    /// Adds an entry to a block that has room.
    pub fn add(&self, block: FileBlock, bytes: &mut [u8], new: &New<'_>) -> Result<Slot, FsError> {
        let offset = self
            .dirs
            .insert(bytes, new.name, new.ino, new.file_type)
            .map_err(|why| self.edit_error(block, why))?;
        self.seal(block, bytes)?;
        Ok(Slot {
            block,
            offset: offset as u16,
        })
    }

    /// Whether a block of a directory that says it has an index is a block of that: the first one, and those that look
    /// like one unused entry (a block of entries never does while it has a checksum tail; without one it is then empty).
    pub fn is_index_block(&self, block: FileBlock, bytes: &[u8]) -> bool {
        let rec_len = bytes.get(4..6).map(|b| u16::from_le_bytes([b[0], b[1]]));
        self.flagged
            && (block.0 == 0
                || (bytes.get(..4) == Some(&[0; 4])
                    && rec_len.map(usize::from) == Some(self.block_size)))
    }
}

/// A name to add.
#[derive(Clone, Copy)]
pub(crate) struct New<'a> {
    pub name: &'a [u8],
    pub ino: Ino,
    pub file_type: FileType,
}

/// Checks that a name can be in a directory: `ENAMETOOLONG`, `EINVAL`.
pub fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > 255 {
        return Err(FsError::Refused(libc::ENAMETOOLONG));
    }
    if name.is_empty() || name.iter().any(|&byte| byte == 0 || byte == b'/') {
        return Err(FsError::Refused(libc::EINVAL));
    }
    Ok(())
}

/// Finds a name; `.` and `..` are names too.
pub fn lookup(dir: &impl DirFile, name: &[u8]) -> Result<Option<Found>, FsError> {
    check_name(name)?;
    let layout = Layout::of(dir);
    // The first block holds these two in every kind of directory, so the index is not asked.
    let by_index = layout.indexed && name != b"." && name != b".." && layout.blocks > 0;
    if by_index && let Some(tree) = htree::Tree::open(dir, &layout)? {
        return tree.lookup(dir, &layout, name);
    }
    scan(dir, &layout, name)
}

/// Looks into every block, as is done without an index.
fn scan(dir: &impl DirFile, layout: &Layout, name: &[u8]) -> Result<Option<Found>, FsError> {
    let dots = name == b"." || name == b"..";
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        verify_any(layout, block, &image)?;
        if let Some(found) = layout.find(block, &image, name)? {
            return Ok(Some(found));
        }
        if dots {
            break;
        }
    }
    Ok(None)
}

/// Checks one block of any kind of directory. A block of the index reads as entries too: `.` and `..`, or one that is
/// unused.
fn verify_any(layout: &Layout, block: FileBlock, image: &Image) -> Result<(), FsError> {
    if layout.is_index_block(block, image) {
        layout.check_len(block, image)?;
        return htree::verify(layout, block, image);
    }
    layout.verify(block, image)
}

/// Adds a name: `EEXIST` when it is there, `FsError::NoSpace` when neither a block nor the index has room.
pub fn insert(
    dir: &mut impl DirFileMut,
    name: &[u8],
    ino: Ino,
    file_type: FileType,
) -> Result<Slot, FsError> {
    check_name(name)?;
    let layout = Layout::of(dir);
    let new = New {
        name,
        ino,
        file_type,
    };
    if layout.indexed && layout.blocks > 0 {
        if name == b"." || name == b".." {
            return Err(FsError::Refused(libc::EEXIST));
        }
        let Some(tree) = htree::Tree::open(dir, &layout)? else {
            return Err(FsError::Unsupported(format!(
                "adding a name to directory {}, whose index has an unknown hash",
                layout.ino
            )));
        };
        return tree.insert(dir, &layout, &new);
    }
    if layout.flagged {
        // The volume's dir_index is off: entries may go anywhere, so the index is void, as for the kernel.
        drop_index(dir, &layout)?;
    }
    insert_linear(dir, &Layout::of(dir), &new)
}

fn insert_linear(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    new: &New<'_>,
) -> Result<Slot, FsError> {
    let mut room = None;
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        layout.verify(block, &image)?;
        if layout.find(block, &image, new.name)?.is_some() {
            return Err(FsError::Refused(libc::EEXIST));
        }
        let bad = |why: Corrupt| layout.corrupt(block, why);
        if room.is_none() && layout.dirs.has_room(&image, new.name.len()).map_err(bad)? {
            room = Some(block);
        }
    }
    if let Some(block) = room {
        return layout.add(block, dir.modify(block)?, new);
    }
    if layout.blocks == 1 && layout.dir_index && htree::convert(dir, layout)? {
        let layout = Layout::of(dir);
        if let Some(tree) = htree::Tree::open(dir, &layout)? {
            return tree.insert(dir, &layout, new);
        }
    }
    let block = dir.append()?;
    let bytes = dir.modify(block)?;
    layout.dirs.init_empty(bytes);
    layout.add(block, bytes, new)
}

/// Makes an indexed directory linear: the blocks of its index become blocks of entries.
fn drop_index(dir: &mut impl DirFileMut, layout: &Layout) -> Result<(), FsError> {
    let own = layout.ino;
    let parent = parent(dir)?;
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        if layout.is_index_block(block, &image) {
            let bytes = dir.modify(block)?;
            if number == 0 {
                layout.dirs.init_dir(bytes, own, parent);
            } else {
                layout.dirs.init_empty(bytes);
            }
            layout.seal(block, bytes)?;
        }
    }
    dir.set_flags(dir.flags() & !INDEX)
}

/// Removes a name and returns what it named: `ENOENT` when it is not there, `EINVAL` for `.` and `..`.
pub fn remove(dir: &mut impl DirFileMut, name: &[u8]) -> Result<Found, FsError> {
    if name == b"." || name == b".." {
        return Err(FsError::Refused(libc::EINVAL));
    }
    let found = lookup(dir, name)?.ok_or(FsError::Refused(libc::ENOENT))?;
    remove_found(dir, name, &found)?;
    Ok(found)
}

/// Removes a name that `lookup` has just found; looked for again when the directory changed since.
pub fn remove_found(dir: &mut impl DirFileMut, name: &[u8], found: &Found) -> Result<(), FsError> {
    if name == b"." || name == b".." {
        return Err(FsError::Refused(libc::EINVAL));
    }
    let layout = Layout::of(dir);
    let block = current_block(dir, &layout, name, found)?;
    let bytes = dir.modify(block)?;
    layout
        .dirs
        .remove(bytes, name)
        .map_err(|why| layout.edit_error(block, why))?;
    layout.seal(block, bytes)
}

/// Lets a name that is there name another inode (rename over it, exchange); returns what it named. `ENOENT`, and
/// `EINVAL` for `.`; for `..` see [`set_parent`].
pub fn replace(
    dir: &mut impl DirFileMut,
    name: &[u8],
    ino: Ino,
    file_type: FileType,
) -> Result<Found, FsError> {
    if name == b"." || name == b".." {
        return Err(FsError::Refused(libc::EINVAL));
    }
    let found = lookup(dir, name)?.ok_or(FsError::Refused(libc::ENOENT))?;
    let layout = Layout::of(dir);
    let Slot { block, offset } = found.slot;
    let bytes = dir.modify(block)?;
    layout
        .dirs
        .replace(bytes, usize::from(offset), ino, file_type)
        .map_err(|why| layout.edit_error(block, why))?;
    layout.seal(block, bytes)?;
    Ok(found)
}

/// The block in which the name is now.
fn current_block(
    dir: &impl DirFile,
    layout: &Layout,
    name: &[u8],
    found: &Found,
) -> Result<FileBlock, FsError> {
    let block = found.slot.block;
    if block.0 < layout.blocks {
        let image = dir.get(block)?;
        verify_any(layout, block, &image)?;
        if layout.find(block, &image, name)?.is_some() {
            return Ok(block);
        }
    }
    let again = lookup(dir, name)?.ok_or(FsError::Refused(libc::ENOENT))?;
    Ok(again.slot.block)
}

/// The directory that `..` names.
pub fn parent(dir: &impl DirFile) -> Result<Ino, FsError> {
    match lookup(dir, b"..")? {
        Some(found) => Ok(found.ino),
        None => Err(Layout::of(dir).corrupt(FileBlock(0), "there is no '..'")),
    }
}

/// Lets `..` name another directory (this one was moved).
pub fn set_parent(dir: &mut impl DirFileMut, parent: Ino) -> Result<(), FsError> {
    let layout = Layout::of(dir);
    let block = FileBlock(0);
    let Some(found) = lookup(dir, b"..")? else {
        return Err(layout.corrupt(block, "there is no '..'"));
    };
    let is_root = layout.is_index_block(block, &dir.get(block)?);
    let bytes = dir.modify(block)?;
    layout
        .dirs
        .replace(
            bytes,
            usize::from(found.slot.offset),
            parent,
            FileType::Directory,
        )
        .map_err(|why| layout.edit_error(block, why))?;
    if is_root {
        htree::seal(&layout, block, bytes)
    } else {
        layout.seal(block, bytes)
    }
}

/// Gives a new, empty directory its first block: `.`, `..` and the tail.
pub fn init(dir: &mut impl DirFileMut, parent: Ino) -> Result<(), FsError> {
    let layout = Layout::of(dir);
    let block = dir.append()?;
    let bytes = dir.modify(block)?;
    layout.dirs.init_dir(bytes, layout.ino, parent);
    layout.seal(block, bytes)
}

/// Whether nothing but `.` and `..` is in the directory.
pub fn is_empty(dir: &impl DirFile) -> Result<bool, FsError> {
    let layout = Layout::of(dir);
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        verify_any(&layout, block, &image)?;
        let empty = layout.dirs.is_empty(&image);
        if !empty.map_err(|why| layout.corrupt(block, why))? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
