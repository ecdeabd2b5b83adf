//! Rename, with its variants: replace, refuse to replace, exchange. Owns the rules about directories that change their
//! parent: `..`, link counts, and that none comes to lie inside itself.

use crate::ext4::Inode;
use crate::ext4::inode::{flags, reserved};
use crate::fs::blocks::BlocksMut;
use crate::fs::dir::Found;
use crate::fs::dirfile::DirView;
use crate::fs::inode::InodeStore;
use crate::fs::namei::{NAME_CREDITS, Names, add_dir_link, drop_dir_link};
use crate::fs::txn::Op;
use crate::fs::{Caller, FileKind, Fs, FsError, RenameFlags, dir};
use crate::units::Ino;

/// Steps up from a directory to the root at most: longer than any path that can be made, so that a loop on disk ends.
const MAX_DEPTH: usize = 1 << 16;

/// A name and what it names.
struct End<'n> {
    parent: Ino,
    name: &'n [u8],
    ino: Ino,
    inode: Inode,
}

impl End<'_> {
    fn kind(&self) -> FileKind {
        FileKind::from_mode(self.inode.i_mode())
    }
}

impl Fs {
    /// Moves a name.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        self.rename_by(parent, name, new_parent, new_name, flags, Caller::default())
    }

    /// As `rename`, on somebody's behalf.
    pub fn rename_by(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
        caller: Caller,
    ) -> Result<(), FsError> {
        dir::check_name(name)?;
        dir::check_name(new_name)?;
        for name in [name, new_name] {
            if name == b"." || name == b".." {
                return Err(FsError::Refused(libc::EBUSY));
            }
        }
        if flags.noreplace && flags.exchange {
            return Err(FsError::Refused(libc::EINVAL));
        }
        let nameless = self.change_by(caller, 2 * NAME_CREDITS, |op| {
            let from = op.directory(parent)?;
            let to = op.living_directory(new_parent)?;
            let found = op.must_exist(parent, &from, name)?;
            let target = op.find(new_parent, &to, new_name)?;
            if flags.noreplace && target.is_some() {
                return Err(FsError::Refused(libc::EEXIST));
            }
            if target.is_some_and(|target| target.ino == found.ino) {
                return Ok(None);
            }
            let source = op.end(parent, name, found)?;
            let target = target
                .map(|found| op.end(new_parent, new_name, found))
                .transpose()?;
            if parent != new_parent {
                if source.inode.is_dir() {
                    op.check_not_inside(new_parent, source.ino)?;
                }
                if flags.exchange && target.as_ref().is_some_and(|t| t.inode.is_dir()) {
                    let inner = target.as_ref().map_or(source.ino, |t| t.ino);
                    op.check_not_inside(parent, inner)?;
                }
            }
            match (target, flags.exchange) {
                (None, true) => Err(FsError::Refused(libc::ENOENT)),
                (Some(target), true) => op.exchange(source, target).map(|()| None),
                (target, false) => op.move_name(source, new_parent, new_name, target),
            }
        })?;
        self.delete_unless_held(nameless);
        Ok(())
    }
}

