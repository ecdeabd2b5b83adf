//! Extended attributes of an inode: in the inode behind its fields, and in one block of their own (`i_file_acl`), which
//! inodes may share. Owns placement, sharing and the names programs use; the layouts are `ext4::xattr`, the arithmetic
//! of access control lists is `ext4::acl`. Never decides who may read or set what, never touches `i_ctime` or `i_blocks`: how
//! many blocks came or went is reported.
//!
//! Placement is the kernel's: into the inode if it fits there, else into the block; `NoSpace` if it fits in neither.
//! A block with more than one owner is never changed but for its count: it is copied first.
//!
//! Invariants: an attribute is in one place only; a block lives while its count is above zero; a failed change leaves
//! inode and block as they were.

mod names;

use crate::ext4::xattr::{self as noun, EXT4_XATTR_REFCOUNT_MAX, XattrSet};
use crate::ext4::{Acl, Inode, Superblock};
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::{FsError, XattrMode};
use crate::units::{BlockNo, BlockRange, Ino};

use names::{Name, Space};

/// Most bytes of a value (kernel: `XATTR_SIZE_MAX`); more is E2BIG.
const VALUE_MAX: usize = 65_536;

/// What a change did beside the attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Blocks that the inode has more (1) or fewer (-1) than before: for `i_blocks`.
    pub blocks: i64,
}

/// The volume's block of attributes, as read.
struct Block {
    at: BlockNo,
    refcount: u32,
    attributes: XattrSet,
}

fn corrupt(ino: Ino, block: Option<BlockNo>, detail: impl ToString) -> FsError {
    FsError::Corrupt {
        what: "extended attributes",
        ino: Some(ino),
        block,
        detail: detail.to_string(),
    }
}

fn read_inode(inode: &Inode, ino: Ino) -> Result<XattrSet, FsError> {
    XattrSet::from_ibody(inode.ibody()).map_err(|why| corrupt(ino, None, why))
}

fn read_block(blocks: &impl Blocks, inode: &Inode, ino: Ino) -> Result<Option<Block>, FsError> {
    let Some(at) = inode.i_file_acl(blocks.sb()) else {
        return Ok(None);
    };
    check_place(blocks.sb(), ino, at)?;
    let image = blocks.get(at)?;
    let bad = |why| corrupt(ino, Some(at), why);
    noun::verify_block(blocks.sb(), at, &image).map_err(bad)?;
    let refcount = noun::h_refcount(&image).map_err(bad)?;
    if refcount == 0 || refcount > EXT4_XATTR_REFCOUNT_MAX {
        let detail = format!("h_refcount is {refcount}");
        return Err(corrupt(ino, Some(at), detail));
    }
    Ok(Some(Block {
        at,
        refcount,
        attributes: XattrSet::from_block(&image).map_err(bad)?,
    }))
}

fn check_place(sb: &Superblock, ino: Ino, at: BlockNo) -> Result<(), FsError> {
    if at.0 <= u64::from(sb.s_first_data_block()) || at.0 >= sb.s_blocks_count() {
        return Err(corrupt(ino, Some(at), "i_file_acl is outside the volume"));
    }
    Ok(())
}

/// The value of an attribute, `None` when the inode has none of that name. Access control lists come in the form of the
/// system call. EOPNOTSUPP for names that ext4 does not have.
pub fn get(
    blocks: &impl Blocks,
    inode: &Inode,
    ino: Ino,
    name: &[u8],
) -> Result<Option<Vec<u8>>, FsError> {
    let name = Name::parse(name)?;
    let Some(value) = get_raw(blocks, inode, ino, &name)? else {
        return Ok(None);
    };
    if name.space.is_acl() {
        let acl = Acl::from_disk(&value).map_err(|why| corrupt(ino, None, why))?;
        return Ok(Some(acl.to_user()));
    }
    Ok(Some(value))
}

