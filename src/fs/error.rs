//! What can go wrong in the engine, and its errno. One table chooses the errno.

use crate::units::{BlockNo, Ino};

/// An error of a file system operation.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The medium lies: a structure on disk is not what ext4 allows.
    #[error(
        "corrupt {what} (inode {ino:?}, block {block:?}): {detail}; run e2fsck on the unmounted volume"
    )]
    Corrupt {
        /// The structure: "directory block", "extent tree", ...
        what: &'static str,
        /// The inode it belongs to, if any.
        ino: Option<Ino>,
        /// Where it is, if known.
        block: Option<BlockNo>,
        /// Expected and found.
        detail: String,
    },
    /// Something valid that this program can not do.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The disk refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The caller's mistake or an ordinary refusal, as an errno.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// No free block or inode.
    #[error("no space left on the volume")]
    NoSpace,
    /// The inode was freed or is another file now.
    #[error("stale file handle")]
    Stale,
    /// The volume is read-only here.
    #[error("read-only file system")]
    ReadOnly,
    /// The journal gave up after an earlier write error.
    #[error("the journal was aborted: {0}")]
    Aborted(String),
}

impl FsError {
    /// The errno that a program gets.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Corrupt { .. } => libc::EUCLEAN,
            FsError::Unsupported(_) => libc::EOPNOTSUPP,
            FsError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            FsError::Refused(errno) => *errno,
            FsError::NoSpace => libc::ENOSPC,
            FsError::Stale => libc::ESTALE,
            FsError::ReadOnly | FsError::Aborted(_) => libc::EROFS,
        }
    }
}
