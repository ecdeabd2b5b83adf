//! Extended attributes: in the room behind an inode's fields (ibody), and in one block of their own.
//!
//! Owns both layouts, hashes, the block's checksum, and the prefixes of names. A change rewrites the whole region from a
//! list of attributes: regions are small, and a rewritten region has no holes. Where an attribute goes (inode or block)
//! and whether a block may be shared is not decided here. Values in inodes of their own (ea_inode) are refused.
//!
//! An entry (`ext4_xattr_entry`), 4-byte aligned, entries growing up and ended by four zero bytes:
//!
//! | offset | type | field | meaning |
//! |---|---|---|---|
//! | 0 | u8 | `e_name_len` | bytes of the name, without its prefix |
//! | 1 | u8 | `e_name_index` | which prefix |
//! | 2 | u16 | `e_value_offs` | where the value is, from the first entry (ibody) or the block's start |
//! | 4 | u32 | `e_value_inum` | inode of the value (ea_inode), else 0 |
//! | 8 | u32 | `e_value_size` | bytes of the value |
//! | 12 | u32 | `e_hash` | of name and value; 0 in an inode |
//! | 16 | u8s | `e_name` | not terminated |
//!
//! Values grow down from the region's end, each padded with zeros to 4 bytes. The ibody starts with `h_magic`
//! (0xEA020000, u32). A block starts with (`ext4_xattr_header`):
//!
//! | offset | type | field | meaning |
//! |---|---|---|---|
//! | 0 | u32 | `h_magic` | 0xEA020000 |
//! | 4 | u32 | `h_refcount` | inodes that share the block |
//! | 8 | u32 | `h_blocks` | 1 |
//! | 12 | u32 | `h_hash` | of all entries; 0: not to be shared |
//! | 16 | u32 | `h_checksum` | crc32c of block number and block |
//! | 20 | u32 × 3 | `h_reserved` | kept |

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::layout::{get, put};
use crate::ext4::{Corrupt, Refused, Superblock};
use crate::units::BlockNo;

/// `h_magic`.
pub const EXT4_XATTR_MAGIC: u32 = 0xEA02_0000;
/// Bytes of an entry before its name.
pub const XATTR_ENTRY_HEAD: usize = 16;
/// Bytes of a block's header.
pub const XATTR_BLOCK_HEAD: usize = 32;
/// Bytes of an inode's header.
pub const XATTR_IBODY_HEAD: usize = 4;
/// Most inodes that share a block (kernel: `EXT4_XATTR_REFCOUNT_MAX`).
pub const EXT4_XATTR_REFCOUNT_MAX: u32 = 1024;
/// Bytes behind the last entry.
const TERMINATOR: usize = 4;

const IBODY: &str = "attributes in the inode";
const BLOCK: &str = "attribute block";

const _: () = assert!(XATTR_ENTRY_HEAD == 1 + 1 + 2 + 4 + 4 + 4);
const _: () = assert!(XATTR_BLOCK_HEAD == 4 + 4 + 4 + 4 + 4 + 3 * 4);

/// `e_name_index`: which prefix (or whole name) an attribute has.
pub mod index {
    #![allow(missing_docs, reason = "the names are the kernel's own")]
    pub const USER: u8 = 1;
    pub const POSIX_ACL_ACCESS: u8 = 2;
    pub const POSIX_ACL_DEFAULT: u8 = 3;
    pub const TRUSTED: u8 = 4;
    pub const LUSTRE: u8 = 5;
    pub const SECURITY: u8 = 6;
    pub const SYSTEM: u8 = 7;
    pub const RICHACL: u8 = 8;
    pub const ENCRYPTION: u8 = 9;
    pub const HURD: u8 = 10;
}

/// Whole names first: the search takes the first that fits.
const NAMES: &[(u8, &[u8])] = &[
    (index::POSIX_ACL_ACCESS, b"system.posix_acl_access"),
    (index::POSIX_ACL_DEFAULT, b"system.posix_acl_default"),
    (index::RICHACL, b"system.richacl"),
    (index::USER, b"user."),
    (index::TRUSTED, b"trusted."),
    (index::LUSTRE, b"lustre."),
    (index::SECURITY, b"security."),
    (index::SYSTEM, b"system."),
    (index::HURD, b"gnu."),
];

/// Splits a name as programs say it into index and rest; `None` if no prefix fits, or nothing is behind one.
pub fn split_name(full: &[u8]) -> Option<(u8, &[u8])> {
    NAMES.iter().find_map(|&(index, known)| {
        let rest = full.strip_prefix(known)?;
        let prefix = known.ends_with(b".");
        (prefix != rest.is_empty()).then_some((index, rest))
    })
}

