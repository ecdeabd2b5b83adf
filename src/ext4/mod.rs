//! The on-disk nouns of ext4: bytes <-> typed values, little-endian. No I/O.

pub mod superblock;

pub use superblock::Superblock;
