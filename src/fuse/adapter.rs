//! Requests of the kernel, one method each: decode, call the engine, reply. Nothing else.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags as FuseRename, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fs::{
    Attr, Caller, FallocMode, Fs, FsError, New, RenameFlags, SetAttr, Whence, WriteFor, XattrMode,
};
use crate::fuse::nodes::Nodes;
use crate::fuse::seeker::{Seeker, Seeking};
use crate::fuse::space::{Gatherer, Space};
use crate::fuse::syncer::{Syncer, Waiting};
use crate::fuse::{FOR_EVER, MountOptions, convert};
use crate::units::Ino;

/// Largest write that the kernel may send, in bytes (`fs.fuse.max_pages_limit` caps it at this).
const MAX_WRITE: u32 = 1 << 20;
/// Entries that are looked at for one readdirplus at most; the kernel asks again.
const PLUS_BATCH: usize = 128;

/// What a request without space waits at most for the kernel to forget a removed file: that it was closed is known to the
/// kernel by then, and the FORGET on its way.
const FORGET_WAIT: Duration = Duration::from_millis(20);

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// How many requests of each kind came: what a mount costs, independent of the machine.
        #[derive(Debug, Default)]
        pub struct RequestCounts {
            $(pub(super) $name: AtomicU64,)*
        }

        impl RequestCounts {
            /// Name and count of every kind that came.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                [$((stringify!($name), self.$name.load(Ordering::Relaxed))),*]
                    .into_iter()
                    .filter(|(_, count)| *count > 0)
                    .collect()
            }

            /// All requests.
            pub fn total(&self) -> u64 {
                self.list().iter().map(|(_, count)| count).sum()
            }
        }
    };
}

counters!(
    lookup,
    forget,
    getattr,
    setattr,
    readlink,
    mknod,
    mkdir,
    unlink,
    rmdir,
    symlink,
    rename,
    link,
    open,
    read,
    write,
    release,
    fsync,
    opendir,
    readdir,
    readdirplus,
    fsyncdir,
    statfs,
    setxattr,
    getxattr,
    listxattr,
    removexattr,
    create,
    fallocate,
    lseek,
);

macro_rules! count {
    ($self:ident, $name:ident) => {
        $self.counts.$name.fetch_add(1, Ordering::Relaxed)
    };
}

/// Unwraps a result or replies with its errno.
macro_rules! or_reply {
    ($result:expr, $reply:ident) => {
        match $result {
            Ok(value) => value,
            Err(error) => return $reply.error(convert::errno(&error)),
        }
    };
}

/// The engine behind a mount.
pub struct Adapter {
    fs: Arc<Fs>,
    nodes: Arc<Nodes>,
    counts: Arc<RequestCounts>,
    syncer: Syncer,
    space: Arc<Space>,
    _gatherer: Gatherer,
    seeker: Seeker,
    /// Whether the kernel collects writes, and owns the times of regular files.
    writeback: AtomicBool,
    kernel: Arc<OnceLock<Notifier>>,
    read_only: bool,
    mirror: bool,
    withdrawn: Arc<AtomicBool>,
}