/// The name as programs say it; `None` for an index that has no name for them.
pub fn full_name(index: u8, name: &[u8]) -> Option<Vec<u8>> {
    let (_, known) = NAMES.iter().find(|row| row.0 == index)?;
    Some([known, name].concat())
}

/// An attribute where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrRef<'a> {
    /// Which prefix ([`index`]).
    pub index: u8,
    /// The name without it.
    pub name: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// Hash of name and value; 0 in an inode.
    pub e_hash: u32,
}

/// An attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Which prefix ([`index`]).
    pub index: u8,
    /// The name without it, at most 255 bytes.
    pub name: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

impl Xattr {
    /// The order of entries in a block (kernel: `ext4_xattr_find_entry`).
    fn order(&self) -> (u8, usize, &[u8]) {
        (self.index, self.name.len(), &self.name)
    }

    /// Bytes that it takes: entry and padded value.
    pub fn size(&self) -> usize {
        align(XATTR_ENTRY_HEAD + self.name.len()) + align(self.value.len())
    }
}

fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// The entries of a region, checked one by one; ends after the first error. `base` is what offsets count from.
#[derive(Clone, Debug)]
pub struct Xattrs<'a> {
    what: &'static str,
    region: &'a [u8],
    at: usize,
    names_end: usize,
}

impl<'a> Xattrs<'a> {
    /// Walks the names first: values must lie behind all of them.
    fn new(what: &'static str, region: &'a [u8], first: usize) -> Result<Xattrs<'a>, Corrupt> {
        let mut at = first;
        loop {
            Corrupt::need(what, region, at + TERMINATOR)?;
            if get::<u32>(region, at) == 0 {
                break;
            }
            at += align(XATTR_ENTRY_HEAD + usize::from(region[at]));
        }
        Ok(Xattrs {
            what,
            region,
            at: first,
            names_end: at + TERMINATOR,
        })
    }

    fn read(&self, at: usize) -> Result<(XattrRef<'a>, usize), Corrupt> {
        let what = self.what;
        let head = &self.region[at..at + XATTR_ENTRY_HEAD];
        let name_len = usize::from(head[0]);
        let name = &self.region[at + XATTR_ENTRY_HEAD..at + XATTR_ENTRY_HEAD + name_len];
        if name.contains(&0) {
            return Err(Corrupt::field(
                what,
                "e_name",
                at,
                "no zeros",
                name_len as u64,
            ));
        }
        let inum: u32 = get(head, 4);
        if inum != 0 {
            return Err(Corrupt::field(
                what,
                "e_value_inum",
                at,
                "0 (no ea_inode)",
                inum,
            ));
        }
        let size: u32 = get(head, 8);
        let value = if size == 0 {
            &[][..]
        } else {
            let offset = usize::from(get::<u16>(head, 2));
            let padded = (size as usize)
                .checked_next_multiple_of(4)
                .and_then(|len| offset.checked_add(len));
            if offset < self.names_end || padded.is_none_or(|end| end > self.region.len()) {
                let expected = format!("from {} to {}", self.names_end, self.region.len());
                return Err(Corrupt::field(
                    what,
                    "e_value_offs",
                    at,
                    expected,
                    offset as u64,
                ));
            }
            &self.region[offset..offset + size as usize]
        };
        let entry = XattrRef {
            index: head[1],
            name,
            value,
            e_hash: get(head, 12),
        };
        Ok((entry, at + align(XATTR_ENTRY_HEAD + name_len)))
    }

    /// The value of one attribute.
    fn find(self, index: u8, name: &[u8]) -> Result<Option<&'a [u8]>, Corrupt> {
        for entry in self {
            let entry = entry?;
            if entry.index == index && entry.name == name {
                return Ok(Some(entry.value));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<XattrRef<'a>, Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at + TERMINATOR >= self.names_end {
            return None;
        }
        let entry = self.read(self.at);
        self.at = match &entry {
            Ok((_, next)) => *next,
            Err(_) => self.names_end,
        };
        Some(entry.map(|(entry, _)| entry))
    }
}

/// The attributes in an inode; `ibody` is [`crate::ext4::Inode::ibody`]. None if the magic is not there.
pub fn ibody_entries(ibody: &[u8]) -> Result<Xattrs<'_>, Corrupt> {
    if ibody.len() < XATTR_IBODY_HEAD + TERMINATOR || get::<u32>(ibody, 0) != EXT4_XATTR_MAGIC {
        return Xattrs::new(IBODY, &[0; TERMINATOR], 0);
    }
    Xattrs::new(IBODY, &ibody[XATTR_IBODY_HEAD..], 0)
}

