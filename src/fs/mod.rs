//! The engine: inode and directory operations, allocator, caches, transactions.

pub mod alloc;
pub mod allocation;
pub mod blocks;
pub mod dir;
pub mod error;
pub mod extent;
pub(crate) mod htree;
pub mod indirect;
mod nouns;
mod nouns_xattr;
pub mod orphan;
pub mod xattr;

mod attr;
mod interface;

pub use attr::{
    Attr, DirEntry, FallocMode, FileKind, NAME_MAX, New, RenameFlags, SetAttr, SetTime, StatFs,
    Whence, XattrMode,
};
pub use error::FsError;
pub use interface::{CloseReport, Fs, Step};
