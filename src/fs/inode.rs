//! Inodes in their tables: where they are, reading and writing them within the running transaction, and what stat says
//! of them. Owns no state.

use crate::ext4::Inode;
use crate::ext4::inode::join_dev;
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::extent::{self, Mapping, Owner};
use crate::fs::meta::{Meta, View};
use crate::fs::txn::Op;
use crate::fs::{Attr, FileKind, FsError, indirect};
use crate::io::Timespec;
use crate::units::{BlockNo, FileBlock, Ino};

/// What requests for an inode need of the view they work on.
pub(crate) trait InodeStore: Blocks {
    /// What is behind the metadata lock.
    fn meta(&self) -> &Meta;

    /// The inode as the table has it, in use or not.
    fn inode_any(&self, ino: Ino) -> Result<Inode, FsError> {
        let (block, offset) = place(self.meta(), ino)?;
        let image = self.get(block)?;
        let bytes = image.get(offset..).unwrap_or_default();
        Inode::decode(self.sb(), ino, bytes).map_err(|e| FsError::Corrupt {
            what: "inode",
            ino: Some(ino),
            block: Some(block),
            detail: e.to_string(),
        })
    }

    /// The inode; `Stale` when it is not in use.
    fn inode(&self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inode_any(ino)?;
        if inode.i_mode() == 0 {
            return Err(FsError::Stale);
        }
        Ok(inode)
    }

    /// The inode, which must be a directory.
    fn directory(&self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inode(ino)?;
        if !inode.is_dir() {
            return Err(FsError::Refused(libc::ENOTDIR));
        }
        Ok(inode)
    }

    /// Where a block of the file is, and how many after it are in the same state, at most `max_len`.
    fn map(
        &self,
        ino: Ino,
        inode: &Inode,
        at: FileBlock,
        max_len: u32,
    ) -> Result<Mapping, FsError> {
        if inode.has_extents() {
            extent::map(self, owner(ino, inode), &inode.i_block(), at, max_len)
        } else {
            indirect::map(self, ino, &inode.i_block(), at, max_len)
        }
    }
}

impl InodeStore for View<'_> {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl InodeStore for Op<'_> {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

/// The numbers that the checksums of an inode's blocks are made with.
pub(crate) fn owner(ino: Ino, inode: &Inode) -> Owner {
    Owner {
        ino,
        generation: inode.i_generation(),
    }
}

/// The block of the inode table, and the offset in it.
fn place(meta: &Meta, ino: Ino) -> Result<(BlockNo, usize), FsError> {
    // A number that does not exist comes from a caller whose file went away, or from a directory that is checked elsewhere.
    let alloc = meta.alloc.as_ref();
    alloc
        .and_then(|alloc| alloc.inode_place(ino))
        .ok_or(FsError::Stale)
}

impl Op<'_> {
    /// Writes the inode into its table; `data`: the change is one that fdatasync must make durable.
    pub fn put_inode(&mut self, ino: Ino, inode: &mut Inode, data: bool) -> Result<(), FsError> {
        let (block, offset) = place(&self.meta, ino)?;
        inode.update_checksum(&self.meta.sb, ino);
        let bytes = inode.as_bytes();
        let target = self.modify(block)?;
        target[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.touch(ino, data);
        Ok(())
    }
}

/// The file's blocks of `block_size` bytes that hold its `size` bytes.
pub(crate) fn blocks_of(size: u64, block_size: usize) -> u64 {
    size.div_ceil(block_size as u64)
}

/// What stat says.
pub(crate) fn attr(store: &(impl InodeStore + ?Sized), ino: Ino, inode: &Inode) -> Attr {
    let sb = store.sb();
    let time = |(secs, nanos): (i64, u32)| Timespec { secs, nanos };
    let kind = FileKind::from_mode(inode.i_mode());
    let rdev = match kind {
        FileKind::BlockDevice | FileKind::CharDevice => {
            let (major, minor) = inode.rdev();
            join_dev(major, minor)
        }
        _ => 0,
    };
    Attr {
        ino,
        generation: inode.i_generation(),
        mode: u32::from(inode.i_mode()),
        nlink: u32::from(inode.i_links_count()),
        uid: inode.i_uid(),
        gid: inode.i_gid(),
        rdev,
        size: inode.i_size(sb),
        blocks: inode.i_blocks(sb),
        blksize: sb.block_size(),
        atime: time(inode.i_atime()),
        mtime: time(inode.i_mtime()),
        ctime: time(inode.i_ctime()),
        crtime: inode.i_crtime().map(time).unwrap_or_default(),
        flags: inode.i_flags(),
    }
}
