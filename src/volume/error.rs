//! What can be wrong with the parts of a volume. Owns the enum; carries part, position, expected and found.

use std::io;
use std::sync::Arc;

/// Why a request to the block address space failed. Parts count from 0 here; messages count them from 1.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// Refused: a volume has at least one part.
    #[error("a volume needs at least one part")]
    NoParts,
    /// Unsupported: ext4's other block sizes.
    #[error("blocks of {found} bytes are not supported; 1024, 2048 and 4096 are")]
    BlockSize {
        /// Bytes of a block.
        found: u32,
    },
    /// Refused: the size of a part.
    #[error(
        "part {} ({name}) has {len} bytes: not a positive multiple of the block ({block_size} bytes), or too many",
        part + 1
    )]
    PartLength {
        /// Which part.
        part: usize,
        /// What a person knows it by.
        name: String,
        /// Its bytes.
        len: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// Refused: the caller's range.
    #[error("{len} bytes at byte {offset} go past the volume's end at {size}")]
    PastEnd {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the volume.
        size: u64,
    },
    /// Refused: the caller's buffer.
    #[error("{len} bytes are not whole blocks of {block_size}")]
    Unaligned {
        /// Bytes of the buffer.
        len: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// The part's store failed.
    #[error("cannot {action} {len} bytes at byte {offset} of part {} ({name})", part + 1)]
    Io {
        /// What was being done.
        action: &'static str,
        /// Which part.
        part: usize,
        /// What a person knows it by.
        name: String,
        /// First byte, in the part.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The store's error.
        source: Arc<io::Error>,
    },
    /// The part's store failed earlier: writes may be lost, so none counts as durable until the volume is opened anew.
    #[error("part {} ({name}) failed to flush before: writes to it may be lost", part + 1)]
    Lost {
        /// Which part.
        part: usize,
        /// What a person knows it by.
        name: String,
    },
}

impl VolumeError {
    /// Whether the store has no room left.
    pub fn is_full(&self) -> bool {
        matches!(self, VolumeError::Io { source, .. } if matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ))
    }

    /// Whether the store can not do what was asked (preallocation on some file systems).
    pub fn is_unsupported(&self) -> bool {
        matches!(self, VolumeError::Io { source, .. } if source.kind() == io::ErrorKind::Unsupported)
    }
}
