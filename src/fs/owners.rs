//! Whose a block is: a file and its bytes, a directory, a group's metadata, the journal, or nobody's. For people, where only a block
//! number is known: what a comparison of two copies says should name files.
//!
//! Owns one pass over the inodes, which keeps what meets the wanted blocks, and one over the directories, which gives the inodes of
//! those a path (of several hard links the first that is met). Never writes; on a damaged volume it says less, not wrong things
//! loudly: damage is [`crate::fs::check`]'s to report.
//!
//! Memory: the answer, which the caller bounds, and a directory at a time.

mod paths;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::ext4::features::compat;
use crate::ext4::inode::reserved;
use crate::ext4::{Corrupt, FileType, Geometry, GroupDesc, Inode, Superblock, bitmap};
use crate::fs::FsError;
use crate::fs::check::walk::{Visitor, Walk};
use crate::fs::check::{Reader, superblock};
use crate::units::{BlockNo, BlockRange, GroupNo, Ino, coalesce};

/// What a run of blocks belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's.
    Free,
    /// In use by the bitmap, but nothing was found that has it.
    Unknown,
    /// Before the first group.
    Boot,
    /// A copy of the superblock.
    Superblock(GroupNo),
    /// A copy of the group descriptors, or what is reserved for more.
    Descriptors(GroupNo),
    /// The block bitmap of a group.
    BlockBitmap(GroupNo),
    /// The inode bitmap of a group.
    InodeBitmap(GroupNo),
    /// The inode table of a group: which inodes are in these blocks.
    InodeTable(GroupNo, Range<u32>),
    /// The multiple-mount protection.
    Mmp,
    /// The journal.
    Journal,
    /// Something else that ext4 keeps for itself.
    Reserved(Ino),
    /// A file's contents.
    File {
        /// Its inode.
        ino: Ino,
        /// A path from the root, if it has one.
        path: Option<Vec<u8>>,
        /// Bytes of the file; may reach behind its end.
        bytes: Range<u64>,
    },
    /// Entries of a directory.
    Directory {
        /// Its inode.
        ino: Ino,
        /// Its path from the root, if it has one.
        path: Option<Vec<u8>>,
    },
    /// Where the blocks of a file are: index blocks of its map.
    Map {
        /// The file's inode.
        ino: Ino,
        /// A path from the root, if it has one.
        path: Option<Vec<u8>>,
    },
    /// Extended attributes.
    Attributes {
        /// The inode of a file that has them; others may share them.
        ino: Ino,
        /// A path from the root, if it has one.
        path: Option<Vec<u8>>,
    },
}

fn shown(ino: Ino, path: Option<&[u8]>) -> String {
    match path {
        Some(path) => String::from_utf8_lossy(path).into_owned(),
        None => format!("without a name (inode {ino})"),
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Free => f.write_str("free"),
            Owner::Unknown => f.write_str("in use, by nothing that was found"),
            Owner::Boot => f.write_str("the boot block"),
            Owner::Superblock(group) => write!(f, "superblock copy of group {group}"),
            Owner::Descriptors(group) => write!(f, "group descriptors in group {group}"),
            Owner::BlockBitmap(group) => write!(f, "block bitmap of group {group}"),
            Owner::InodeBitmap(group) => write!(f, "inode bitmap of group {group}"),
            Owner::InodeTable(group, inodes) => write!(
                f,
                "inode table of group {group}, inodes {} to {}",
                inodes.start,
                inodes.end.saturating_sub(1)
            ),
            Owner::Mmp => f.write_str("the multiple-mount protection"),
            Owner::Journal => f.write_str("the journal"),
            Owner::Reserved(ino) => write!(f, "reserved inode {ino}"),
            Owner::File { ino, path, bytes } => write!(
                f,
                "file {}, bytes {} to {}",
                shown(*ino, path.as_deref()),
                bytes.start,
                bytes.end.saturating_sub(1)
            ),
            Owner::Directory { ino, path } => {
                write!(f, "directory {}", shown(*ino, path.as_deref()))
            }
            Owner::Map { ino, path } => {
                write!(f, "map of file {}", shown(*ino, path.as_deref()))
            }
            Owner::Attributes { ino, path } => {
                write!(f, "attributes of {}", shown(*ino, path.as_deref()))
            }
        }
    }
}

