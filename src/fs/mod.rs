//! The engine: inode and directory operations, allocator, caches, transactions.

pub mod alloc;
pub mod allocation;
pub mod blocks;
pub mod dir;
pub mod error;
mod nouns;
mod nouns_xattr;
pub mod extent;
pub mod indirect;
pub mod orphan;
pub mod xattr;
pub(crate) mod htree;

mod attr;
mod interface;

pub use attr::{
    Attr, DirEntry, FallocMode, FileKind, NAME_MAX, New, RenameFlags, SetAttr, SetTime, StatFs,
    Whence, XattrMode,
};
pub use error::FsError;
pub use interface::{CloseReport, Fs, Step};