fn get_raw(
    blocks: &impl Blocks,
    inode: &Inode,
    ino: Ino,
    name: &Name<'_>,
) -> Result<Option<Vec<u8>>, FsError> {
    let (index, rest) = (name.space.index(), name.rest);
    let found =
        noun::find_in_ibody(inode.ibody(), index, rest).map_err(|why| corrupt(ino, None, why))?;
    if let Some(value) = found {
        return Ok(Some(value.to_vec()));
    }
    let block = read_block(blocks, inode, ino)?;
    Ok(block.and_then(|block| block.attributes.get(index, rest).map(<[u8]>::to_vec)))
}

/// The names of all attributes, as programs know them.
pub fn list(blocks: &impl Blocks, inode: &Inode, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
    let in_inode = read_inode(inode, ino)?;
    let in_block = read_block(blocks, inode, ino)?;
    let in_block = in_block.iter().flat_map(|block| block.attributes.iter());
    Ok(in_inode
        .iter()
        .chain(in_block)
        .filter_map(names::full_name)
        .collect())
}

/// Sets an attribute. `goal`: near which block to put a new block. A value for `system.posix_acl_access` sets the inode's
/// mode too, and is not stored when the mode says it all; an empty list removes.
///
/// EEXIST, ENODATA by `mode`; ERANGE for long names, E2BIG for values over 64 KiB, `NoSpace` for those that do not fit;
/// EINVAL for a bad list, EACCES for a default list on what is no directory.
pub fn set(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
) -> Result<Change, FsError> {
    let name = Name::parse(name)?;
    if value.len() > VALUE_MAX {
        return Err(FsError::Refused(libc::E2BIG));
    }
    match name.space {
        Space::AclAccess => {
            let acl = names::acl_from_user(value)?;
            set_access_acl(blocks, inode, ino, goal, acl.as_ref())
        }
        Space::AclDefault => {
            let acl = names::acl_from_user(value)?;
            set_default_acl(blocks, inode, ino, goal, acl.as_ref())
        }
        _ => set_raw(blocks, inode, ino, goal, &name, Some(value), mode),
    }
}

/// Removes an attribute; ENODATA when it is not there (lists excepted, as in the kernel).
pub fn remove(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    name: &[u8],
) -> Result<Change, FsError> {
    let name = Name::parse(name)?;
    let mode = if name.space.is_acl() {
        XattrMode::Any
    } else {
        XattrMode::Replace
    };
    set_raw(blocks, inode, ino, BlockNo(0), &name, None, mode)
}

/// Sets or removes the access list, and the permissions it stands for in `i_mode`.
pub fn set_access_acl(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    acl: Option<&Acl>,
) -> Result<Change, FsError> {
    if inode.is_symlink() {
        return Err(FsError::Refused(libc::EOPNOTSUPP));
    }
    let name = Name::of_acl(Space::AclAccess);
    let (stored, mode) = match acl {
        None => (None, inode.i_mode()),
        Some(acl) => {
            let (permissions, is_mode) = acl.equivalent_mode();
            let mode = inode.i_mode() & !0o777 | permissions;
            (if is_mode { None } else { Some(acl.to_disk()) }, mode)
        }
    };
    let change = set_raw(
        blocks,
        inode,
        ino,
        goal,
        &name,
        stored.as_deref(),
        XattrMode::Any,
    )?;
    inode.set_i_mode(mode);
    Ok(change)
}

/// Sets or removes the list that new files in a directory take over.
pub fn set_default_acl(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    acl: Option<&Acl>,
) -> Result<Change, FsError> {
    if inode.is_symlink() {
        return Err(FsError::Refused(libc::EOPNOTSUPP));
    }
    if !inode.is_dir() && acl.is_some() {
        return Err(FsError::Refused(libc::EACCES));
    }
    let name = Name::of_acl(Space::AclDefault);
    let stored = acl.map(Acl::to_disk);
    set_raw(
        blocks,
        inode,
        ino,
        goal,
        &name,
        stored.as_deref(),
        XattrMode::Any,
    )
}