/// A run of blocks and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The blocks.
    pub blocks: BlockRange,
    /// Whose.
    pub owner: Owner,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Every wanted block, in order.
    pub owned: Vec<Owned>,
    /// Whether there were more runs than were asked for; what is missing is called [`Owner::Unknown`].
    pub cut: bool,
}

/// Says whose the wanted blocks are. At most `max` runs are told apart.
///
/// # Errors
/// Reading, or a superblock or group descriptor that can not be used.
pub fn owners(reader: &dyn Reader, wanted: &[BlockRange], max: usize) -> Result<Owners, FsError> {
    let sb = superblock(reader).map_err(|detail| FsError::Corrupt {
        what: "superblock",
        ino: None,
        block: None,
        detail,
    })?;
    let table = Table::new(reader, &sb)?;
    let end = reader.blocks_count();
    let wanted = wanted.iter().filter_map(|range| {
        let stop = range.start.0.saturating_add(range.len).min(end);
        (range.start.0 < stop).then(|| BlockRange::new(range.start, stop - range.start.0))
    });
    let mut found = Found {
        wanted: coalesce(wanted.collect()),
        owned: BTreeMap::new(),
        max,
        cut: false,
        nodes_left: end,
    };
    table.system(&mut found);
    table.inodes(&mut found)?;
    let mut owned = found.owned;
    paths::name(&table, &mut owned)?;
    let mut all = Owners {
        owned: Vec::new(),
        cut: found.cut,
    };
    for range in found.wanted {
        let mut at = range.start.0;
        let within = owned.range(range.start.0..range.end().0);
        let rest: Vec<(u64, Owned)> = within
            .map(|(start, owned)| (*start, owned.clone()))
            .collect();
        for (start, piece) in rest {
            table.unowned(at..start, &mut all.owned)?;
            at = piece.blocks.end().0;
            all.owned.push(piece);
        }
        table.unowned(at..range.end().0, &mut all.owned)?;
    }
    Ok(all)
}

/// What meets the wanted blocks.
struct Found {
    /// Sorted, not touching.
    wanted: Vec<BlockRange>,
    /// By first block; of two that claim a block the first stays.
    owned: BTreeMap<u64, Owned>,
    max: usize,
    cut: bool,
    /// Blocks of maps that may still be gone into: on a damaged volume a map may lead back into itself.
    nodes_left: u64,
}

impl Found {
    /// Keeps the wanted parts of a range; `owner` says whose a part is.
    fn add(&mut self, range: BlockRange, owner: &dyn Fn(BlockRange) -> Owner) {
        if range.len == 0 {
            return; // a group without copies of the descriptors
        }
        let first = (self.wanted).partition_point(|wanted| wanted.end() <= range.start);
        for i in first..self.wanted.len() {
            let wanted = self.wanted[i];
            if wanted.start >= range.end() {
                return;
            }
            let start = wanted.start.max(range.start);
            let end = wanted.end().min(range.end());
            let part = BlockRange::new(start, end.0 - start.0);
            let before = self.owned.range(..end.0).next_back();
            if before.is_some_and(|(_, owned)| owned.blocks.overlaps(&part)) {
                continue;
            }
            if self.owned.len() >= self.max {
                self.cut = true;
                return;
            }
            let owner = owner(part);
            self.owned.insert(
                start.0,
                Owned {
                    blocks: part,
                    owner,
                },
            );
        }
    }
}

/// The groups and inodes of a volume.
struct Table<'a> {
    reader: &'a dyn Reader,
    sb: &'a Superblock,
    geometry: Geometry,
    groups: Vec<GroupDesc>,
}

