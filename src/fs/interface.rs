//! The engine's interface, of which the bodies are being built.
#![allow(clippy::unused_self)]
use crate::fs::*;
use crate::units::{Ino, Txid};
use std::time::Duration;
const TODO: &str = "not built yet";
macro_rules! todo_err { ($($x:ident),*) => { { $(let _ = &$x;)* return Err(FsError::Unsupported(TODO.into())) } } }
impl Fs {
    /// The attributes of `name` in `parent`; ENOENT when there is none.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        todo_err!(parent, name)
    }
    /// The attributes of an inode; ESTALE when it was freed.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        todo_err!(ino)
    }
    /// A symbolic link's target.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        todo_err!(ino)
    }
    /// Reads up to `buf.len()` bytes at `offset`; fewer at the end of the file. ESTALE when the inode is not `generation`'s.
    pub fn read(
        &self,
        ino: Ino,
        generation: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize, FsError> {
        todo_err!(ino, generation, offset, buf)
    }
    /// Calls `each` for the names behind `cookie` (0: from the start), "." and ".." included, until it returns false (the
    /// entry was not taken). Cookies stay valid while names come and go.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        todo_err!(ino, cookie, each)
    }
    /// The offset of the next data or hole at or after `offset`; ENXIO at or past the end.
    pub fn seek(&self, ino: Ino, offset: u64, whence: Whence) -> Result<u64, FsError> {
        todo_err!(ino, offset, whence)
    }
    /// The value of an extended attribute; ENODATA when there is none.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        todo_err!(ino, name)
    }
    /// The names of all extended attributes, with their prefixes.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        todo_err!(ino)
    }
    /// Sizes and what is free.
    pub fn statfs(&self) -> Result<StatFs, FsError> {
        todo_err!()
    }
    /// Makes an inode of any type but a symbolic link, and its name.
    pub fn create(&self, parent: Ino, name: &[u8], new: &New) -> Result<Attr, FsError> {
        todo_err!(parent, name, new)
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
        todo_err!(parent, name, target, uid, gid)
    }
    /// One more name for an inode.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, FsError> {
        todo_err!(ino, parent, name)
    }
    /// Takes a name away; the inode goes with its last name and last kernel reference.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        todo_err!(parent, name)
    }
    /// Takes an empty directory away.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        todo_err!(parent, name)
    }
    /// Moves a name.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        todo_err!(parent, name, new_parent, new_name, flags)
    }
    /// Writes `data` at `offset`; the number of bytes written.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize, FsError> {
        todo_err!(ino, offset, data)
    }
    /// As `write`; `kill_suidgid` is FUSE_WRITE_KILL_SUIDGID: drop set-user-id and set-group-id.
    pub fn write_as(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_suidgid: bool,
    ) -> Result<usize, FsError> {
        todo_err!(ino, offset, data, kill_suidgid)
    }
    /// Changes attributes; what they are afterwards.
    pub fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, FsError> {
        todo_err!(ino, change)
    }
    /// Allocates, punches or zeroes a range of bytes.
    pub fn fallocate(
        &self,
        ino: Ino,
        mode: FallocMode,
        offset: u64,
        len: u64,
    ) -> Result<(), FsError> {
        todo_err!(ino, mode, offset, len)
    }
    /// Sets an extended attribute.
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<(), FsError> {
        todo_err!(ino, name, value, mode)
    }
    /// Removes an extended attribute; ENODATA when there is none.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        todo_err!(ino, name)
    }
    /// One more reference by the kernel (a lookup reply).
    pub fn hold(&self, ino: Ino) {
        let _ = ino;
    }
    /// `n` references fewer; an unlinked inode is deleted when the last goes.
    pub fn forget(&self, ino: Ino, n: u64) {
        let _ = (ino, n);
    }
    /// Makes the inode's changes durable, names included; `datasync`: what is needed to read its data back. The
    /// transaction that is durable now.
    pub fn fsync(&self, ino: Ino, datasync: bool) -> Result<Txid, FsError> {
        todo_err!(ino, datasync)
    }
    /// Makes every change durable.
    pub fn sync(&self) -> Result<Txid, FsError> {
        todo_err!()
    }
    /// Commits when due and checkpoints a little; says when to call again.
    pub fn commit_step(&self, now: Duration) -> Result<Step, FsError> {
        todo_err!(now)
    }
    /// Deletes what is unlinked, commits, checkpoints everything and clears RECOVER. Every later request fails.
    pub fn close(&self) -> Result<CloseReport, FsError> {
        todo_err!()
    }
    /// Overwrites go by value (true: a mirror exists in any state) or straight home. Returns once the running transaction
    /// is durable, so that everything after it follows the new rule.
    pub fn set_mirrored(&self, mirrored: bool) -> Result<(), FsError> {
        todo_err!(mirrored)
    }
    /// Calls `f` after every commit, with no lock held.
    pub fn on_commit(&self, f: Box<dyn Fn(Txid) + Send + Sync>) {
        let _ = f;
    }
    /// Calls `f`, with no lock held, when the allocator needs space that only mirrors still need.
    pub fn set_low_space_hook(&self, f: Box<dyn Fn() + Send + Sync>) {
        let _ = f;
    }
}
/// An open volume. Shared as `Arc<Fs>`; every method may be called from many threads.
#[derive(Debug)]
pub struct Fs {}

/// What `commit_step` did, and when it wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Monotonic time at which to call again at the latest.
    pub next: Duration,
    /// The transaction that was committed, if one was due.
    pub committed: Option<Txid>,
    /// Committed blocks wait to be written home.
    pub checkpointing: bool,
}

/// What a clean close leaves behind, for the fact file.
#[derive(Clone, Debug)]
pub struct CloseReport {}
