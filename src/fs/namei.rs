//! Names: making, linking and removing them. Owns the rules of link counts, of what a new inode takes over from its
//! directory, and of when an inode without a name goes. Who may do what is the kernel's business (`default_permissions`).

use crate::ext4::Inode;
use crate::ext4::inode::{flags, split_dev};
use crate::fs::attr::{S_IFDIR, S_IFMT, S_ISGID};
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::dir::Found;
use crate::fs::dirfile::{DirEdit, DirView};
use crate::fs::inode::{InodeStore, attr};
use crate::fs::txn::Op;
use crate::fs::{Attr, Caller, FileKind, Fs, FsError, New, dir, extent, xattr};
use crate::units::{FileBlock, Ino};

/// Most links of an inode (kernel: `EXT4_LINK_MAX`).
const LINK_MAX: u16 = 65_000;

/// Blocks that making, linking or removing one name changes at most: a leaf, two per level of an index of three levels, a
/// level of extent tree each, the directory's and the inode's table block, a block of attributes, a first directory block,
/// and for each of the up to eight blocks allocated its bitmap and descriptor.
pub(crate) const NAME_CREDITS: usize = 48;

/// Longest target of a symbolic link in the inode itself, in bytes.
const FAST_SYMLINK: usize = 59;

impl Fs {
    /// Makes an inode of any type but a symbolic link, and its name.
    pub fn create(&self, parent: Ino, name: &[u8], new: &New) -> Result<Attr, FsError> {
        match FileKind::from_mode(new.mode as u16) {
            FileKind::Symlink | FileKind::Unknown => return Err(FsError::Refused(libc::EINVAL)),
            _ => {}
        }
        dir::check_name(name)?;
        self.change_by(new.caller(), NAME_CREDITS, |op| {
            let directory = op.living_directory(parent)?;
            op.must_not_exist(parent, &directory, name)?;
            let kind = FileKind::from_mode(new.mode as u16);
            if kind == FileKind::Directory {
                op.check_dir_links(&directory)?;
            }
            let (ino, mut inode) = op.new_inode(parent, &directory, new)?;
            match kind {
                FileKind::Directory => {
                    inode.set_i_links_count(2);
                    op.put_inode(ino, &mut inode, true)?;
                    op.edit_directory(ino, false, |edit| dir::init(edit, parent))?;
                    inode = op.inode(ino)?;
                }
                FileKind::BlockDevice | FileKind::CharDevice => {
                    let (major, minor) = split_dev(new.rdev);
                    inode.set_rdev(major, minor);
                    op.put_inode(ino, &mut inode, true)?;
                }
                _ => op.put_inode(ino, &mut inode, true)?,
            }
            op.edit_directory(parent, true, |edit| {
                if kind == FileKind::Directory {
                    add_dir_link(&mut edit.inode);
                }
                dir::insert(edit, name, ino, kind).map(drop)
            })?;
            op.touch_name(parent, name);
            Ok(attr(op, ino, &inode))
        })
    }

    /// Makes a symbolic link.
    pub fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<Attr, FsError> {
        dir::check_name(name)?;
        if target.is_empty() {
            return Err(FsError::Refused(libc::ENOENT));
        }
        if target.len() >= self.block_size {
            return Err(FsError::Refused(libc::ENAMETOOLONG));
        }
        let new = New {
            mode: u32::from(FileKind::Symlink.mode()) | 0o777,
            uid,
            gid,
            ..New::default()
        };
        self.change_by(new.caller(), NAME_CREDITS, |op| {
            let directory = op.living_directory(parent)?;
            op.must_not_exist(parent, &directory, name)?;
            let (ino, mut inode) = op.new_inode(parent, &directory, &new)?;
            if target.len() <= FAST_SYMLINK {
                let mut i_block = [0; 60];
                i_block[..target.len()].copy_from_slice(target);
                inode.put_flag(flags::EXTENTS, false);
                inode.set_i_block(i_block);
            } else {
                let range = op.add_blocks(ino, &mut inode, FileBlock(0), 1)?;
                op.create(range.start)?[..target.len()].copy_from_slice(target);
            }
            inode.set_i_size(target.len() as u64);
            op.put_inode(ino, &mut inode, true)?;
            op.edit_directory(parent, true, |edit| {
                dir::insert(edit, name, ino, FileKind::Symlink).map(drop)
            })?;
            op.touch_name(parent, name);
            Ok(attr(op, ino, &inode))
        })
    }

