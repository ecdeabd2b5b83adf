//! Growing an index: the first one, splitting a block of entries, splitting an index block, one more level.
//!
//! Order within each: everything is computed and checked, then the one new block is appended (which may fail), then
//! blocks change.

use super::{Path, Tree, leaf, seal};
use crate::ext4::dirent::{Entry, entry_size};
use crate::ext4::htree::{self as noun, DxEntry};
use crate::ext4::inode::flags::INDEX;
use crate::ext4::{DxBlock, FileType, HashVersion};
use crate::fs::FsError;
use crate::fs::dir::{DirFileMut, Layout, New, Slot};
use crate::journal::Image;
use crate::units::{FileBlock, Ino};

/// An entry as it is packed.
type Packed<'a> = (Ino, FileType, &'a [u8]);

/// Packs a block of entries whose room is in pieces, with the new entry behind the others; `None` when it has not
/// enough. Cookies of an indexed directory are hashes, so entries may move.
pub(super) fn repack(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    at: FileBlock,
    image: &Image,
    new: &New<'_>,
) -> Result<Option<Slot>, FsError> {
    let kept: Vec<Packed<'_>> = used_entries(layout, at, image)?
        .iter()
        .filter_map(packed)
        .collect();
    let used: usize = kept.iter().map(|entry| entry_size(entry.2.len())).sum();
    if used + entry_size(new.name.len()) > layout.dirs.usable(layout.block_size) {
        return Ok(None);
    }
    let mut bytes = vec![0; layout.block_size];
    let slot = fill_leaf(layout, at, &mut bytes, &kept, Some(new))?;
    dir.modify(at)?.copy_from_slice(&bytes);
    Ok(slot)
}

fn packed<'a>(entry: &Entry<'a>) -> Option<Packed<'a>> {
    Some((entry.ino?, entry.file_type, entry.name))
}

/// The entries in use.
fn used_entries<'a>(
    layout: &Layout,
    at: FileBlock,
    image: &'a [u8],
) -> Result<Vec<Entry<'a>>, FsError> {
    let mut kept = Vec::new();
    for entry in layout.dirs.entries(image) {
        let entry = entry.map_err(|why| layout.corrupt(at, why))?;
        if entry.ino.is_some() {
            kept.push(entry);
        }
    }
    Ok(kept)
}

