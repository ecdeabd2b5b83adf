//! Growing an index: the first one, splitting a block of entries, splitting an index block, one more level.
//!
//! Order within each: everything is computed and checked, then the one new block is appended (which may fail), then
//! blocks change.

use super::node::{self, Kind, ROOT_INFO};
use super::{INFO_LENGTH, Path, Tree, leaf};
use crate::ext4::FileType;
use crate::ext4::inode::flags;
use crate::fs::FsError;
use crate::fs::dir::{DirFileMut, Entry, Layout, Slot, block};
use crate::units::{FileBlock, Ino};

/// Packs a block of entries whose room is in pieces, with the new entry behind the others.
pub(super) fn repack(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    at: FileBlock,
    name: &[u8],
    ino: Ino,
    file_type: u8,
) -> Result<Slot, FsError> {
    let image = leaf(dir, layout, at)?;
    let kept = used_entries(layout, at, &image)?;
    let mut packed = vec![0; layout.block_size];
    let slot = fill_leaf(layout, at, &mut packed, &kept, Some((name, ino, file_type)))?;
    dir.modify(at)?.copy_from_slice(&packed);
    slot.ok_or_else(|| layout.corrupt(at, "no room after packing"))
}

/// The entries in use.
fn used_entries<'a>(
    layout: &Layout,
    at: FileBlock,
    image: &'a [u8],
) -> Result<Vec<Entry<'a>>, FsError> {
    let mut kept = Vec::new();
    for entry in block::entries(image, layout.usable) {
        let entry = entry.map_err(|detail| layout.corrupt(at, detail))?;
        if entry.ino != 0 {
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
    kept: &[Entry<'_>],
    new: Option<(&[u8], Ino, u8)>,
) -> Result<Option<Slot>, FsError> {
    let bad = |detail| layout.corrupt(at, detail);
    block::pack(bytes, layout.usable, kept.iter().copied()).map_err(bad)?;
    let mut slot = None;
    if let Some((name, ino, file_type)) = new {
        let room = block::room(bytes, layout.usable, block::size_of(name.len()))
            .map_err(bad)?
            .ok_or_else(|| bad("no room in a block that was split"))?;
        let offset =
            block::insert_at(bytes, layout.usable, room, ino.0, name, file_type).map_err(bad)?;
        slot = Some(Slot {
            block: at,
            offset: offset as u16,
        });
    }
    layout.seal(bytes);
    Ok(slot)
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
#[expect(clippy::too_many_arguments, reason = "an entry is four values")]
pub(super) fn split_leaf(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    tree: &Tree,
    path: &Path,
    hash: u32,
    name: &[u8],
    ino: Ino,
    file_type: u8,
) -> Result<Slot, FsError> {
    let at = path.leaf;
    let image = leaf(dir, layout, at)?;
    let mut sorted: Vec<(u32, Entry<'_>)> = used_entries(layout, at, &image)?
        .into_iter()
        .map(|entry| (tree.hash(entry.name), entry))
        .collect();
    sorted.sort_by_key(|(hash, _)| *hash);
    if sorted.len() < 2 {
        return Err(layout.corrupt(at, "one entry fills the block"));
    }
    let sizes: Vec<usize> = sorted
        .iter()
        .map(|(_, entry)| block::size_of(entry.name.len()))
        .collect();
    let split = split_point(layout, &sizes);
    let bound = sorted[split].0;
    let continued = u32::from(bound == sorted[split - 1].0);
    let (stay, go): (Vec<Entry<'_>>, Vec<Entry<'_>>) = (
        sorted[..split].iter().map(|(_, entry)| *entry).collect(),
        sorted[split..].iter().map(|(_, entry)| *entry).collect(),
    );
    let new = (name, ino, file_type);
    let (for_low, for_high) = if hash >= bound {
        (None, Some(new))
    } else {
        (Some(new), None)
    };
    let mut low = vec![0; layout.block_size];
    let mut high = vec![0; layout.block_size];
    let slot_low = fill_leaf(layout, at, &mut low, &stay, for_low)?;
    let slot_high = fill_leaf(layout, at, &mut high, &go, for_high)?;

    let added = dir.append()?;
    dir.modify(at)?.copy_from_slice(&low);
    dir.modify(added)?.copy_from_slice(&high);
    add_to_index(
        dir,
        layout,
        path,
        path.frames.len() - 1,
        bound | continued,
        added,
    )?;
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
    bound: u32,
    child: FileBlock,
) -> Result<(), FsError> {
    let frame = &path.frames[level];
    let bytes = dir.modify(frame.block)?;
    node::insert_after(
        bytes,
        frame.kind,
        layout.seed,
        &frame.shape,
        frame.at,
        node::entry(bound, child.0),
    );
    Ok(())
}

/// Makes room in the index above a full block of entries: splits the index block below the lowest one that has room, or
/// puts one more level under the root. `NoSpace` when the volume allows no more levels. The caller searches again.
pub(super) fn split_index(
    dir: &mut impl DirFileMut,
    layout: &Layout,
    tree: &Tree,
    path: &Path,
) -> Result<(), FsError> {
    let Some(parent) = path.frames.iter().rposition(|frame| !frame.is_full()) else {
        return add_level(dir, layout, tree, path);
    };
    let Some(full) = path.frames.get(parent + 1) else {
        return Ok(());
    };
    let shape = &full.shape;
    let stay = shape.count / 2;
    let bound = shape.hash(&full.image, stay);
    let low = shape.entries(&full.image, 0, stay);
    let high = shape.entries(&full.image, stay, shape.count);
    let added = dir.append()?;
    node::fill(dir.modify(added)?, Kind::Node, layout.seed, &high);
    node::fill(dir.modify(full.block)?, full.kind, layout.seed, &low);
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
    let root = &path.frames[0];
    let entries = root.shape.entries(&root.image, 0, root.shape.count);
    let added = dir.append()?;
    node::fill(dir.modify(added)?, Kind::Node, layout.seed, &entries);
    let bytes = dir.modify(root.block)?;
    bytes[ROOT_INFO + 6] = tree.levels as u8;
    node::fill(bytes, Kind::Root, layout.seed, &node::entry(0, added.0));
    Ok(())
}

/// Gives a linear directory of one block an index: its entries move to block 1, block 0 becomes the root. `false`, and
/// nothing changes, when its first block does not begin as ext4 lays it out or the volume's hash is unknown.
pub(crate) fn convert(dir: &mut impl DirFileMut, layout: &Layout) -> Result<bool, FsError> {
    let version = dir.sb().s_def_hash_version();
    if !super::KNOWN_HASHES.contains(&version) {
        return Ok(false);
    }
    let first = FileBlock(0);
    let image = leaf(dir, layout, first)?;
    let mut entries = used_entries(layout, first, &image)?;
    let dots = entries.len() >= 2
        && entries[0].name == b"."
        && entries[0].offset == 0
        && entries[0].rec_len == block::size_of(1)
        && entries[1].name == b".."
        && entries[1].offset == block::size_of(1);
    if !dots {
        return Ok(false);
    }
    let own = layout.entry_ino(first, &entries[0])?;
    let parent = layout.entry_ino(first, &entries[1])?;
    let kept = entries.split_off(2);
    let mut moved = vec![0; layout.block_size];
    fill_leaf(layout, first, &mut moved, &kept, None)?;

    let added = dir.append()?;
    dir.modify(added)?.copy_from_slice(&moved);
    let directory = layout.stored_type(FileType::Directory);
    let (seed, block_size) = (layout.seed, layout.block_size);
    let bytes = dir.modify(first)?;
    bytes.fill(0);
    let dot = block::size_of(1);
    block::put(bytes, 0, dot, own.0, b".", directory);
    block::put(bytes, dot, block_size - dot, parent.0, b"..", directory);
    bytes[ROOT_INFO + 4] = version;
    bytes[ROOT_INFO + 5] = INFO_LENGTH;
    node::fill(bytes, Kind::Root, seed, &node::entry(0, added.0));
    let flags = dir.flags();
    dir.set_flags(flags | flags::INDEX)?;
    Ok(true)
}