impl Adapter {
    /// Serves `fs`.
    pub fn new(fs: Arc<Fs>, options: &MountOptions, counts: Arc<RequestCounts>) -> Adapter {
        let kernel = Arc::new(OnceLock::new());
        fs.set_patience(FORGET_WAIT);
        let space = Space::new(&fs, &kernel);
        Adapter {
            syncer: Syncer::start(&fs, &space, options.threads),
            _gatherer: Gatherer::start(&space),
            space,
            seeker: Seeker::start(&fs, &kernel),
            writeback: AtomicBool::new(false),
            kernel,
            fs,
            nodes: Arc::new(Nodes::default()),
            counts,
            read_only: options.read_only || options.mirror,
            mirror: options.mirror,
            withdrawn: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Set when nothing that is read here can be trusted any more.
    pub fn withdrawn(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.withdrawn)
    }

    /// Where the way to notify the kernel goes, once there is one.
    pub fn kernel(&self) -> Arc<OnceLock<Notifier>> {
        Arc::clone(&self.kernel)
    }

    fn check_open(&self) -> Result<(), FsError> {
        match self.withdrawn.load(Ordering::SeqCst) {
            true => Err(FsError::Stale),
            false => Ok(()),
        }
    }

    /// What the kernel knows.
    pub fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes)
    }

    /// The inode of a node; on a mirror, only if it is still the file that the kernel means.
    fn ino(&self, node: INodeNo) -> Result<Ino, FsError> {
        self.check_open()?;
        let ino = convert::ino(node).ok_or(FsError::Stale)?;
        if self.mirror
            && let Some(generation) = self.nodes.generation(ino)
            && self.fs.getattr(ino)?.generation != generation
        {
            return Err(FsError::Stale);
        }
        Ok(ino)
    }

    /// The inode of a node that is to be changed.
    fn writable(&self, node: INodeNo) -> Result<Ino, FsError> {
        match self.read_only {
            true => Err(FsError::ReadOnly),
            false => convert::ino(node).ok_or(FsError::Stale),
        }
    }

    /// Tells the kernel of an inode.
    fn hold(&self, attr: &Attr) -> Generation {
        self.nodes.hold(attr.ino, attr.generation);
        self.fs.hold(attr.ino);
        Generation(u64::from(attr.generation))
    }

    fn forget_one(&self, node: INodeNo, n: u64) {
        count!(self, forget);
        if let Some(ino) = convert::ino(node) {
            self.nodes.forget(ino, n);
            self.fs.forget(ino, n);
        }
    }

    fn entry(&self, result: Result<Attr, FsError>, reply: ReplyEntry) {
        let attr = or_reply!(result, reply);
        let generation = self.hold(&attr);
        reply.entry(&FOR_EVER, &convert::attr(&attr), generation);
    }

    fn empty(result: Result<(), FsError>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn create_any(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<Attr, FsError> {
        let parent = self.writable(parent)?;
        let new = New {
            mode,
            umask,
            uid: req.uid(),
            gid: req.gid(),
            rdev,
        };
        self.fs.create(parent, name.as_bytes(), &new)
    }

    fn sync(&self, node: INodeNo, datasync: bool, reply: ReplyEmpty) {
        if self.read_only {
            return reply.ok();
        }
        let ino = or_reply!(self.writable(node), reply);
        self.syncer.wait(Waiting {
            ino,
            datasync,
            reply,
        });
    }
}

/// Who asks.
fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
    }
}

