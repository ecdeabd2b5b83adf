//! One block of a directory: entries one behind the other, each reaching to the next, the last to the block's end or to
//! the checksum tail.
//!
//! Owns layout, checks, and changes within one block. Interior blocks of an index look like one large unused entry here;
//! what is inside is [`crate::ext4::htree`]. Never looks at a second block: which block a name belongs to, and whether it
//! exists in another, is the caller's. Invariant: a change leaves a block that `check` accepts, or changes nothing.
//!
//! An entry (`ext4_dir_entry_2`):
//!
//! | offset | type | field | meaning |
//! |---|---|---|---|
//! | 0 | u32 | `inode` | 0: unused |
//! | 4 | u16 | `rec_len` | bytes to the next entry, a multiple of 4 |
//! | 6 | u8 | `name_len` | bytes of the name |
//! | 7 | u8 | `file_type` | code of [`FileType`]; 0 without the filetype feature |
//! | 8 | u8s | `name` | not terminated |
//!
//! The tail (`ext4_dir_entry_tail`), with metadata_csum the last 12 bytes, an unused entry to whoever does not know it:
//!
//! | offset | type | field | meaning |
//! |---|---|---|---|
//! | 0 | u32 | `det_reserved_zero1` | 0 |
//! | 4 | u16 | `det_rec_len` | 12 |
//! | 6 | u8 | `det_reserved_zero2` | 0 |
//! | 7 | u8 | `det_reserved_ft` | 0xDE: guards against taking an entry for a tail |
//! | 8 | u32 | `det_checksum` | crc32c of the block up to the tail |

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::corrupt::EditError;
use crate::ext4::layout::{get, put};
use crate::ext4::{Corrupt, FileType, Refused, Superblock};
use crate::units::Ino;

const WHAT: &str = "directory block";

/// Bytes of an entry before its name.
pub const ENTRY_HEAD: usize = 8;
/// Longest name, bytes.
pub const EXT4_NAME_LEN: usize = 255;
/// Bytes of the checksum tail.
pub const TAIL_SIZE: usize = 12;
/// `det_reserved_ft`.
pub const EXT4_FT_DIR_CSUM: u8 = 0xDE;

const _: () = assert!(ENTRY_HEAD == 4 + 2 + 1 + 1);
const _: () = assert!(TAIL_SIZE == 4 + 2 + 1 + 1 + 4);

/// Least `rec_len` of an entry with a name of `name_len` bytes.
pub const fn entry_size(name_len: usize) -> usize {
    (ENTRY_HEAD + name_len + 3) & !3
}

/// An entry, used or unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Byte of the entry in the block.
    pub offset: usize,
    /// Bytes to the next entry.
    pub rec_len: usize,
    /// The inode; `None`: unused.
    pub ino: Option<Ino>,
    /// Type of the file; `Unknown` without the filetype feature.
    pub file_type: FileType,
    /// The name.
    pub name: &'a [u8],
}

/// How directory blocks of one volume are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirLayout {
    /// Inodes of the volume.
    pub inodes_count: u32,
    /// Entries carry a file type.
    pub filetype: bool,
    /// Blocks end with a checksum.
    pub tail: bool,
}

/// Where an entry was, and what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The inode.
    pub ino: Ino,
    /// Type of the file.
    pub file_type: FileType,
}

/// The kernel's `ext4_rec_len_from_disk`: only blocks of 64 KiB need more than 16 bits.
fn rec_len_from_disk(len: u16, block_size: usize) -> usize {
    if block_size < 1 << 16 {
        return len.into();
    }
    if len == 0 || len == u16::MAX {
        return block_size;
    }
    usize::from(len & !3) | usize::from(len & 3) << 16
}

fn rec_len_to_disk(len: usize, block_size: usize) -> u16 {
    if len < 1 << 16 {
        len as u16
    } else if len == block_size {
        if block_size == 1 << 16 { u16::MAX } else { 0 }
    } else {
        (len as u16 & !3) | (len >> 16) as u16 & 3
    }
}

impl DirLayout {
    /// As the volume's features say.
    pub fn new(sb: &Superblock) -> DirLayout {
        DirLayout {
            inodes_count: sb.s_inodes_count(),
            filetype: sb.has_filetype(),
            tail: sb.has_metadata_csum(),
        }
    }

