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

mod leaf;
mod read;

pub use read::{ReadEntry, read};

pub(crate) use leaf::Entry;
pub(crate) mod block {
    //! What the index needs of a block of entries.
    pub(crate) use super::leaf::{entries, find, insert_at, pack, put, room, size_of, used_bytes};
}

use crate::ext4::checksum::inode_seed;
use crate::ext4::inode::flags;
use crate::ext4::{FileType, Superblock};
use crate::fs::nouns::dirent;
use crate::fs::{FsError, htree};
use crate::journal::Image;
use crate::units::{FileBlock, Ino};

use flags::INDEX;

/// Bytes of the checksum tail of a block of entries, with metadata_csum.
const TAIL_BYTES: usize = 12;

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
    /// Bytes of a block that hold entries.
    pub usable: usize,
    /// The inode's checksum seed, with metadata_csum.
    pub seed: Option<u32>,
    /// The `filetype` feature.
    pub filetype: bool,
    /// The `dir_index` feature.
    pub dir_index: bool,
    /// The directory says it has an index and the volume allows it.
    pub indexed: bool,
    /// Blocks of the directory.
    pub blocks: u32,
    /// `s_inodes_count`.
    pub inodes: u32,
}

impl Layout {
    pub fn of(dir: &impl DirFile) -> Layout {
        let sb = dir.sb();
        let seed = sb
            .has_metadata_csum()
            .then(|| inode_seed(sb.csum_seed(), dir.ino(), dir.generation()));
        let block_size = sb.block_size() as usize;
        let dir_index = sb.has_dir_index();
        Layout {
            ino: dir.ino(),
            block_size,
            usable: block_size - if seed.is_some() { TAIL_BYTES } else { 0 },
            seed,
            filetype: sb.has_filetype(),
            dir_index,
            indexed: dir_index && dir.flags() & INDEX != 0,
            blocks: dir.blocks_count(),
            inodes: sb.s_inodes_count(),
        }
    }

    /// The type to store for a file of type `file_type`.
    pub fn stored_type(&self, file_type: FileType) -> u8 {
        if self.filetype { file_type.code() } else { 0 }
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

    /// Checks the tail of a block of entries.
    pub fn verify(&self, block: FileBlock, bytes: &[u8]) -> Result<(), FsError> {
        if bytes.len() != self.block_size {
            return Err(self.corrupt(block, "not one block long"));
        }
        if let Some(seed) = self.seed {
            dirent::check_tail(seed, bytes).map_err(|detail| self.corrupt(block, detail))?;
        }
        Ok(())
    }

    /// Writes the tail of a block of entries.
    pub fn seal(&self, bytes: &mut [u8]) {
        if let Some(seed) = self.seed {
            dirent::put_tail(seed, bytes);
        }
    }

    /// The inode number of an entry, checked.
    pub fn entry_ino(&self, block: FileBlock, entry: &Entry<'_>) -> Result<Ino, FsError> {
        if entry.ino == 0 || entry.ino > self.inodes {
            return Err(self.corrupt(
                block,
                format_args!(
                    "the entry at byte {} names inode {} of {}",
                    entry.offset, entry.ino, self.inodes
                ),
            ));
        }
        Ok(Ino(entry.ino))
    }

    /// An entry as the caller sees it.
    pub fn found(&self, block: FileBlock, entry: &Entry<'_>) -> Result<Found, FsError> {
        Ok(Found {
            ino: self.entry_ino(block, entry)?,
            file_type: if self.filetype {
                FileType::from_code(entry.file_type)
            } else {
                FileType::Unknown
            },
            slot: Slot {
                block,
                offset: entry.offset as u16,
            },
        })
    }

    /// Whether a block of an indexed directory is a block of the index: the first one, and those that look like one
    /// unused entry (a block of entries never does while it has a checksum tail; without one it is then empty).
    pub fn is_index_block(&self, flags: u32, block: FileBlock, bytes: &[u8]) -> bool {
        flags & INDEX != 0
            && (block.0 == 0
                || (bytes.get(..4) == Some(&[0; 4])
                    && bytes.get(4..6).is_some_and(|b| {
                        u16::from_le_bytes([b[0], b[1]]) as usize == self.block_size
                    })))
    }
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
    if layout.indexed && name != b"." && name != b".." && layout.blocks > 0 {
        if let Some(tree) = htree::Tree::open(dir, &layout)? {
            return tree.lookup(dir, &layout, name);
        }
    }
    scan(dir, &layout, name)
}

/// Looks into every block, as is done without an index.
fn scan(dir: &impl DirFile, layout: &Layout, name: &[u8]) -> Result<Option<Found>, FsError> {
    let dots = name == b"." || name == b"..";
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        let usable = linear_view(dir, layout, block, &image)?;
        let entry =
            leaf::find(&image, usable, name).map_err(|detail| layout.corrupt(block, detail))?;
        if let Some(entry) = entry {
            return layout.found(block, &entry).map(Some);
        }
        if dots && number == 0 {
            break;
        }
    }
    Ok(None)
}

