//! What can go wrong in the engine, and its errno. One table chooses the errno.

use std::io;

use crate::journal::JournalError;
use crate::units::{BlockNo, Ino};
use crate::volume::VolumeError;

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
    /// Free blocks there are, but mirrors still need what is in them: the engine has them released and tries again.
    #[error("no space left on the volume: {blocks} free blocks are still needed by a mirror")]
    SpaceHeld {
        /// How many.
        blocks: u64,
    },
    /// The inode was freed or is another file now.
    #[error("stale file handle")]
    Stale,
    /// The volume is read-only here.
    #[error("read-only file system")]
    ReadOnly,
    /// The journal gave up after an earlier write error.
    #[error("the journal was aborted: {0}")]
    Aborted(String),
    /// The volume was closed.
    #[error("the volume was closed")]
    Closed,
}

impl From<VolumeError> for FsError {
    fn from(error: VolumeError) -> FsError {
        if error.is_full() {
            // A sparse part whose own file system is full.
            return FsError::NoSpace;
        }
        let kind = match &error {
            VolumeError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        FsError::Io {
            context: "the volume".into(),
            source: io::Error::new(kind, error),
        }
    }
}

impl From<JournalError> for FsError {
    fn from(error: JournalError) -> FsError {
        match error {
            JournalError::Corrupt { .. } => FsError::Corrupt {
                what: "journal",
                ino: None,
                block: None,
                detail: error.to_string(),
            },
            JournalError::Unsupported(what) => FsError::Unsupported(format!("journal: {what}")),
            JournalError::Io { context, source } => match FsError::from(source) {
                FsError::Io { source, .. } => FsError::Io {
                    context: format!("journal: {context}"),
                    source,
                },
                other => other,
            },
            JournalError::Keeper(_) | JournalError::Refused(_) => FsError::Io {
                context: "journal".into(),
                source: io::Error::other(error),
            },
            JournalError::Aborted(cause) => FsError::Aborted(cause.to_string()),
        }
    }
}

impl FsError {
    /// The errno that a program gets.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Corrupt { .. } => libc::EUCLEAN,
            FsError::Unsupported(_) => libc::EOPNOTSUPP,
            FsError::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            FsError::Refused(errno) => *errno,
            FsError::NoSpace | FsError::SpaceHeld { .. } => libc::ENOSPC,
            FsError::Stale => libc::ESTALE,
            FsError::ReadOnly => libc::EROFS,
            // Not EROFS: to some programs that says of an fsync that there was nothing to be synced.
            FsError::Aborted(_) => libc::EIO,
            FsError::Closed => libc::ESHUTDOWN,
        }
    }
}