    /// Bytes of a block that entries may use.
    pub fn usable(&self, block_size: usize) -> usize {
        block_size - if self.tail { TAIL_SIZE } else { 0 }
    }

    /// Every entry, unused ones and the tail (as an unused one) included. Ends after the first error.
    pub fn entries<'a>(&self, block: &'a [u8]) -> Entries<'a> {
        self.entries_from(block, 0)
    }

    /// Every entry from byte `offset` on, which must be the start of an entry (as a cookie it may be stale: then errors
    /// or nonsense come, but nothing worse).
    pub fn entries_from<'a>(&self, block: &'a [u8], offset: usize) -> Entries<'a> {
        Entries {
            layout: *self,
            block,
            offset,
        }
    }

    /// The entry at byte `offset`, checked as the kernel does (`__ext4_check_dir_entry`).
    pub fn entry<'a>(&self, block: &'a [u8], offset: usize) -> Result<Entry<'a>, Corrupt> {
        let size = block.len();
        let head = offset
            .checked_add(ENTRY_HEAD)
            .and_then(|end| block.get(offset..end))
            .ok_or(Corrupt::Short {
                what: WHAT,
                need: offset.saturating_add(ENTRY_HEAD),
                have: size,
            })?;
        let inode: u32 = get(head, 0);
        let rec_len = rec_len_from_disk(get(head, 4), size);
        let name_len = usize::from(head[6]);
        let bad = |field, expected: String, found: usize| {
            Corrupt::field(WHAT, field, offset, expected, found as u64)
        };
        if !rec_len.is_multiple_of(4) || rec_len < entry_size(1) {
            return Err(bad(
                "rec_len",
                "a multiple of 4, 12 or more".into(),
                rec_len,
            ));
        }
        if rec_len < entry_size(name_len) {
            let expected = format!("room for a name of {name_len}");
            return Err(bad("rec_len", expected, rec_len));
        }
        let end = offset + rec_len;
        if end > size || (end != size && end > size - entry_size(1).min(size)) {
            let expected = format!("an end at {size} or 12 before it");
            return Err(bad("rec_len", expected, rec_len));
        }
        if inode > self.inodes_count {
            let expected = format!("at most {}", self.inodes_count);
            return Err(bad("inode", expected, inode as usize));
        }
        Ok(Entry {
            offset,
            rec_len,
            ino: (inode != 0).then_some(Ino(inode)),
            file_type: if self.filetype {
                FileType::from_code(head[7])
            } else {
                FileType::Unknown
            },
            name: &block[offset + ENTRY_HEAD..offset + ENTRY_HEAD + name_len],
        })
    }

    /// Whether every entry is valid and the tail (where there has to be one) is there. Not for index blocks.
    pub fn check(&self, block: &[u8]) -> Result<(), Corrupt> {
        for entry in self.entries(block) {
            let entry = entry?;
            if let Some(ino) = entry.ino
                && (entry.name.is_empty() || entry.name.iter().any(|b| matches!(b, 0 | b'/')))
            {
                let expected = "not empty, without zeros and slashes";
                return Err(Corrupt::field(WHAT, "name", entry.offset, expected, ino.0));
            }
            if self.tail
                && entry.offset + entry.rec_len > block.len() - TAIL_SIZE
                && entry.offset != block.len() - TAIL_SIZE
            {
                let expected = "an end before the checksum";
                return Err(Corrupt::field(
                    WHAT,
                    "rec_len",
                    entry.offset,
                    expected,
                    entry.rec_len as u64,
                ));
            }
        }
        if self.tail {
            self.tail_at(block)?;
        }
        Ok(())
    }

    /// The used entry of this name.
    pub fn find<'a>(&self, block: &'a [u8], name: &[u8]) -> Result<Option<Entry<'a>>, Corrupt> {
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.ino.is_some() && entry.name == name {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Whether no entry but "." and ".." is in use.
    pub fn is_empty(&self, block: &[u8]) -> Result<bool, Corrupt> {
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.ino.is_some() && entry.name != b"." && entry.name != b".." {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether an entry with a name of this length fits without moving others.
    pub fn has_room(&self, block: &[u8], name_len: usize) -> Result<bool, Corrupt> {
        Ok(self.slack(block, entry_size(name_len))?.is_some())
    }

    /// The first entry that is unused or has room behind its name for `need` bytes: its offset, the bytes it keeps, and
    /// its `rec_len`.
    fn slack(&self, block: &[u8], need: usize) -> Result<Option<(usize, usize, usize)>, Corrupt> {
        let end = self.usable(block.len());
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.offset >= end {
                break;
            }
            let room = entry.rec_len.min(end - entry.offset);
            let used = match entry.ino {
                Some(_) => entry_size(entry.name.len()),
                None => 0,
            };
            if room >= used + need {
                return Ok(Some((entry.offset, used, room)));
            }
        }
        Ok(None)
    }

    /// Adds an entry in the first place with room, splitting the slack of another; returns its offset.
    /// [`Refused::Exists`] if the block has the name, [`Refused::NoRoom`]. The checksum is to be updated afterwards.
    pub fn insert(
        &self,
        block: &mut [u8],
        name: &[u8],
        ino: Ino,
        file_type: FileType,
    ) -> Result<usize, EditError> {
        check_name(name)?;
        self.check(block)?;
        if self.find(block, name)?.is_some() {
            return Err(Refused::Exists.into());
        }
        let need = entry_size(name.len());
        let Some((offset, used, room)) = self.slack(block, need)? else {
            return Err(Refused::NoRoom { need }.into());
        };
        if used > 0 {
            put(block, offset + 4, rec_len_to_disk(used, block.len()));
        }
        self.write(block, offset + used, room - used, name, ino, file_type);
        Ok(offset + used)
    }

    /// Removes the entry of this name by giving its bytes to the one before it (or marking the first unused). The
    /// checksum is to be updated afterwards.
    pub fn remove(&self, block: &mut [u8], name: &[u8]) -> Result<Removed, EditError> {
        let mut previous: Option<(usize, usize)> = None;
        let mut found = None;
        for entry in self.entries(block) {
            let entry = entry?;
            if let Some(ino) = entry.ino
                && entry.name == name
            {
                let removed = Removed {
                    ino,
                    file_type: entry.file_type,
                };
                found = Some((entry.offset, entry.rec_len, removed));
                break;
            }
            previous = Some((entry.offset, entry.rec_len));
        }
        let Some((offset, rec_len, removed)) = found else {
            return Err(Refused::NotFound.into());
        };
        match previous {
            Some((before, len)) => {
                put(
                    block,
                    before + 4,
                    rec_len_to_disk(len + rec_len, block.len()),
                );
                // The kernel clears what is behind the entry before it: names do not outlive their removal.
                block[offset..offset + rec_len].fill(0);
            }
            None => {
                put(block, offset, 0u32);
                block[offset + 6..offset + rec_len].fill(0);
            }
        }
        Ok(removed)
    }

    /// Makes the entry at `offset` (from [`DirLayout::find`]) point to another inode: rename over a name, "..".
    pub fn replace(
        &self,
        block: &mut [u8],
        offset: usize,
        ino: Ino,
        file_type: FileType,
    ) -> Result<(), EditError> {
        if self.entry(block, offset)?.ino.is_none() {
            return Err(Refused::NotFound.into());
        }
        put(block, offset, ino.0);
        if self.filetype {
            block[offset + 7] = file_type.code();
        }
        Ok(())
    }

    /// Writes an entry over whatever is there.
    fn write(
        &self,
        block: &mut [u8],
        offset: usize,
        rec_len: usize,
        name: &[u8],
        ino: Ino,
        file_type: FileType,
    ) {
        let size = block.len();
        put(block, offset, ino.0);
        put(block, offset + 4, rec_len_to_disk(rec_len, size));
        block[offset + 6] = name.len() as u8;
        block[offset + 7] = if self.filetype { file_type.code() } else { 0 };
        let start = offset + ENTRY_HEAD;
        block[start..start + name.len()].copy_from_slice(name);
        block[start + name.len()..offset + entry_size(name.len())].fill(0);
    }

    /// An empty block: one unused entry, and the tail.
    pub fn init_empty(&self, block: &mut [u8]) {
        block.fill(0);
        let size = block.len();
        put(block, 4, rec_len_to_disk(self.usable(size), size));
        self.init_tail(block);
    }

    /// The first block of a new directory: ".", "..", and the tail.
    pub fn init_dir(&self, block: &mut [u8], ino: Ino, parent: Ino) {
        block.fill(0);
        let end = self.usable(block.len());
        let first = entry_size(1);
        self.write(block, 0, first, b".", ino, FileType::Directory);
        self.write(
            block,
            first,
            end - first,
            b"..",
            parent,
            FileType::Directory,
        );
        self.init_tail(block);
    }

    /// Writes these entries one behind the other, the last reaching to the end, and the tail: how a full block is split
    /// or compacted. [`Refused::NoRoom`] (with nothing changed) if they do not fit.
    pub fn pack(
        &self,
        block: &mut [u8],
        entries: &[(Ino, FileType, &[u8])],
    ) -> Result<(), Refused> {
        let end = self.usable(block.len());
        let need: usize = entries.iter().map(|e| entry_size(e.2.len())).sum();
        if need > end {
            return Err(Refused::NoRoom { need });
        }
        for (_, _, name) in entries {
            check_name(name)?;
        }
        self.init_empty(block);
        let mut offset = 0;
        for (i, &(ino, file_type, name)) in entries.iter().enumerate() {
            let last = i + 1 == entries.len();
            let rec_len = if last {
                end - offset
            } else {
                entry_size(name.len())
            };
            self.write(block, offset, rec_len, name, ino, file_type);
            offset += rec_len;
        }
        Ok(())
    }

    // ---- the tail

    fn init_tail(&self, block: &mut [u8]) {
        if self.tail {
            let at = block.len() - TAIL_SIZE;
            block[at..].fill(0);
            put(block, at + 4, TAIL_SIZE as u16);
            block[at + 7] = EXT4_FT_DIR_CSUM;
        }
    }

    /// Offset of the tail, if it is one.
    fn tail_at(&self, block: &[u8]) -> Result<usize, Corrupt> {
        Corrupt::need(WHAT, block, TAIL_SIZE)?;
        let at = block.len() - TAIL_SIZE;
        let head: u64 = get(block, at);
        let expected = u64::from(EXT4_FT_DIR_CSUM) << 56 | (TAIL_SIZE as u64) << 32;
        if head != expected {
            return Err(Corrupt::field(
                WHAT,
                "checksum tail",
                at,
                format!("{expected:#x}"),
                head,
            ));
        }
        Ok(at)
    }

    /// Compares the checksum of a linear block (metadata_csum only). `seed` is the directory's
    /// ([`crate::ext4::Inode::seed`]).
    pub fn verify(&self, seed: u32, block: &[u8]) -> Result<(), Corrupt> {
        if !self.tail {
            return Ok(());
        }
        let at = self.tail_at(block)?;
        Corrupt::checksum(WHAT, crc32c_raw(seed, &block[..at]), get(block, at + 8))
    }

    /// Stores the checksum of a linear block (metadata_csum only).
    pub fn update(&self, seed: u32, block: &mut [u8]) -> Result<(), Corrupt> {
        if self.tail {
            let at = self.tail_at(block)?;
            let sum = crc32c_raw(seed, &block[..at]);
            put(block, at + 8, sum);
        }
        Ok(())
    }
}

/// A name that may be stored: 1 to 255 bytes, no zero, no slash.
fn check_name(name: &[u8]) -> Result<(), Refused> {
    if name.is_empty() || name.len() > EXT4_NAME_LEN || name.iter().any(|b| matches!(b, 0 | b'/')) {
        return Err(Refused::BadName { len: name.len() });
    }
    Ok(())
}

/// Iterator over the entries of a block.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    layout: DirLayout,
    block: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.block.len() {
            return None;
        }
        let entry = self.layout.entry(self.block, self.offset);
        self.offset = match &entry {
            Ok(entry) => entry.offset + entry.rec_len,
            Err(_) => self.block.len(),
        };
        Some(entry)
    }
}

#[cfg(test)]
mod tests;