/// Checks one block of any kind of directory and says how many of its bytes are entries (a block of the index reads as
/// entries too: `.` and `..`, or one that is unused).
fn linear_view(
    dir: &impl DirFile,
    layout: &Layout,
    block: FileBlock,
    image: &Image,
) -> Result<usize, FsError> {
    if layout.is_index_block(dir.flags(), block, image) {
        if image.len() != layout.block_size {
            return Err(layout.corrupt(block, "not one block long"));
        }
        if block.0 == 0 && layout.indexed {
            htree::verify_root(layout, image)?;
        }
        return Ok(layout.block_size);
    }
    layout.verify(block, image)?;
    Ok(layout.usable)
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
    let file_type = layout.stored_type(file_type);
    insert_stored(dir, &layout, name, ino, file_type)
}

/// As `insert`, with the type as stored.
fn insert_stored(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    name: &[u8],
    ino: Ino,
    file_type: u8,
) -> Result<Slot, FsError> {
    if layout.indexed && layout.blocks > 0 {
        let Some(tree) = htree::Tree::open(dir, layout)? else {
            return Err(FsError::Unsupported(format!(
                "adding a name to directory {}, whose index has an unknown hash",
                layout.ino
            )));
        };
        if name == b"." || name == b".." {
            return Err(FsError::Refused(libc::EEXIST));
        }
        return tree.insert(dir, layout, name, ino, file_type);
    }
    if dir.flags() & INDEX != 0 {
        // The volume's dir_index is off: entries may go anywhere, so the index is void, as for the kernel.
        return drop_index_then_insert(dir, layout, name, ino, file_type);
    }
    let need = leaf::size_of(name.len());
    let mut room = None;
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        layout.verify(block, &image)?;
        let usable = layout.usable;
        let bad = |detail| layout.corrupt(block, detail);
        if leaf::find(&image, usable, name).map_err(bad)?.is_some() {
            return Err(FsError::Refused(libc::EEXIST));
        }
        if room.is_none() {
            room = leaf::room(&image, usable, need)
                .map_err(bad)?
                .map(|offset| (block, offset));
        }
    }
    if let Some((block, offset)) = room {
        return insert_into(dir, layout, block, offset, name, ino, file_type);
    }
    if layout.blocks == 1 && layout.dir_index && htree::convert(dir, layout)? {
        let layout = &Layout::of(dir);
        if let Some(tree) = htree::Tree::open(dir, layout)? {
            return tree.insert(dir, layout, name, ino, file_type);
        }
    }
    append_with(dir, layout, name, ino, file_type)
}

/// Adds a name in a new block at the end of a linear directory.
fn append_with(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    name: &[u8],
    ino: Ino,
    file_type: u8,
) -> Result<Slot, FsError> {
    let block = dir.append()?;
    let bytes = dir.modify(block)?;
    leaf::put(bytes, 0, layout.usable, ino.0, name, file_type);
    layout.seal(bytes);
    Ok(Slot { block, offset: 0 })
}

