//! Between the engine's words and FUSE's. The root is inode 2 here and node 1 there; all others are the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::fs::{Attr, FileKind, FsError, SetTime};
use crate::io::Timespec;
use crate::units::Ino;

/// ext4's root directory.
pub const ROOT: Ino = Ino(2);

/// The engine's inode of a node; `None` for numbers that ext4 can not have.
pub fn ino(node: INodeNo) -> Option<Ino> {
    match node.0 {
        1 => Some(ROOT),
        n => u32::try_from(n).ok().map(Ino),
    }
}

/// The node of an inode.
pub fn node(ino: Ino) -> INodeNo {
    match ino {
        ROOT => INodeNo(1),
        Ino(n) => INodeNo(u64::from(n)),
    }
}

/// The errno of an error; those that tell of damage go to the log, too.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Corrupt { .. } | FsError::Io { .. } | FsError::Aborted(_) => {
            tracing::error!(%error, "a request failed");
        }
        _ => {}
    }
    Errno::from_i32(error.errno())
}

/// Time of day to FUSE.
pub fn system_time(time: Timespec) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    match u64::try_from(time.secs) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(time.secs.unsigned_abs()) + nanos,
    }
}

/// Time of day from FUSE.
pub fn timespec(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            secs: after.as_secs() as i64,
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            Timespec {
                secs: -(before.as_secs() as i64) - borrow,
                nanos: (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000,
            }
        }
    }
}

/// A time to be set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(timespec(at)),
    }
}

/// The kind of a file.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::Regular | FileKind::Unknown => FileType::RegularFile,
    }
}

/// Attributes.
pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: node(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime),
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The attributes of "no such name", which the kernel remembers.
pub fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive() {
        for time in [
            (0, 0),
            (5, 7),
            (-1, 0),
            (-1, 999_999_999),
            (-5_000_000_000, 1),
        ] {
            let time = Timespec {
                secs: time.0,
                nanos: time.1,
            };
            assert_eq!(timespec(system_time(time)), time);
        }
    }

    #[test]
    fn the_root_has_two_numbers() {
        assert_eq!(ino(INodeNo(1)), Some(ROOT));
        assert_eq!(node(ROOT), INodeNo(1));
        assert_eq!(ino(node(Ino(4711))), Some(Ino(4711)));
        assert_eq!(ino(INodeNo(1 << 40)), None);
    }
}
