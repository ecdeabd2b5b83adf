//! The engine: inode and directory operations, allocator, caches, transactions.

pub mod blocks;
pub mod error;

mod attr;
mod interface;

pub use attr::{
    Attr, DirEntry, FallocMode, FileKind, NAME_MAX, New, RenameFlags, SetAttr, SetTime, StatFs,
    Whence, XattrMode,
};
pub use error::FsError;
pub use interface::{CloseReport, Fs, Step};
