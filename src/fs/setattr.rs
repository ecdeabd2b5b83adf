//! Changing attributes: mode, owner, times, length, extended attributes; and statfs. Owns what follows from a change:
//! set-user-id bits and capabilities that go with a new owner, lists that follow the mode.

use std::time::Duration;

use crate::ext4::Inode;
use crate::ext4::inode::flags;
use crate::fs::alloc::kept_for_trees;
use crate::fs::attr::{S_ISGID, S_ISUID, S_IXGRP};
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::inode::{InodeStore, attr};
use crate::fs::truncate::STEP_CREDITS;
use crate::fs::txn::Op;
use crate::fs::{Attr, Caller, Fs, FsError, NAME_MAX, SetAttr, SetTime, StatFs, XattrMode, xattr};
use crate::units::Ino;

/// Blocks that a change of attributes changes at most: the inode, two blocks of attributes with their bitmaps and
/// descriptors, the tail block of a file, the orphan list.
pub(crate) const ATTR_CREDITS: usize = 24;

const CAPABILITY: &[u8] = b"security.capability";

impl Fs {
    /// Changes attributes; what they are afterwards.
    pub fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, FsError> {
        let state = self.inodes.get(ino, self.committed());
        // A new length excludes readers and writers of the data.
        let _data = change.size.map(|_| state.data.write());
        let credits = ATTR_CREDITS + change.size.map_or(0, |_| STEP_CREDITS);
        let (result, more) = self.change(credits, |op| {
            let mut inode = op.inode(ino)?;
            if inode.has_flag(flags::IMMUTABLE)
                || (inode.has_flag(flags::APPEND) && change.size.is_some())
            {
                return Err(FsError::Refused(libc::EPERM));
            }
            let now = op.now();
            let owner_changes = change.uid.is_some() || change.gid.is_some();
            if change.kill_suidgid || change.size.is_some() || (owner_changes && !inode.is_dir()) {
                let ids = change.kill_suidgid || (owner_changes && !inode.is_dir());
                op.drop_privileges(ino, &mut inode, ids)?;
            }
            if let Some(uid) = change.uid {
                inode.set_i_uid(uid);
            }
            if let Some(gid) = change.gid {
                inode.set_i_gid(gid);
            }
            if let Some(mode) = change.mode {
                let goal = op.goal_of(ino);
                let permissions = (mode & 0o7777) as u16;
                let blocks = xattr::chmod(op, &mut inode, ino, goal, permissions)?.blocks;
                op.add_i_blocks(&mut inode, blocks)?;
            }
            let mut more = false;
            if let Some(size) = change.size {
                more = op.resize(ino, &mut inode, size)?;
                inode.set_i_mtime(now);
            }
            let time = |set: SetTime| match set {
                SetTime::Now => now,
                SetTime::At(at) => (at.secs, at.nanos),
            };
            if let Some(atime) = change.atime {
                inode.set_i_atime(time(atime));
            }
            if let Some(mtime) = change.mtime {
                inode.set_i_mtime(time(mtime));
            }
            inode.set_i_ctime(change.ctime.map_or(now, |at| (at.secs, at.nanos)));
            op.put_inode(ino, &mut inode, change.size.is_some())?;
            if more {
                op.add_orphan(ino)?;
            }
            let inode = op.inode(ino)?;
            Ok((attr(op, ino, &inode), more))
        })?;
        if more {
            self.cut(ino)?;
            return self.getattr(ino);
        }
        Ok(result)
    }

