//! What the engine says of an inode, and what a caller may ask to change or to make. Owns the plain types of the
//! engine's interface; no behaviour, no on-disk form.

pub use crate::ext4::FileType as FileKind;
use crate::io::Timespec;
use crate::units::Ino;

/// The `S_IFMT` part of a mode.
pub(crate) const S_IFMT: u32 = 0o170000;
/// A directory.
pub(crate) const S_IFDIR: u32 = 0o040000;
/// Set user id on execution.
pub(crate) const S_ISUID: u32 = 0o4000;
/// Set group id on execution; on a directory, new names inherit its group.
pub(crate) const S_ISGID: u32 = 0o2000;
/// Group execution.
pub(crate) const S_IXGRP: u32 = 0o010;

/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// What stat tells of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// `i_generation`: a re-used number has another one.
    pub generation: u32,
    /// Type and permission bits.
    pub mode: u32,
    /// Hard links; 1 for a directory whose count is not kept (`dir_nlink`).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number as the kernel's `new_encode_dev`, for device nodes; 0 otherwise.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes: the block.
    pub blksize: u32,
    /// Last access.
    pub atime: Timespec,
    /// Last change of contents.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
    /// Creation; zero where the inode has no room for it.
    pub crtime: Timespec,
    /// `i_flags` (immutable, append-only, ...).
    pub flags: u32,
}

impl Attr {
    /// What the inode is.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode as u16)
    }
}

/// On whose behalf a request comes: decides whether it may use the superuser's reserve. The default is the superuser, which
/// is also the engine's own work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group; of a user's other groups FUSE does not tell.
    pub gid: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the change.
    Now,
    /// A given time.
    At(Timespec),
}

/// What `setattr` changes; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (the type can not change).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes; regular files only.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of contents.
    pub mtime: Option<SetTime>,
    /// Last change of the inode; the time of the change when `None`.
    pub ctime: Option<Timespec>,
    /// Drop set-user-id, set-group-id (where group execution is allowed) and file capabilities: what HANDLE_KILLPRIV_V2
    /// leaves to the server on truncation. A change of owner does so without being asked.
    pub kill_suidgid: bool,
}

/// A new inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct New {
    /// Type and permission bits.
    pub mode: u32,
    /// The creator's umask: applied here, because a directory with a default ACL replaces it. 0 when the kernel has
    /// applied it already.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group; a parent with set-group-id replaces it.
    pub gid: u32,
    /// Device number, for device nodes.
    pub rdev: u32,
}

impl New {
    /// Who makes it: its owner is whoever asks.
    pub(crate) fn caller(&self) -> Caller {
        Caller {
            uid: self.uid,
            gid: self.gid,
        }
    }
}

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode it names.
    pub ino: Ino,
    /// What the entry says that it is.
    pub kind: FileKind,
    /// The name.
    pub name: &'a [u8],
    /// Where to go on behind this entry.
    pub next_cookie: u64,
}

/// What `seek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next byte of data at or after the offset.
    Data,
    /// The next hole at or after the offset; the end of the file counts as one.
    Hole,
}

/// What `fallocate` does to the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocMode {
    /// Gives it blocks that read as zeros where it has none.
    Allocate {
        /// The file's length stays as it is, even if the range goes past it.
        keep_size: bool,
    },
    /// Takes its blocks away; it reads as zeros. The length stays.
    PunchHole,
    /// Makes it read as zeros, keeping (or making) blocks for it.
    ZeroRange {
        /// The file's length stays as it is, even if the range goes past it.
        keep_size: bool,
    },
}

/// How `rename` treats an existing target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// EEXIST rather than replacing it.
    pub noreplace: bool,
    /// The two names change places; both must exist.
    pub exchange: bool,
}

/// How `setxattr` treats an existing attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// Makes or replaces it.
    #[default]
    Any,
    /// EEXIST when it is there.
    Create,
    /// ENODATA when it is not.
    Replace,
}

/// What statfs tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Block size in bytes.
    pub bsize: u32,
    /// Blocks, less those of ext4's own structures.
    pub blocks: u64,
    /// Free blocks. Space that only mirrors still need counts as free.
    pub bfree: u64,
    /// Free blocks for users without privilege.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name in bytes.
    pub namelen: u32,
}