impl<'a> Table<'a> {
    fn new(reader: &'a dyn Reader, sb: &'a Superblock) -> Result<Table<'a>, FsError> {
        let mut groups = Vec::new();
        let mut get = |block| {
            let mut bytes = vec![0; reader.block_size() as usize];
            reader.read(block, &mut bytes)?;
            Ok(bytes.into())
        };
        crate::fs::alloc::zones::descriptors(sb, &mut get, &mut |_, desc| groups.push(desc))?;
        Ok(Table {
            reader,
            sb,
            geometry: sb.geometry(),
            groups,
        })
    }

    fn block(&self, block: BlockNo) -> Result<Vec<u8>, FsError> {
        let mut bytes = vec![0; self.geometry.block_size as usize];
        self.reader.read(block, &mut bytes)?;
        Ok(bytes)
    }

    fn walk(&self) -> Walk<'_> {
        Walk {
            reader: self.reader,
            sb: self.sb,
            blocks_count: self.geometry.blocks_count,
        }
    }

    /// The volume's own blocks.
    fn system(&self, found: &mut Found) {
        let geometry = &self.geometry;
        let boot = BlockRange::new(BlockNo(0), geometry.first_data_block.into());
        found.add(boot, &|_| Owner::Boot);
        for (group, desc) in geometry.groups().zip(&self.groups) {
            let base = geometry.base_meta(group);
            if let Some(block) = base.superblock {
                found.add(BlockRange::new(block, 1), &|_| Owner::Superblock(group));
            }
            found.add(base.descriptors, &|_| Owner::Descriptors(group));
            found.add(base.reserved, &|_| Owner::Descriptors(group));
            let [blocks, inodes, table] = desc.metadata(geometry);
            found.add(blocks, &|_| Owner::BlockBitmap(group));
            found.add(inodes, &|_| Owner::InodeBitmap(group));
            let per_block = geometry.block_size / u32::from(geometry.inode_size);
            let first = geometry.ino(group, 0).0;
            found.add(table, &|part| {
                let at = (part.start.0 - table.start.0) as u32 * per_block;
                let end = at + part.len as u32 * per_block;
                let end = end.min(geometry.inodes_per_group);
                Owner::InodeTable(group, first + at..first + end)
            });
        }
        if self.sb.has_mmp() {
            let block = BlockNo(self.sb.s_mmp_block());
            found.add(BlockRange::new(block, 1), &|_| Owner::Mmp);
        }
    }

    /// Calls `each` with every inode in use, by the inode bitmaps.
    fn each_inode(
        &self,
        each: &mut dyn FnMut(Ino, &Inode) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        let geometry = &self.geometry;
        for (group, desc) in geometry.groups().zip(&self.groups) {
            if desc.inode_uninit(self.sb) {
                continue;
            }
            let used = self.block(desc.bg_inode_bitmap())?;
            let mut current: Option<(BlockNo, Vec<u8>)> = None;
            for (start, len) in bitmap::used_runs(&used, 0, geometry.inodes_per_group) {
                for index in start..start + len {
                    let (block, offset) = geometry.inode_place(desc.bg_inode_table(), index);
                    let bytes = match current.take() {
                        Some((at, bytes)) if at == block => bytes,
                        _ => self.block(block)?,
                    };
                    let raw = bytes.get(offset..).unwrap_or_default();
                    if let Ok(inode) = Inode::decode_unverified(self.sb, raw) {
                        each(geometry.ino(group, index), &inode)?;
                    }
                    current = Some((block, bytes));
                }
            }
        }
        Ok(())
    }

    /// An inode.
    fn inode(&self, ino: Ino) -> Result<Option<Inode>, FsError> {
        let Some((group, index)) = self.geometry.inode_location(ino) else {
            return Ok(None);
        };
        let table = self.groups[group.0 as usize].bg_inode_table();
        let (block, offset) = self.geometry.inode_place(table, index);
        let bytes = self.block(block)?;
        let raw = bytes.get(offset..).unwrap_or_default();
        Ok(Inode::decode_unverified(self.sb, raw).ok())
    }

    fn inodes(&self, found: &mut Found) -> Result<(), FsError> {
        let journal = match self.sb.has_compat(compat::HAS_JOURNAL) {
            true => self.sb.s_journal_inum(),
            false => 0,
        };
        self.each_inode(&mut |ino, inode| {
            let kind = if ino.0 == journal {
                Kind::Journal
            } else if ino.0 < self.sb.first_ino() && ino != reserved::ROOT {
                Kind::Reserved
            } else {
                match inode.file_type() {
                    FileType::Directory => Kind::Directory,
                    FileType::Regular => Kind::File,
                    FileType::Symlink if !inode.is_fast_symlink(self.sb) => Kind::File,
                    _ => Kind::Other,
                }
            };
            if let Some(block) = inode.i_file_acl(self.sb) {
                let owner = Owner::Attributes { ino, path: None };
                found.add(BlockRange::new(block, 1), &|_| owner.clone());
            }
            if kind != Kind::Other {
                let block_size = u64::from(self.geometry.block_size);
                let mut visitor = Meeting {
                    found: &mut *found,
                    ino,
                    kind,
                    block_size,
                };
                self.walk().visit(ino, inode, true, &mut visitor);
            }
            Ok(())
        })
    }

    /// What nothing was found to have: free by the bitmap, or not.
    fn unowned(&self, blocks: Range<u64>, all: &mut Vec<Owned>) -> Result<(), FsError> {
        let mut at = blocks.start;
        while at < blocks.end {
            let Some((group, index)) = self.geometry.locate(BlockNo(at)) else {
                let len = blocks.end - at; // behind the file system's end, or before its start
                all.push(Owned {
                    blocks: BlockRange::new(BlockNo(at), len),
                    owner: Owner::Free,
                });
                return Ok(());
            };
            let of_group = self.geometry.group_blocks(group);
            let stop = (blocks.end.min(of_group.end().0) - of_group.start.0) as u32;
            let desc = &self.groups[group.0 as usize];
            let used = match desc.block_uninit(self.sb) {
                true => vec![0; self.geometry.block_size as usize],
                false => self.block(desc.bg_block_bitmap())?,
            };
            let mut bit = index;
            while bit < stop {
                let (taken, next) = match bitmap::test(&used, bit) {
                    true => (true, bitmap::next_zero(&used, bit, stop)),
                    false => (false, bitmap::next_one(&used, bit, stop)),
                };
                let next = next.unwrap_or(stop);
                all.push(Owned {
                    blocks: BlockRange::new(
                        BlockNo(of_group.start.0 + u64::from(bit)),
                        (next - bit).into(),
                    ),
                    owner: if taken { Owner::Unknown } else { Owner::Free },
                });
                bit = next;
            }
            at = of_group.start.0 + u64::from(stop);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Journal,
    Reserved,
    Directory,
    File,
    /// No blocks of its own.
    Other,
}

/// Meets an inode's map with the wanted blocks.
struct Meeting<'a> {
    found: &'a mut Found,
    ino: Ino,
    kind: Kind,
    block_size: u64,
}