    /// The value of an extended attribute; ENODATA when there is none.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let inode = view.inode(ino)?;
        xattr::get(&view, &inode, ino, name)?.ok_or(FsError::Refused(libc::ENODATA))
    }

    /// The names of all extended attributes, with their prefixes.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let inode = view.inode(ino)?;
        xattr::list(&view, &inode, ino)
    }

    /// Sets an extended attribute.
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), FsError> {
        self.setxattr_by(ino, name, value, mode, Caller::default())
    }

    /// As `setxattr`, on somebody's behalf.
    pub fn setxattr_by(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        caller: Caller,
    ) -> Result<(), FsError> {
        self.change_xattr(ino, caller, |op, inode| {
            let goal = op.goal_of(ino);
            xattr::set(op, inode, ino, goal, name, value, mode)
        })
    }

    /// Removes an extended attribute; ENODATA when there is none.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.change_xattr(ino, Caller::default(), |op, inode| {
            xattr::remove(op, inode, ino, name)
        })
    }

    fn change_xattr(
        &self,
        ino: Ino,
        caller: Caller,
        work: impl Fn(&mut Op<'_>, &mut Inode) -> Result<xattr::Change, FsError>,
    ) -> Result<(), FsError> {
        let mut changed = false;
        self.change_by(caller, ATTR_CREDITS, |op| {
            let mut inode = op.inode(ino)?;
            if inode.has_flag(flags::IMMUTABLE | flags::APPEND) {
                return Err(FsError::Refused(libc::EPERM));
            }
            let change = work(op, &mut inode)?;
            op.add_i_blocks(&mut inode, change.blocks)?;
            inode.set_i_ctime(op.now());
            op.put_inode(ino, &mut inode, false)?;
            changed = change.blocks != 0;
            Ok(())
        })?;
        if changed {
            self.inodes.get(ino, self.committed()).note_blocks();
        }
        Ok(())
    }

    /// Whether the space that a file takes has changed, other than by `setattr` or `fallocate`, since this was asked last:
    /// a kernel that keeps attributes has to be told. At worst it says so once too often.
    pub fn take_blocks_changed(&self, ino: Ino) -> bool {
        let state = self.inodes.find(ino);
        state.is_some_and(|state| state.take_blocks_changed())
    }

    /// How fine times are: inodes that end before `i_atime_extra` have no nanoseconds.
    pub fn time_granularity(&self) -> Result<Duration, FsError> {
        const I_ATIME_EXTRA_END: u16 = 0x90;
        let _epoch = self.epoch();
        Ok(match self.view()?.sb().inode_size() >= I_ATIME_EXTRA_END {
            true => Duration::from_nanos(1),
            false => Duration::from_secs(1),
        })
    }

    /// Sizes and what is free, as ext4 counts them.
    pub fn statfs(&self) -> Result<StatFs, FsError> {
        let _epoch = self.epoch();
        let view = self.view()?;
        let sb = view.sb();
        let alloc = view.meta.alloc.as_ref();
        let system = alloc.map_or(0, |alloc| alloc.system_blocks());
        let overhead = match u64::from(sb.s_overhead_clusters()) {
            0 => system + u64::from(sb.s_first_data_block()) + self.journal_blocks,
            known => known,
        };
        let (bfree, ffree) = match alloc.filter(|_| self.role == crate::fs::FsRole::Master) {
            Some(alloc) => (alloc.free_blocks(), alloc.free_inodes()),
            None => (
                sb.s_free_blocks_count(),
                u64::from(sb.s_free_inodes_count()),
            ),
        };
        let blocks = sb.s_blocks_count();
        // What the allocator refuses to anyone but the superuser.
        let kept = sb.s_r_blocks_count() + kept_for_trees(sb);
        Ok(StatFs {
            bsize: sb.block_size(),
            blocks: blocks.saturating_sub(overhead),
            bfree,
            bavail: bfree.saturating_sub(kept),
            files: u64::from(sb.s_inodes_count()),
            ffree,
            namelen: NAME_MAX as u32,
        })
    }
}

impl Op<'_> {
    /// What a write, a cut or a new owner takes from a file: capabilities always, set-user-id and set-group-id if `ids`.
    pub fn drop_privileges(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        ids: bool,
    ) -> Result<(), FsError> {
        if ids && inode.is_reg() {
            let mut mode = u32::from(inode.i_mode()) & !S_ISUID;
            if mode & S_IXGRP != 0 {
                mode &= !S_ISGID;
            }
            inode.set_i_mode(mode as u16);
        }
        if may_have_xattrs(self, inode) && xattr::get(self, inode, ino, CAPABILITY)?.is_some() {
            let change = xattr::remove(self, inode, ino, CAPABILITY)?;
            self.add_i_blocks(inode, change.blocks)?;
        }
        Ok(())
    }
}

/// Whether it is worth looking for extended attributes.
pub(crate) fn may_have_xattrs(store: &impl Blocks, inode: &Inode) -> bool {
    inode.i_file_acl(store.sb()).is_some() || inode.ibody().iter().take(4).any(|b| *b != 0)
}