/// A value of an extended attribute, or its size: ERANGE when it does not fit.
fn xattr_reply(value: &[u8], size: u32, reply: ReplyXattr) {
    match (size, u32::try_from(value.len())) {
        (0, Ok(len)) => reply.size(len),
        (size, Ok(len)) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        if !self.read_only {
            // The kernel then owns size and mtime: never on a mirror, where another node writes.
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        // One at a time: an old kernel that lacks one of them still gives the others.
        for flag in wanted.iter() {
            match config.add_capabilities(flag) {
                Ok(_) if flag == InitFlags::FUSE_WRITEBACK_CACHE => {
                    self.writeback.store(true, Ordering::Relaxed);
                }
                Ok(_) => {}
                Err(_) => tracing::debug!(?flag, "the kernel's FUSE lacks this"),
            }
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_readahead(2 << 20);
        let _ = config.set_max_background(64);
        // The kernel sets times by itself, and must not keep what the inode has no room for.
        match self.fs.time_granularity() {
            Ok(grain) => drop(config.set_time_granularity(grain)),
            Err(error) => tracing::warn!(%error, "the granularity of times is not known"),
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        count!(self, lookup);
        let parent = or_reply!(self.ino(parent), reply);
        match self.fs.lookup(parent, name.as_bytes()) {
            Err(FsError::Refused(libc::ENOENT)) => {
                reply.entry(&FOR_EVER, &convert::negative(), Generation(0));
            }
            result => self.entry(result, reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.forget_one(ino, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        count!(self, getattr);
        let ino = or_reply!(self.ino(ino), reply);
        // Before it is read: what changes from here on is told of. stat(2) and fstat(2) come without a handle.
        self.space.asked(ino, fh.is_some());
        let attr = or_reply!(self.fs.getattr(ino), reply);
        reply.attr(&FOR_EVER, &convert::attr(&attr));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        count!(self, setattr);
        let ino = or_reply!(self.writable(ino), reply);
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            ctime: ctime.map(convert::timespec),
            // FATTR_KILL_SUIDGID does not reach us: what the kernel would ask for, by its own rule.
            kill_suidgid: (size.is_some() && req.uid() != 0) || uid.is_some() || gid.is_some(),
        };
        let attr = or_reply!(self.fs.setattr(ino, &change), reply);
        reply.attr(&FOR_EVER, &convert::attr(&attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        count!(self, readlink);
        let ino = or_reply!(self.ino(ino), reply);
        let target = or_reply!(self.fs.readlink(ino), reply);
        reply.data(&target);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        count!(self, mknod);
        self.entry(self.create_any(req, parent, name, mode, umask, rdev), reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        count!(self, mkdir);
        let mode = mode & !libc::S_IFMT | libc::S_IFDIR;
        self.entry(self.create_any(req, parent, name, mode, umask, 0), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        count!(self, unlink);
        let parent = or_reply!(self.writable(parent), reply);
        Self::empty(self.fs.unlink(parent, name.as_bytes()), reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        count!(self, rmdir);
        let parent = or_reply!(self.writable(parent), reply);
        Self::empty(self.fs.rmdir(parent, name.as_bytes()), reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        count!(self, symlink);
        let parent = or_reply!(self.writable(parent), reply);
        let target = target.as_os_str().as_bytes();
        let name = link_name.as_bytes();
        let result = self.fs.symlink(parent, name, target, req.uid(), req.gid());
        self.entry(result, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: FuseRename,
        reply: ReplyEmpty,
    ) {
        count!(self, rename);
        let parent = or_reply!(self.writable(parent), reply);
        let newparent = or_reply!(self.writable(newparent), reply);
        let known = FuseRename::RENAME_NOREPLACE | FuseRename::RENAME_EXCHANGE;
        if !known.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let flags = RenameFlags {
            noreplace: flags.contains(FuseRename::RENAME_NOREPLACE),
            exchange: flags.contains(FuseRename::RENAME_EXCHANGE),
        };
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        Self::empty(
            self.fs
                .rename_by(parent, name, newparent, newname, flags, caller(req)),
            reply,
        );
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        count!(self, link);
        let ino = or_reply!(self.writable(ino), reply);
        let parent = or_reply!(self.writable(newparent), reply);
        let linked = self
            .fs
            .link_by(ino, parent, newname.as_bytes(), caller(req));
        self.entry(linked, reply);
    }

    /// The kernel remembers ENOSYS and opens files by itself from then on, keeping their pages.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        count!(self, open);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        count!(self, opendir);
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        count!(self, create);
        let mode = mode & !libc::S_IFMT | libc::S_IFREG;
        let attr = or_reply!(self.create_any(req, parent, name, mode, umask, 0), reply);
        let generation = self.hold(&attr);
        reply.created(
            &FOR_EVER,
            &convert::attr(&attr),
            generation,
            FileHandle(0),
            FopenFlags::FOPEN_KEEP_CACHE,
        );
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        count!(self, read);
        or_reply!(self.check_open(), reply);
        let Some(ino) = convert::ino(ino) else {
            return reply.error(Errno::ESTALE);
        };
        let generation = match self.nodes.generation(ino) {
            Some(generation) => generation,
            None => or_reply!(self.fs.getattr(ino), reply).generation,
        };
        let mut bytes = vec![0; size as usize];
        let read = or_reply!(self.fs.read(ino, generation, offset, &mut bytes), reply);
        reply.data(&bytes[..read]);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        count!(self, write);
        let ino = or_reply!(self.writable(ino), reply);
        let by = WriteFor {
            kill_suidgid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            writeback: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            caller: caller(req),
        };
        let written = self.fs.write_as(ino, offset, data, by);
        if let (Err(error), true) = (&written, by.writeback) {
            // The kernel forgets which error it was: programs see EIO, or ENOSPC, at their next fsync.
            tracing::warn!(%error, %ino, offset, "what a program wrote into the cache is lost");
        }
        let written = or_reply!(written, reply);
        reply.written(written as u32);
        // What a program writes past the cache, the kernel asks about by itself.
        if by.writeback {
            self.space.written(ino);
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        count!(self, release);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        count!(self, fsync);
        self.sync(ino, datasync, reply);
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        count!(self, fsyncdir);
        self.sync(ino, datasync, reply);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        count!(self, readdir);
        let ino = or_reply!(self.ino(ino), reply);
        let result = self.fs.readdir(ino, offset, &mut |entry| {
            let kind = convert::file_type(entry.kind);
            let name = OsStr::from_bytes(entry.name);
            !reply.add(convert::node(entry.ino), entry.next_cookie, kind, name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(convert::errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        count!(self, readdirplus);
        let ino = or_reply!(self.ino(ino), reply);
        // The names first, the attributes afterwards: the engine is not entered from its own callback.
        let mut entries = Vec::new();
        let listed = self.fs.readdir(ino, offset, &mut |entry| {
            entries.push((entry.ino, entry.next_cookie, entry.name.to_vec()));
            entries.len() < PLUS_BATCH
        });
        or_reply!(listed, reply);
        for (child, cookie, name) in entries {
            let attr = match self.fs.getattr(child) {
                Ok(attr) => attr,
                // Removed since it was listed.
                Err(FsError::Stale | FsError::Refused(libc::ENOENT)) => continue,
                Err(error) => return reply.error(convert::errno(&error)),
            };
            let full = reply.add(
                convert::node(child),
                cookie,
                OsStr::from_bytes(&name),
                &FOR_EVER,
                &convert::attr(&attr),
                Generation(u64::from(attr.generation)),
            );
            if full {
                break;
            }
            // The kernel takes a reference with every entry but these two.
            if name != b"." && name != b".." {
                self.hold(&attr);
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        count!(self, statfs);
        let s = or_reply!(self.fs.statfs(), reply);
        reply.statfs(
            s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.bsize,
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        count!(self, setxattr);
        let ino = or_reply!(self.writable(ino), reply);
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let set = self
            .fs
            .setxattr_by(ino, name.as_bytes(), value, mode, caller(req));
        self.space.tell(ino);
        Self::empty(set, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        count!(self, getxattr);
        let ino = or_reply!(self.ino(ino), reply);
        let value = or_reply!(self.fs.getxattr(ino, name.as_bytes()), reply);
        xattr_reply(&value, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        count!(self, listxattr);
        let ino = or_reply!(self.ino(ino), reply);
        let names = or_reply!(self.fs.listxattr(ino), reply);
        let mut list = Vec::new();
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        xattr_reply(&list, size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        count!(self, removexattr);
        let ino = or_reply!(self.writable(ino), reply);
        let removed = self.fs.removexattr(ino, name.as_bytes());
        self.space.tell(ino);
        Self::empty(removed, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        count!(self, fallocate);
        let ino = or_reply!(self.writable(ino), reply);
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let mode = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => FallocMode::Allocate { keep_size },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => FallocMode::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => FallocMode::ZeroRange { keep_size },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        // The kernel has set the times before it asks.
        let by = WriteFor {
            kill_suidgid: false,
            writeback: self.writeback.load(Ordering::Relaxed),
            caller: caller(req),
        };
        let done = self.fs.fallocate_as(ino, mode, offset, length, by);
        Self::empty(done, reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        count!(self, lseek);
        let ino = or_reply!(self.ino(ino), reply);
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let seeking = Seeking {
            ino,
            offset,
            whence,
            reply,
        };
        match self.read_only {
            true => seeking.answer(&self.fs),
            false => self.seeker.wait(seeking),
        }
    }
}