impl Op<'_> {
    fn end<'n>(&self, parent: Ino, name: &'n [u8], found: Found) -> Result<End<'n>, FsError> {
        let inode = self.named_inode(found.ino, parent)?;
        if inode.has_flag(flags::IMMUTABLE | flags::APPEND) {
            return Err(FsError::Refused(libc::EPERM));
        }
        Ok(End {
            parent,
            name,
            ino: found.ino,
            inode,
        })
    }

    /// EINVAL when `ino` is `ancestor` or lies inside it.
    fn check_not_inside(&self, ino: Ino, ancestor: Ino) -> Result<(), FsError> {
        let mut at = ino;
        for _ in 0..MAX_DEPTH {
            if at == ancestor {
                return Err(FsError::Refused(libc::EINVAL));
            }
            if at == reserved::ROOT {
                return Ok(());
            }
            let inode = self.directory(at)?;
            let directory = DirView {
                store: self,
                ino: at,
                inode: &inode,
            };
            at = dir::parent(&directory)?;
        }
        Err(FsError::Corrupt {
            what: "directory",
            ino: Some(ino),
            block: None,
            detail: "its '..' never lead to the root".into(),
        })
    }

    fn move_name(
        &mut self,
        source: End<'_>,
        new_parent: Ino,
        new_name: &[u8],
        target: Option<End<'_>>,
    ) -> Result<Option<Ino>, FsError> {
        let is_dir = source.inode.is_dir();
        if let Some(target) = &target {
            match (is_dir, target.inode.is_dir()) {
                (true, false) => return Err(FsError::Refused(libc::ENOTDIR)),
                (false, true) => return Err(FsError::Refused(libc::EISDIR)),
                (true, true) => self.must_be_empty(target.ino, &target.inode)?,
                (false, false) => {}
            }
        }
        let moves_dir = is_dir && source.parent != new_parent;
        // A directory that replaces one takes over its place in the parent's count.
        let new_link = moves_dir && target.is_none();
        let lost_link = is_dir && target.is_some() && !moves_dir;
        if new_link {
            let to = self.directory(new_parent)?;
            self.check_dir_links(&to)?;
        }
        let code = source.kind();
        self.edit_directory(new_parent, true, |edit| {
            if new_link {
                add_dir_link(&mut edit.inode);
            }
            if lost_link {
                drop_dir_link(&mut edit.inode);
            }
            match &target {
                Some(_) => dir::replace(edit, new_name, source.ino, code).map(drop),
                None => dir::insert(edit, new_name, source.ino, code).map(drop),
            }
        })?;
        self.edit_directory(source.parent, true, |edit| {
            if moves_dir {
                drop_dir_link(&mut edit.inode);
            }
            dir::remove(edit, source.name).map(drop)
        })?;
        self.moved(source.ino, moves_dir.then_some(new_parent))?;
        self.touch_name(source.parent, source.name);
        self.touch_name(new_parent, new_name);
        match target {
            None => Ok(None),
            Some(target) if is_dir => self.bury_directory(target.ino, target.inode),
            Some(target) => self.drop_link(target.ino, target.inode),
        }
    }

    fn exchange(&mut self, one: End<'_>, other: End<'_>) -> Result<(), FsError> {
        let apart = one.parent != other.parent;
        let (one_dir, other_dir) = (one.inode.is_dir(), other.inode.is_dir());
        if apart && one_dir != other_dir {
            let gains = if one_dir { other.parent } else { one.parent };
            let gains = self.directory(gains)?;
            self.check_dir_links(&gains)?;
        }
        for (here, there) in [(&one, &other), (&other, &one)] {
            let (loses, gains) = (here.inode.is_dir(), there.inode.is_dir());
            let code = there.kind();
            self.edit_directory(here.parent, true, |edit| {
                if apart && gains && !loses {
                    add_dir_link(&mut edit.inode);
                }
                if apart && loses && !gains {
                    drop_dir_link(&mut edit.inode);
                }
                dir::replace(edit, here.name, there.ino, code).map(drop)
            })?;
        }
        self.moved(one.ino, (apart && one_dir).then_some(other.parent))?;
        self.moved(other.ino, (apart && other_dir).then_some(one.parent))?;
        self.touch_name(one.parent, one.name);
        self.touch_name(other.parent, other.name);
        Ok(())
    }

    /// An inode has another name now, and, if it is a directory that changed its parent, another `..`.
    fn moved(&mut self, ino: Ino, new_parent: Option<Ino>) -> Result<(), FsError> {
        if let Some(parent) = new_parent {
            self.edit_directory(ino, false, |edit| dir::set_parent(edit, parent))?;
            self.touch_name(ino, b"..");
        }
        let mut inode = self.inode(ino)?;
        inode.set_i_ctime(self.now());
        self.put_inode(ino, &mut inode, false)
    }
}