    /// One more name for an inode.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        self.link_by(ino, parent, name, Caller::default())
    }

    /// As `link`, on somebody's behalf.
    pub fn link_by(
        &self,
        ino: Ino,
        parent: Ino,
        name: &[u8],
        caller: Caller,
    ) -> Result<Attr, FsError> {
        dir::check_name(name)?;
        self.change_by(caller, NAME_CREDITS, |op| {
            let directory = op.living_directory(parent)?;
            let mut inode = op.inode(ino)?;
            if inode.is_dir() || inode.has_flag(flags::IMMUTABLE | flags::APPEND) {
                return Err(FsError::Refused(libc::EPERM));
            }
            if inode.i_links_count() == 0 {
                return Err(FsError::Refused(libc::ENOENT));
            }
            if inode.i_links_count() >= LINK_MAX {
                return Err(FsError::Refused(libc::EMLINK));
            }
            op.must_not_exist(parent, &directory, name)?;
            inode.set_i_links_count(inode.i_links_count() + 1);
            inode.set_i_ctime(op.now());
            op.put_inode(ino, &mut inode, false)?;
            let kind = FileKind::from_mode(inode.i_mode());
            op.edit_directory(parent, true, |edit| {
                dir::insert(edit, name, ino, kind).map(drop)
            })?;
            op.touch_name(parent, name);
            Ok(attr(op, ino, &inode))
        })
    }

    /// Takes a name away; the inode goes with its last name and last kernel reference.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        dir::check_name(name)?;
        let nameless = self.change(NAME_CREDITS, |op| {
            let directory = op.directory(parent)?;
            let found = op.must_exist(parent, &directory, name)?;
            let inode = op.named_inode(found.ino, parent)?;
            if inode.is_dir() {
                return Err(FsError::Refused(libc::EISDIR));
            }
            if inode.has_flag(flags::IMMUTABLE | flags::APPEND) {
                return Err(FsError::Refused(libc::EPERM));
            }
            op.edit_directory(parent, true, |edit| dir::remove_found(edit, name, &found))?;
            op.touch_name(parent, name);
            op.drop_link(found.ino, inode)
        })?;
        self.delete_unless_held(nameless);
        Ok(())
    }

    /// Takes an empty directory away.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        dir::check_name(name)?;
        if name == b"." {
            return Err(FsError::Refused(libc::EINVAL));
        }
        if name == b".." {
            return Err(FsError::Refused(libc::ENOTEMPTY));
        }
        let nameless = self.change(NAME_CREDITS, |op| {
            let directory = op.directory(parent)?;
            let found = op.must_exist(parent, &directory, name)?;
            let inode = op.named_inode(found.ino, parent)?;
            if !inode.is_dir() {
                return Err(FsError::Refused(libc::ENOTDIR));
            }
            op.must_be_empty(found.ino, &inode)?;
            op.edit_directory(parent, true, |edit| {
                drop_dir_link(&mut edit.inode);
                dir::remove_found(edit, name, &found)
            })?;
            op.touch_name(parent, name);
            op.bury_directory(found.ino, inode)
        })?;
        self.delete_unless_held(nameless);
        Ok(())
    }
}

/// One subdirectory more. The count stays 1 (not kept) once it passed the limit of an indexed directory.
pub(crate) fn add_dir_link(inode: &mut Inode) {
    let links = inode.i_links_count().saturating_add(1);
    let indexed = inode.has_flag(flags::INDEX);
    let kept = !(indexed && (links > LINK_MAX || links == 2));
    inode.set_i_links_count(if kept { links } else { 1 });
}

/// One subdirectory fewer.
pub(crate) fn drop_dir_link(inode: &mut Inode) {
    if inode.i_links_count() > 2 {
        inode.set_i_links_count(inode.i_links_count() - 1);
    }
}

/// What a lookup in a directory needs, reading or changing.
pub(crate) trait Names: InodeStore + Sized {
    /// The inode that a directory entry names: one that is not in use is the directory's fault.
    fn named_inode(&self, ino: Ino, parent: Ino) -> Result<Inode, FsError> {
        match self.inode(ino) {
            Err(FsError::Stale) => Err(FsError::Corrupt {
                what: "directory",
                ino: Some(parent),
                block: None,
                detail: format!("it names inode {ino}, which is not in use"),
            }),
            other => other,
        }
    }

    /// Looks a name up.
    fn find(&self, parent: Ino, inode: &Inode, name: &[u8]) -> Result<Option<Found>, FsError> {
        let directory = DirView {
            store: self,
            ino: parent,
            inode,
        };
        dir::lookup(&directory, name)
    }
}

impl<S: InodeStore> Names for S {}

impl<'a> Op<'a> {
    /// A directory in which names may be made: one that still has a name itself.
    pub fn living_directory(&self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.directory(ino)?;
        if inode.i_links_count() == 0 {
            return Err(FsError::Refused(libc::ENOENT));
        }
        Ok(inode)
    }

    /// EEXIST when the name is there.
    pub fn must_not_exist(&self, ino: Ino, inode: &Inode, name: &[u8]) -> Result<(), FsError> {
        match self.find(ino, inode, name)? {
            Some(_) => Err(FsError::Refused(libc::EEXIST)),
            None => Ok(()),
        }
    }

    /// ENOENT unless the name is there.
    pub fn must_exist(&self, ino: Ino, inode: &Inode, name: &[u8]) -> Result<Found, FsError> {
        self.find(ino, inode, name)?
            .ok_or(FsError::Refused(libc::ENOENT))
    }