impl Visitor for Meeting<'_> {
    fn node(&mut self, block: BlockNo, _: u32) -> bool {
        let (ino, kind) = (self.ino, self.kind);
        self.found.add(BlockRange::new(block, 1), &|_| match kind {
            Kind::Journal => Owner::Journal,
            Kind::Reserved => Owner::Reserved(ino),
            _ => Owner::Map { ino, path: None },
        });
        let left = self.found.nodes_left;
        self.found.nodes_left = left.saturating_sub(1);
        left > 0
    }

    fn data(&mut self, at: u32, blocks: BlockRange, _: bool) {
        let (ino, kind, size) = (self.ino, self.kind, self.block_size);
        self.found.add(blocks, &|part| {
            let path = None;
            match kind {
                Kind::Journal => Owner::Journal,
                Kind::Reserved => Owner::Reserved(ino),
                Kind::Directory => Owner::Directory { ino, path },
                _ => {
                    let first = u64::from(at) + (part.start.0 - blocks.start.0);
                    let bytes = first * size..(first + part.len) * size;
                    Owner::File { ino, path, bytes }
                }
            }
        });
    }

    fn wrong(&mut self, _: Option<BlockNo>, _: &dyn fmt::Display, _: &dyn fmt::Display) {}
    fn corrupt(&mut self, _: Option<BlockNo>, _: &Corrupt) {}
    fn unreadable(&mut self, _: BlockNo, _: &dyn fmt::Display) {}
}

#[cfg(test)]
mod tests;
