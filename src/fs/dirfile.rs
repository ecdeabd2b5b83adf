//! A directory's blocks, through its inode: what the directory algorithms work on. Owns nothing; a changed directory's
//! inode is written back by `finish`.

use crate::ext4::{Inode, Superblock};
use crate::fs::FsError;
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::dir::{DirFile, DirFileMut};
use crate::fs::extent::Mapping;
use crate::fs::inode::InodeStore;
use crate::fs::txn::Op;
use crate::journal::Image;
use crate::units::{BlockNo, FileBlock, Ino};

/// A directory that is only read.
pub(crate) struct DirView<'a, S: InodeStore> {
    /// Where its blocks are read.
    pub store: &'a S,
    /// Its number.
    pub ino: Ino,
    /// Its inode.
    pub inode: &'a Inode,
}

/// A directory that an operation changes.
pub(crate) struct DirEdit<'o, 'a> {
    /// The operation.
    pub op: &'o mut Op<'a>,
    /// Its number.
    pub ino: Ino,
    /// Its inode, as the operation has it.
    pub inode: Inode,
}

fn place(
    store: &impl InodeStore,
    ino: Ino,
    inode: &Inode,
    at: FileBlock,
) -> Result<BlockNo, FsError> {
    match store.map(ino, inode, at, 1)? {
        Mapping::Mapped {
            block,
            unwritten: false,
            ..
        } => Ok(block),
        _ => Err(FsError::Corrupt {
            what: "directory",
            ino: Some(ino),
            block: None,
            detail: format!("its block {at} is not there"),
        }),
    }
}

fn blocks_count(store: &impl InodeStore, inode: &Inode) -> u32 {
    let sb = store.sb();
    let blocks = inode.i_size(sb) / u64::from(sb.block_size());
    blocks.min(u64::from(u32::MAX)) as u32
}

impl<S: InodeStore> DirFile for DirView<'_, S> {
    fn sb(&self) -> &Superblock {
        self.store.sb()
    }

    fn ino(&self) -> Ino {
        self.ino
    }

    fn generation(&self) -> u32 {
        self.inode.i_generation()
    }

    fn flags(&self) -> u32 {
        self.inode.i_flags()
    }

    fn blocks_count(&self) -> u32 {
        blocks_count(self.store, self.inode)
    }

    fn get(&self, block: FileBlock) -> Result<Image, FsError> {
        let at = place(self.store, self.ino, self.inode, block)?;
        self.store.get(at)
    }
}

impl DirFile for DirEdit<'_, '_> {
    fn sb(&self) -> &Superblock {
        self.op.sb()
    }

    fn ino(&self) -> Ino {
        self.ino
    }

    fn generation(&self) -> u32 {
        self.inode.i_generation()
    }

    fn flags(&self) -> u32 {
        self.inode.i_flags()
    }

    fn blocks_count(&self) -> u32 {
        blocks_count(self.op, &self.inode)
    }

    fn get(&self, block: FileBlock) -> Result<Image, FsError> {
        let at = place(self.op, self.ino, &self.inode, block)?;
        self.op.get(at)
    }
}

impl DirFileMut for DirEdit<'_, '_> {
    fn modify(&mut self, block: FileBlock) -> Result<&mut [u8], FsError> {
        let at = place(self.op, self.ino, &self.inode, block)?;
        self.op.modify(at)
    }

    fn append(&mut self) -> Result<FileBlock, FsError> {
        let block = FileBlock(self.blocks_count());
        let size = (u64::from(block.0) + 1) * self.op.fs.block_size as u64;
        let at = self.op.add_blocks(self.ino, &mut self.inode, block, 1)?;
        self.op.create(at.start)?;
        self.inode.set_i_size(size);
        Ok(block)
    }

    fn set_flags(&mut self, flags: u32) -> Result<(), FsError> {
        self.inode.set_i_flags(flags);
        Ok(())
    }
}