    /// ENOTEMPTY unless there is nothing in the directory.
    pub fn must_be_empty(&self, ino: Ino, inode: &Inode) -> Result<(), FsError> {
        let directory = DirView {
            store: self,
            ino,
            inode,
        };
        if dir::is_empty(&directory)? {
            Ok(())
        } else {
            Err(FsError::Refused(libc::ENOTEMPTY))
        }
    }

    /// EMLINK when the directory can not have one more subdirectory.
    pub fn check_dir_links(&self, inode: &Inode) -> Result<(), FsError> {
        let unlimited = self.sb().has_dir_nlink() && inode.has_flag(flags::INDEX);
        if inode.i_links_count() >= LINK_MAX && !unlimited {
            return Err(FsError::Refused(libc::EMLINK));
        }
        Ok(())
    }

    /// Changes a directory's entries and writes its inode; `times`: it was changed just now.
    pub fn edit_directory<R>(
        &mut self,
        ino: Ino,
        times: bool,
        change: impl FnOnce(&mut DirEdit<'_, 'a>) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let inode = self.directory(ino)?;
        let now = self.now();
        let mut edit = DirEdit {
            op: self,
            ino,
            inode,
        };
        let result = change(&mut edit)?;
        let DirEdit { mut inode, .. } = edit;
        if times {
            inode.set_i_mtime(now);
            inode.set_i_ctime(now);
        }
        self.put_inode(ino, &mut inode, true)?;
        Ok(result)
    }

    /// A new inode with what it takes over from its directory. The caller completes and writes it.
    fn new_inode(
        &mut self,
        parent: Ino,
        directory: &Inode,
        new: &New,
    ) -> Result<(Ino, Inode), FsError> {
        let kind = FileKind::from_mode(new.mode as u16);
        let ino = self.alloc_inode(parent, kind == FileKind::Directory)?;
        let now = self.now();
        let mut inode = Inode::new(self.sb());
        let mut mode = new.mode & (S_IFMT | 0o7777);
        let mut gid = new.gid;
        if u32::from(directory.i_mode()) & S_ISGID != 0 {
            gid = directory.i_gid();
            if mode & S_IFMT == S_IFDIR {
                mode |= S_ISGID;
            }
        }
        inode.set_i_mode(mode as u16);
        inode.set_i_uid(new.uid);
        inode.set_i_gid(gid);
        inode.set_i_links_count(1);
        inode.set_i_generation(self.fs.random.u32());
        inode.set_i_atime(now);
        inode.set_i_ctime(now);
        inode.set_i_mtime(now);
        inode.set_i_crtime(now);
        let mut inherited = directory.i_flags() & flags::INHERITED;
        inherited &= match kind {
            FileKind::Directory => u32::MAX,
            FileKind::Regular => !flags::DIRECTORY_ONLY,
            _ => flags::NODUMP | flags::NOATIME,
        };
        inode.set_i_flags(inherited);
        if inode.has_flag(flags::PROJINHERIT) || directory.has_flag(flags::PROJINHERIT) {
            inode.set_i_projid(directory.i_projid());
        }
        if matches!(
            kind,
            FileKind::Regular | FileKind::Directory | FileKind::Symlink
        ) {
            inode.put_flag(flags::EXTENTS, true);
            let mut root = inode.i_block();
            extent::init(&mut root);
            inode.set_i_block(root);
        }
        let default = xattr::default_acl(self, directory, parent)?;
        let goal = self.goal_of(ino);
        let change = xattr::inherit(
            self,
            &mut inode,
            ino,
            goal,
            default.as_ref(),
            (new.umask & 0o777) as u16,
        )?;
        self.add_i_blocks(&mut inode, change.blocks)?;
        Ok((ino, inode))
    }

    /// One name fewer; the inode if that was the last one (it is an orphan then).
    pub fn drop_link(&mut self, ino: Ino, mut inode: Inode) -> Result<Option<Ino>, FsError> {
        let links = inode.i_links_count().saturating_sub(1);
        if links == 0 && inode.is_reg() && !inode.has_extents() && inode.i_blocks(self.sb()) > 0 {
            // Its blocks could not be freed.
            self.must_have_extents(ino, &inode)?;
        }
        inode.set_i_links_count(links);
        inode.set_i_ctime(self.now());
        self.put_inode(ino, &mut inode, false)?;
        if links > 0 {
            return Ok(None);
        }
        self.add_orphan(ino)?;
        Ok(Some(ino))
    }

    /// A directory that lost its name.
    pub fn bury_directory(&mut self, ino: Ino, mut inode: Inode) -> Result<Option<Ino>, FsError> {
        let now = self.now();
        inode.set_i_links_count(0);
        inode.set_i_size(0);
        inode.set_i_ctime(now);
        inode.set_i_mtime(now);
        self.put_inode(ino, &mut inode, true)?;
        self.add_orphan(ino)?;
        Ok(Some(ino))
    }
}