/// The access list, if the inode has more than its mode.
pub fn access_acl(blocks: &impl Blocks, inode: &Inode, ino: Ino) -> Result<Option<Acl>, FsError> {
    get_acl(blocks, inode, ino, Space::AclAccess)
}

/// The list that new files in this directory take over.
pub fn default_acl(blocks: &impl Blocks, inode: &Inode, ino: Ino) -> Result<Option<Acl>, FsError> {
    get_acl(blocks, inode, ino, Space::AclDefault)
}

fn get_acl(
    blocks: &impl Blocks,
    inode: &Inode,
    ino: Ino,
    space: Space,
) -> Result<Option<Acl>, FsError> {
    get_raw(blocks, inode, ino, &Name::of_acl(space))?
        .map(|value| Acl::from_disk(&value).map_err(|why| corrupt(ino, None, why)))
        .transpose()
}

/// Sets the permission bits (and suid, sgid, sticky) of `i_mode`, and what of the access list stands for them.
pub fn chmod(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    permissions: u16,
) -> Result<Change, FsError> {
    let mut change = Change::default();
    if !inode.is_symlink()
        && let Some(mut acl) = access_acl(blocks, inode, ino)?
    {
        acl.chmod(permissions);
        let value = acl.to_disk();
        let name = Name::of_acl(Space::AclAccess);
        change = set_raw(
            blocks,
            inode,
            ino,
            goal,
            &name,
            Some(&value),
            XattrMode::Any,
        )?;
    }
    inode.set_i_mode(inode.i_mode() & !0o7777 | permissions & 0o7777);
    Ok(change)
}

/// Gives a new inode, whose `i_mode` has the mode asked for, what its directory's default list says: mode and lists.
/// Without such a list `umask` cuts the mode. For symlinks nothing happens.
pub fn inherit(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    parent_default: Option<&Acl>,
    umask: u16,
) -> Result<Change, FsError> {
    if inode.is_symlink() {
        return Ok(Change::default());
    }
    let Some(default) = parent_default else {
        inode.set_i_mode(inode.i_mode() & !(umask & 0o777));
        return Ok(Change::default());
    };
    let (access, mode) = default.inherit(inode.i_mode());
    let (_, mode_says_all) = access.equivalent_mode();
    inode.set_i_mode(mode);
    let mut wanted = Vec::new();
    if inode.is_dir() {
        wanted.push((Space::AclDefault, default.to_disk()));
    }
    if !mode_says_all {
        wanted.push((Space::AclAccess, access.to_disk()));
    }
    let mut sum = Change::default();
    for (space, value) in wanted {
        let name = Name::of_acl(space);
        let mode = XattrMode::Any;
        sum.blocks += set_raw(blocks, inode, ino, goal, &name, Some(&value), mode)?.blocks;
    }
    Ok(sum)
}

/// Gives up the inode's block of attributes (the inode is being deleted): frees it with its last owner.
pub fn release(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
) -> Result<Change, FsError> {
    let Some(block) = read_block(blocks, inode, ino)? else {
        return Ok(Change::default());
    };
    drop_owner(blocks, ino, &block)?;
    inode.set_i_file_acl(None);
    Ok(Change { blocks: -1 })
}

/// Takes one owner from a block.
fn drop_owner(blocks: &mut impl BlocksMut, ino: Ino, block: &Block) -> Result<(), FsError> {
    if block.refcount <= 1 {
        return blocks.free(BlockRange::new(block.at, 1));
    }
    let sb = blocks.sb().clone();
    let bytes = blocks.modify(block.at)?;
    noun::set_h_refcount(bytes, block.refcount - 1)
        .and_then(|()| noun::update_block(&sb, block.at, bytes))
        .map_err(|why| corrupt(ino, Some(block.at), why))
}

