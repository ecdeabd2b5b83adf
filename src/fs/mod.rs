//! The engine: inode and directory operations, allocator, caches, transactions.

pub mod blocks;
pub mod error;

pub use error::FsError;
