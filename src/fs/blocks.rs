//! How the parts of the engine (extents, directories, attributes, allocation) reach blocks: reading sees the running
//! transaction, changing joins it. Owns the two traits; their one product implementation is the running transaction.

use crate::ext4::Superblock;
use crate::fs::FsError;
use crate::journal::Image;
use crate::units::{BlockNo, BlockRange};

/// Reading blocks as the running transaction sees them.
pub trait Blocks {
    /// The volume's superblock: block size, features, checksum seed, geometry.
    fn sb(&self) -> &Superblock;
    /// The newest contents of a metadata block.
    fn get(&self, block: BlockNo) -> Result<Image, FsError>;
    /// Whether any block of the range is the volume's own (superblock copies, descriptors, bitmaps, inode tables, journal)
    /// and so can not belong to a file: a pointer to it is corrupt. `false` where that is not known.
    fn is_system(&self, _range: BlockRange) -> bool {
        false
    }
}

/// Changing blocks within one operation of the running transaction.
pub trait BlocksMut: Blocks {
    /// The block's bytes, to be changed in place; the block joins the running transaction.
    fn modify(&mut self, block: BlockNo) -> Result<&mut [u8], FsError>;
    /// As `modify`, for a freshly allocated block: zeros, nothing is read from disk.
    fn create(&mut self, block: BlockNo) -> Result<&mut [u8], FsError>;
    /// Allocates between `min` and `max` adjacent blocks, as near to `goal` as can be; `FsError::NoSpace` otherwise.
    fn alloc(&mut self, goal: BlockNo, min: u32, max: u32) -> Result<BlockRange, FsError>;
    /// One block for a node of an extent tree, as near to `goal` as can be: some are kept for these.
    fn alloc_node(&mut self, goal: BlockNo) -> Result<BlockRange, FsError> {
        self.alloc(goal, 1, 1)
    }
    /// Frees blocks; they are not reused before the transaction is durable here and at every mirror.
    fn free(&mut self, range: BlockRange) -> Result<(), FsError>;
    /// Time of day: seconds, nanoseconds.
    fn now(&self) -> (i64, u32);
}