/// Sets (`Some`) or removes (`None`) an attribute by its name on disk.
fn set_raw(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    name: &Name<'_>,
    value: Option<&[u8]>,
    mode: XattrMode,
) -> Result<Change, FsError> {
    let (index, rest) = (name.space.index(), name.rest);
    let mut in_inode = read_inode(inode, ino)?;
    let block = read_block(blocks, inode, ino)?;
    let mut in_block = block
        .as_ref()
        .map(|block| block.attributes.clone())
        .unwrap_or_default();
    let old_inode = in_inode.remove(index, rest);
    let old_block = in_block.remove(index, rest);
    let old = old_inode.as_ref().or(old_block.as_ref());
    match mode {
        XattrMode::Create if old.is_some() => return Err(FsError::Refused(libc::EEXIST)),
        XattrMode::Replace if old.is_none() => return Err(FsError::Refused(libc::ENODATA)),
        _ => {}
    }
    if old.map(Vec::as_slice) == value {
        return Ok(Change::default());
    }
    let mut change = Change::default();
    let Some(value) = value else {
        if old_block.is_some() {
            change = store_in_block(blocks, inode, ino, goal, block, &in_block)?;
        }
        if old_inode.is_some() {
            store_in_inode(inode, ino, &in_inode)?;
        }
        return Ok(change);
    };
    let no_room = |_| FsError::NoSpace;
    let mut with_new = in_inode.clone();
    with_new.set(index, rest, value).map_err(no_room)?;
    if with_new.fits_ibody(inode.ibody().len()) {
        // The block first: it is what can fail.
        if old_block.is_some() {
            change = store_in_block(blocks, inode, ino, goal, block, &in_block)?;
        }
        store_in_inode(inode, ino, &with_new)?;
        return Ok(change);
    }
    in_block.set(index, rest, value).map_err(no_room)?;
    change = store_in_block(blocks, inode, ino, goal, block, &in_block)?;
    if old_inode.is_some() {
        store_in_inode(inode, ino, &in_inode)?;
    }
    Ok(change)
}

fn store_in_inode(inode: &mut Inode, ino: Ino, attributes: &XattrSet) -> Result<(), FsError> {
    attributes
        .encode_ibody(inode.ibody_mut())
        .map_err(|why| corrupt(ino, None, why))
}

/// Makes these the attributes in the inode's block: in place, in a copy when it is shared, in a new one when there is
/// none; frees it when there are none left.
fn store_in_block(
    blocks: &mut impl BlocksMut,
    inode: &mut Inode,
    ino: Ino,
    goal: BlockNo,
    block: Option<Block>,
    attributes: &XattrSet,
) -> Result<Change, FsError> {
    if attributes.is_empty() {
        return match block {
            None => Ok(Change::default()),
            Some(_) => release(blocks, inode, ino),
        };
    }
    let sb = blocks.sb().clone();
    if !attributes.fits_block(sb.block_size() as usize) {
        return Err(FsError::NoSpace);
    }
    if let Some(block) = &block
        && block.refcount == 1
    {
        let bytes = blocks.modify(block.at)?;
        write_block(&sb, ino, block.at, bytes, attributes)?;
        return Ok(Change::default());
    }
    let near = block.as_ref().map_or(goal, |block| block.at);
    let at = blocks.alloc(near, 1, 1)?.start;
    let bytes = blocks.create(at)?;
    write_block(&sb, ino, at, bytes, attributes)?;
    let had_one = block.is_some();
    if let Some(shared) = block {
        drop_owner(blocks, ino, &shared)?;
    }
    inode.set_i_file_acl(Some(at));
    Ok(Change {
        blocks: if had_one { 0 } else { 1 },
    })
}

fn write_block(
    sb: &Superblock,
    ino: Ino,
    at: BlockNo,
    bytes: &mut [u8],
    attributes: &XattrSet,
) -> Result<(), FsError> {
    attributes
        .encode_block(bytes, 1)
        .map_err(|why| corrupt(ino, Some(at), why))?;
    noun::update_block(sb, at, bytes).map_err(|why| corrupt(ino, Some(at), why))
}

#[cfg(test)]
mod tests;