/// Writes a whole block of entries and its tail; the new entry, if one is given, goes last.
fn fill_leaf(
    layout: &Layout,
    at: FileBlock,
    bytes: &mut [u8],
    kept: &[Packed<'_>],
    new: Option<&New<'_>>,
) -> Result<Option<Slot>, FsError> {
    layout
        .dirs
        .pack(bytes, kept)
        .map_err(|why| layout.corrupt(at, why))?;
    if let Some(new) = new {
        return layout.add(at, bytes, new).map(Some);
    }
    layout.seal(at, bytes)?;
    Ok(None)
}

/// Where to split entries sorted by hash: so many stay. About half the bytes go, so that a name of any length has room
/// on either side afterwards.
fn split_point(layout: &Layout, sizes: &[usize]) -> usize {
    let half = layout.block_size / 2;
    let mut moved = 0;
    for (i, &size) in sizes.iter().enumerate().rev() {
        if moved + size / 2 > half {
            return (i + 1).clamp(1, sizes.len() - 1);
        }
        moved += size;
    }
    (sizes.len() / 2).max(1)
}

/// Splits the full block of entries at the end of `path`, whose index block has room, and adds the entry to the half
/// it belongs to.
pub(super) fn split_leaf(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    tree: &Tree,
    path: &Path,
    hash: u32,
    new: &New<'_>,
) -> Result<Slot, FsError> {
    let at = path.leaf;
    let image = leaf(dir, layout, at)?;
    let mut sorted: Vec<(u32, Packed<'_>)> = used_entries(layout, at, &image)?
        .iter()
        .filter_map(|entry| Some((tree.hash(entry.name), packed(entry)?)))
        .collect();
    sorted.sort_by_key(|(hash, _)| *hash);
    if sorted.len() < 2 {
        return Err(layout.corrupt(at, "one entry fills the block"));
    }
    let sizes: Vec<usize> = sorted
        .iter()
        .map(|(_, entry)| entry_size(entry.2.len()))
        .collect();
    let split = split_point(layout, &sizes);
    let bound = sorted[split].0;
    let continued = u32::from(bound == sorted[split - 1].0);
    let entries: Vec<Packed<'_>> = sorted.into_iter().map(|(_, entry)| entry).collect();
    let (stay, go) = entries.split_at(split);
    let goes = hash >= bound;
    let mut low = vec![0; layout.block_size];
    let mut high = vec![0; layout.block_size];
    let slot_low = fill_leaf(layout, at, &mut low, stay, (!goes).then_some(new))?;
    let slot_high = fill_leaf(layout, at, &mut high, go, goes.then_some(new))?;

    let added = dir.append()?;
    dir.modify(at)?.copy_from_slice(&low);
    dir.modify(added)?.copy_from_slice(&high);
    let level = path.frames.len() - 1;
    add_to_index(dir, layout, path, level, bound | continued, added)?;
    slot_low
        .or(slot_high.map(|slot| Slot {
            block: added,
            ..slot
        }))
        .ok_or_else(|| layout.corrupt(at, "the entry was not placed"))
}

/// Adds an entry for `child` behind the one taken at `level` of the path; there is room.
fn add_to_index(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    path: &Path,
    level: usize,
    hash: u32,
    child: FileBlock,
) -> Result<(), FsError> {
    let frame = &path.frames[level];
    let mut dx = DxBlock::clone(&frame.dx);
    dx.entries
        .insert(frame.at + 1, DxEntry { hash, block: child });
    rewrite(dir, layout, frame.block, &dx)
}

/// Writes an index block's entries.
fn rewrite(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    block: FileBlock,
    dx: &DxBlock,
) -> Result<(), FsError> {
    let bytes = dir.modify(block)?;
    dx.encode(bytes);
    seal(layout, block, bytes)
}

/// Writes a new index block.
fn write_node(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    block: FileBlock,
    entries: Vec<DxEntry>,
) -> Result<(), FsError> {
    let bytes = dir.modify(block)?;
    noun::init_node(&layout.dirs, bytes, entries);
    seal(layout, block, bytes)
}

/// Makes room in the index above a full block of entries: splits the index block below the lowest one that has room, or
/// puts one more level under the root. `NoSpace` when the volume allows no more levels. The caller searches again.
pub(super) fn split_index(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    tree: &Tree,
    path: &Path,
) -> Result<(), FsError> {
    let Some(parent) = path.frames.iter().rposition(|frame| !frame.dx.is_full()) else {
        return add_level(dir, layout, tree, path);
    };
    let Some(full) = path.frames.get(parent + 1) else {
        return Ok(());
    };
    let mut low = DxBlock::clone(&full.dx);
    let high = low.entries.split_off(low.entries.len() / 2);
    let bound = high[0].hash;
    let added = dir.append()?;
    write_node(dir, layout, added, high)?;
    rewrite(dir, layout, full.block, &low)?;
    add_to_index(dir, layout, path, parent, bound, added)
}

/// Moves the root's entries into a new index block below it.
fn add_level(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    tree: &Tree,
    path: &Path,
) -> Result<(), FsError> {
    if tree.levels >= tree.max_levels {
        return Err(FsError::NoSpace);
    }
    let mut root = DxBlock::clone(&tree.root);
    let added = dir.append()?;
    let only = DxEntry {
        hash: 0,
        block: added,
    };
    let entries = std::mem::replace(&mut root.entries, vec![only]);
    if let Some(info) = &mut root.info {
        info.indirect_levels += 1;
    }
    write_node(dir, layout, added, entries)?;
    rewrite(dir, layout, path.frames[0].block, &root)
}

/// Gives a linear directory of one block an index: its entries move to block 1, block 0 becomes the root. `false`, and
/// nothing changes, when its first block does not begin as ext4 lays it out or the volume's hash is unknown.
pub(crate) fn convert(dir: &mut impl DirFileMut, layout: &Layout) -> Result<bool, FsError> {
    let Some(version) = HashVersion::from_code(dir.sb().s_def_hash_version()) else {
        return Ok(false);
    };
    let first = FileBlock(0);
    let image = leaf(dir, layout, first)?;
    let entries = used_entries(layout, first, &image)?;
    let [dot, dotdot, rest @ ..] = &entries[..] else {
        return Ok(false);
    };
    let usual = dot.name == b"."
        && dot.offset == 0
        && dot.rec_len == entry_size(1)
        && dotdot.name == b".."
        && dotdot.offset == entry_size(1);
    let (true, Some(parent)) = (usual, dotdot.ino) else {
        return Ok(false);
    };
    let kept: Vec<Packed<'_>> = rest.iter().filter_map(packed).collect();
    let mut moved = vec![0; layout.block_size];
    fill_leaf(layout, first, &mut moved, &kept, None)?;

    let added = dir.append()?;
    dir.modify(added)?.copy_from_slice(&moved);
    let bytes = dir.modify(first)?;
    noun::init_root(&layout.dirs, bytes, layout.ino, parent, version, added);
    seal(layout, first, bytes)?;
    dir.set_flags(dir.flags() | INDEX)?;
    Ok(true)
}
