//! The on-disk nouns of ext4: bytes <-> typed values, little-endian, under the kernel's field names.
//!
//! Owns: layouts, checksums, geometry, feature classification, and the changes that stay within one block (insert a
//! directory entry, set bits, replace an attribute). Never does I/O, never looks at a second block, never decides what
//! to allocate. Invariants: whatever bytes a decoder gets, it returns a value or [`Corrupt`], it does not panic, overflow
//! or loop; bytes that have no meaning here survive a decode and encode.
//!
//! Sources: the kernel's `Documentation/filesystems/ext4/`, `fs/ext4/*.h`, and e2fsprogs' `lib/ext2fs`.

#[macro_use]
pub(crate) mod layout;

pub mod acl;
pub mod bitmap;
pub mod checksum;
pub mod corrupt;
pub mod dirent;
pub mod dx_hash;
pub mod extent;
pub mod features;
pub mod file_type;
pub mod geometry;
pub mod group_desc;
pub mod htree;
pub mod indirect;
pub mod inode;
pub mod mmp;
pub mod orphan_file;
pub mod superblock;
pub mod xattr;

pub use acl::Acl;
pub use corrupt::{Corrupt, EditError, Refused};
pub use dirent::DirLayout;
pub use dx_hash::{DxHash, HashVersion, Hasher};
pub use extent::{Extent, ExtentHeader, ExtentIdx, ExtentNode};
pub use features::{Access, LOCKSTEP_INCOMPAT_GUARD};
pub use file_type::FileType;
pub use geometry::Geometry;
pub use group_desc::GroupDesc;
pub use htree::{DxBlock, DxEntry, DxInfo};
pub use inode::Inode;
pub use mmp::Mmp;
pub use superblock::Superblock;
pub use xattr::{Xattr, XattrSet};

#[cfg(test)]
mod tests;
