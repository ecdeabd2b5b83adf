//! The superblock: 1024 bytes at byte 1024 of the volume.

/// A superblock, with every byte that is not ours kept.
#[derive(Clone)]
pub struct Superblock {
    /// The raw bytes.
    pub raw: Box<[u8; 1024]>,
}