/// The attributes of a block (whose checksum [`verify_block`] has been called for).
pub fn block_entries(block: &[u8]) -> Result<Xattrs<'_>, Corrupt> {
    Corrupt::need(BLOCK, block, XATTR_BLOCK_HEAD)?;
    let magic: u32 = get(block, 0);
    if magic != EXT4_XATTR_MAGIC {
        return Err(Corrupt::field(BLOCK, "h_magic", 0, "0xea020000", magic));
    }
    let blocks: u32 = get(block, 8);
    if blocks != 1 {
        return Err(Corrupt::field(BLOCK, "h_blocks", 8, "1", blocks));
    }
    Xattrs::new(BLOCK, block, XATTR_BLOCK_HEAD)
}

/// The value of one attribute in an inode.
pub fn find_in_ibody<'a>(
    ibody: &'a [u8],
    index: u8,
    name: &[u8],
) -> Result<Option<&'a [u8]>, Corrupt> {
    ibody_entries(ibody)?.find(index, name)
}

/// The value of one attribute in a block.
pub fn find_in_block<'a>(
    block: &'a [u8],
    index: u8,
    name: &[u8],
) -> Result<Option<&'a [u8]>, Corrupt> {
    block_entries(block)?.find(index, name)
}

/// A list of attributes, to be changed and written back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XattrSet {
    attributes: Vec<Xattr>,
}

impl XattrSet {
    /// Those of an inode.
    pub fn from_ibody(ibody: &[u8]) -> Result<XattrSet, Corrupt> {
        XattrSet::collect(ibody_entries(ibody)?)
    }

    /// Those of a block.
    pub fn from_block(block: &[u8]) -> Result<XattrSet, Corrupt> {
        XattrSet::collect(block_entries(block)?)
    }

    fn collect(entries: Xattrs<'_>) -> Result<XattrSet, Corrupt> {
        let what = entries.what;
        let room = entries.region.len();
        let mut attributes = Vec::new();
        let mut values = 0;
        for entry in entries {
            let entry = entry?;
            // Overlapping values would grow when they are written apart again.
            values += align(entry.value.len());
            if values > room {
                let expected = format!("values of {room} bytes in all");
                return Err(Corrupt::field(
                    what,
                    "e_value_size",
                    0,
                    expected,
                    values as u64,
                ));
            }
            attributes.push(Xattr {
                index: entry.index,
                name: entry.name.to_vec(),
                value: entry.value.to_vec(),
            });
        }
        Ok(XattrSet { attributes })
    }

    /// The attributes, in no particular order.
    pub fn iter(&self) -> std::slice::Iter<'_, Xattr> {
        self.attributes.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty()
    }

    /// Number of attributes.
    pub fn len(&self) -> usize {
        self.attributes.len()
    }

    /// The value of one.
    pub fn get(&self, index: u8, name: &[u8]) -> Option<&[u8]> {
        let found = self
            .attributes
            .iter()
            .find(|a| a.index == index && a.name == name);
        found.map(|a| &a.value[..])
    }

    /// Adds an attribute or replaces its value; returns the value before.
    pub fn set(
        &mut self,
        index: u8,
        name: &[u8],
        value: &[u8],
    ) -> Result<Option<Vec<u8>>, Refused> {
        if name.len() > 255 || name.contains(&0) {
            return Err(Refused::BadName { len: name.len() });
        }
        if value.len() > usize::from(u16::MAX) {
            return Err(Refused::TooLarge { len: value.len() });
        }
        let found = self
            .attributes
            .iter_mut()
            .find(|a| a.index == index && a.name == name);
        Ok(match found {
            Some(attribute) => Some(std::mem::replace(&mut attribute.value, value.to_vec())),
            None => {
                self.attributes.push(Xattr {
                    index,
                    name: name.to_vec(),
                    value: value.to_vec(),
                });
                None
            }
        })
    }

    /// Removes an attribute; returns its value.
    pub fn remove(&mut self, index: u8, name: &[u8]) -> Option<Vec<u8>> {
        let at = self
            .attributes
            .iter()
            .position(|a| a.index == index && a.name == name)?;
        Some(self.attributes.remove(at).value)
    }

    /// Bytes for entries, their end and values, without a header.
    pub fn size(&self) -> usize {
        TERMINATOR + self.attributes.iter().map(Xattr::size).sum::<usize>()
    }

    /// Whether they fit into an ibody of `len` bytes.
    pub fn fits_ibody(&self, len: usize) -> bool {
        self.is_empty() || self.size() + XATTR_IBODY_HEAD <= len
    }

    /// Whether they fit into a block.
    pub fn fits_block(&self, block_size: usize) -> bool {
        self.size() + XATTR_BLOCK_HEAD <= block_size
    }

    /// Rewrites the room behind an inode's fields; all zeros when there are no attributes. [`Refused::NoRoom`] with
    /// nothing changed.
    pub fn encode_ibody(&self, ibody: &mut [u8]) -> Result<(), Refused> {
        if !self.fits_ibody(ibody.len()) {
            let need = self.size() + XATTR_IBODY_HEAD;
            return Err(Refused::NoRoom { need });
        }
        ibody.fill(0);
        if !self.is_empty() {
            put(ibody, 0, EXT4_XATTR_MAGIC);
            // The kernel leaves e_hash 0 in inodes.
            write(
                self.attributes.iter(),
                &mut ibody[XATTR_IBODY_HEAD..],
                0,
                |_| 0,
            );
        }
        Ok(())
    }

    /// Rewrites a block: entries sorted, hashes computed, `h_reserved` kept. The checksum is to be updated afterwards
    /// ([`update_block`]). [`Refused::NoRoom`] with nothing changed.
    pub fn encode_block(&self, block: &mut [u8], h_refcount: u32) -> Result<(), Refused> {
        if !self.fits_block(block.len()) {
            let need = self.size() + XATTR_BLOCK_HEAD;
            return Err(Refused::NoRoom { need });
        }
        let mut sorted: Vec<&Xattr> = self.attributes.iter().collect();
        sorted.sort_by(|a, b| a.order().cmp(&b.order()));
        block[XATTR_BLOCK_HEAD..].fill(0);
        put(block, 0, EXT4_XATTR_MAGIC);
        put(block, 4, h_refcount);
        put(block, 8, 1u32);
        let hash = |a: &Xattr| entry_hash(&a.name, &a.value);
        put(block, 12, block_hash(sorted.iter().map(|a| hash(a))));
        put(block, 16, 0u32);
        write(sorted.into_iter(), block, XATTR_BLOCK_HEAD, hash);
        Ok(())
    }
}