/// Makes an indexed directory linear (its index blocks become blocks of entries), then adds the name.
fn drop_index_then_insert(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    name: &[u8],
    ino: Ino,
    file_type: u8,
) -> Result<Slot, FsError> {
    if scan(dir, layout, name)?.is_some() {
        return Err(FsError::Refused(libc::EEXIST));
    }
    let mut index_blocks = Vec::new();
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        if layout.is_index_block(dir.flags(), block, &image) {
            index_blocks.push(block);
        }
    }
    for block in index_blocks {
        let image = dir.get(block)?;
        let bytes = dir.modify(block)?;
        let kept = leaf::entries(&image, layout.block_size)
            .filter_map(Result::ok)
            .filter(|entry| entry.ino != 0);
        leaf::pack(bytes, layout.usable, kept).map_err(|detail| layout.corrupt(block, detail))?;
        layout.seal(bytes);
    }
    dir.set_flags(dir.flags() & !INDEX)?;
    insert_stored(dir, &Layout::of(dir), name, ino, file_type)
}

/// Adds an entry in the room found at `offset`.
pub(crate) fn insert_into(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    block: FileBlock,
    offset: usize,
    name: &[u8],
    ino: Ino,
    file_type: u8,
) -> Result<Slot, FsError> {
    let bytes = dir.modify(block)?;
    let offset = leaf::insert_at(bytes, layout.usable, offset, ino.0, name, file_type)
        .map_err(|detail| layout.corrupt(block, detail))?;
    layout.seal(bytes);
    Ok(Slot {
        block,
        offset: offset as u16,
    })
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
    let slot = current_slot(dir, name, found)?;
    let layout = Layout::of(dir);
    let bytes = dir.modify(slot.block)?;
    leaf::remove_at(bytes, layout.usable, usize::from(slot.offset))
        .map_err(|detail| layout.corrupt(slot.block, detail))?;
    layout.seal(bytes);
    Ok(())
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
    let bytes = dir.modify(found.slot.block)?;
    let stored = layout.stored_type(file_type);
    leaf::set_target(bytes, usize::from(found.slot.offset), ino.0, stored);
    layout.seal(bytes);
    Ok(found)
}

/// Where the name is now.
fn current_slot(dir: &impl DirFile, name: &[u8], found: &Found) -> Result<Slot, FsError> {
    let layout = Layout::of(dir);
    let slot = found.slot;
    if slot.block.0 < layout.blocks {
        let image = dir.get(slot.block)?;
        let usable = linear_view(dir, &layout, slot.block, &image)?;
        let here = leaf::find(&image, usable, name)
            .map_err(|detail| layout.corrupt(slot.block, detail))?;
        if here.is_some_and(|e| e.offset == usize::from(slot.offset) && e.ino == found.ino.0) {
            return Ok(slot);
        }
    }
    let again = lookup(dir, name)?.ok_or(FsError::Refused(libc::ENOENT))?;
    Ok(again.slot)
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
    let is_root = layout.is_index_block(dir.flags(), block, &dir.get(block)?);
    let bytes = dir.modify(block)?;
    let stored = layout.stored_type(FileType::Directory);
    leaf::set_target(bytes, usize::from(found.slot.offset), parent.0, stored);
    if is_root {
        htree::seal_root(&layout, bytes)?;
    } else {
        layout.seal(bytes);
    }
    Ok(())
}

/// Gives a new, empty directory its first block: `.`, `..` and the tail.
pub fn init(dir: &mut impl DirFileMut, parent: Ino) -> Result<(), FsError> {
    let layout = Layout::of(dir);
    let own = dir.ino();
    let block = dir.append()?;
    let bytes = dir.modify(block)?;
    let file_type = layout.stored_type(FileType::Directory);
    let dot = leaf::size_of(1);
    leaf::put(bytes, 0, dot, own.0, b".", file_type);
    leaf::put(bytes, dot, layout.usable - dot, parent.0, b"..", file_type);
    layout.seal(bytes);
    Ok(())
}

/// Whether nothing but `.` and `..` is in the directory.
pub fn is_empty(dir: &impl DirFile) -> Result<bool, FsError> {
    let layout = Layout::of(dir);
    for number in 0..layout.blocks {
        let block = FileBlock(number);
        let image = dir.get(block)?;
        let usable = linear_view(dir, &layout, block, &image)?;
        for entry in leaf::entries(&image, usable) {
            let entry = entry.map_err(|detail| layout.corrupt(block, detail))?;
            let dots = number == 0 && (entry.name == b"." || entry.name == b"..");
            if entry.ino != 0 && !dots {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