/// Writes entries from `first` on and values from the end down, into zeros with enough room.
fn write<'a>(
    attributes: impl Iterator<Item = &'a Xattr>,
    region: &mut [u8],
    first: usize,
    hash: impl Fn(&Xattr) -> u32,
) {
    let (mut at, mut values) = (first, region.len());
    for a in attributes {
        region[at] = a.name.len() as u8;
        region[at + 1] = a.index;
        if !a.value.is_empty() {
            values -= align(a.value.len());
            region[values..values + a.value.len()].copy_from_slice(&a.value);
            put(region, at + 2, values as u16);
        }
        put(region, at + 8, a.value.len() as u32);
        put(region, at + 12, hash(a));
        let name = at + XATTR_ENTRY_HEAD;
        region[name..name + a.name.len()].copy_from_slice(&a.name);
        at += align(XATTR_ENTRY_HEAD + a.name.len());
    }
}

/// `e_hash` (kernel: `ext4_xattr_hash_entry`): name bytes as unsigned, then the value in padded little-endian words.
pub fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
    value.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

/// `h_hash` (kernel: `ext4_xattr_rehash`): 0 if an entry has no hash.
fn block_hash(hashes: impl Iterator<Item = u32>) -> u32 {
    let mut all = 0u32;
    for hash in hashes {
        if hash == 0 {
            return 0;
        }
        all = all.rotate_left(16) ^ hash;
    }
    all
}

/// Number of inodes that share the block.
pub fn h_refcount(block: &[u8]) -> Result<u32, Corrupt> {
    Corrupt::need(BLOCK, block, XATTR_BLOCK_HEAD)?;
    Ok(get(block, 4))
}

/// Sets the number of inodes that share the block; the checksum is to be updated afterwards.
pub fn set_h_refcount(block: &mut [u8], count: u32) -> Result<(), Corrupt> {
    Corrupt::need(BLOCK, block, XATTR_BLOCK_HEAD)?;
    put(block, 4, count);
    Ok(())
}

fn block_checksum(sb: &Superblock, at: BlockNo, block: &[u8]) -> u32 {
    let mut sum = crc32c_raw(sb.csum_seed(), &at.0.to_le_bytes());
    sum = crc32c_raw(sum, &block[..16]);
    sum = crc32c_raw(sum, &[0; 4]);
    crc32c_raw(sum, &block[20..])
}

/// Compares magic and checksum (metadata_csum only) of the attribute block at `at`.
pub fn verify_block(sb: &Superblock, at: BlockNo, block: &[u8]) -> Result<(), Corrupt> {
    block_entries(block)?;
    if sb.has_metadata_csum() {
        Corrupt::checksum(BLOCK, block_checksum(sb, at, block), get(block, 16))?;
    }
    Ok(())
}

/// Stores the checksum of the attribute block at `at` (metadata_csum only).
pub fn update_block(sb: &Superblock, at: BlockNo, block: &mut [u8]) -> Result<(), Corrupt> {
    Corrupt::need(BLOCK, block, XATTR_BLOCK_HEAD)?;
    if sb.has_metadata_csum() {
        let sum = block_checksum(sb, at, block);
        put(block, 16, sum);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
