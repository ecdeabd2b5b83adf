//! Extended attributes, in inodes and in blocks: entries and values within their region and apart from each other, hashes,
//! checksums, and how many inodes share a block.

use super::{Check, Class, Shared};
use crate::ext4::Inode;
use crate::ext4::inode::GOOD_OLD_INODE_SIZE;
use crate::ext4::layout::get;
use crate::ext4::xattr::{self, EXT4_XATTR_MAGIC, XATTR_BLOCK_HEAD, XATTR_ENTRY_HEAD};
use crate::units::{BlockRange, Ino};

/// A region of entries and values.
struct Region<'a> {
    bytes: &'a [u8],
    /// Where the first entry is; offsets of values count from the region's start.
    first: usize,
    /// In a block every entry has a hash and a known prefix.
    block: bool,
}

fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// What hashes were when names' bytes were taken as signed.
fn signed_hash(name: &[u8], value: &[u8]) -> u32 {
    let name = name.iter().fold(0u32, |hash, &byte| {
        hash.rotate_left(5) ^ (byte as i8 as i32 as u32)
    });
    value.chunks(4).fold(name, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

impl Region<'_> {
    /// What is wrong with it, if anything: expected and found. Else the hash over all entries.
    fn check(&self) -> Result<u32, (&'static str, String)> {
        let bytes = self.bytes;
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut at = self.first;
        let mut all = Some(0u32);
        loop {
            if at + 4 > bytes.len() {
                return Err((
                    "entries that end in the region",
                    format!("none ends at byte {at}"),
                ));
            }
            if get::<u32>(bytes, at) == 0 {
                break;
            }
            let name_at = at + XATTR_ENTRY_HEAD;
            let name_len = usize::from(bytes[at]);
            let Some(name) = bytes.get(name_at..name_at + name_len) else {
                return Err(("a name in the region", format!("{name_len} bytes at {at}")));
            };
            let index = bytes[at + 1];
            if self.block && index == 0 {
                return Err(("a known prefix", format!("none, byte {at}")));
            }
            if name.contains(&0) {
                return Err(("a name without zeros", format!("one at byte {at}")));
            }
            if get::<u32>(bytes, at + 4) != 0 {
                let found = format!("one in an inode of its own, byte {at}");
                return Err(("a value in the region", found));
            }
            let size = get::<u32>(bytes, at + 8) as usize;
            let offset = usize::from(get::<u16>(bytes, at + 2));
            let value = if size == 0 {
                &[][..]
            } else {
                let end = align(size.min(bytes.len() + 1)) + offset;
                if end > bytes.len() {
                    let found = format!("{size} bytes from {offset} on");
                    return Err(("a value in the region", found));
                }
                taken.push((offset, end));
                // Hashed in whole words, whatever is behind its last byte.
                &bytes[offset..end]
            };
            let hash: u32 = get(bytes, at + 12);
            if (hash != 0 || self.block)
                && hash != xattr::entry_hash(name, value)
                && hash != signed_hash(name, value)
            {
                let found = format!("{hash:#010x} at byte {at}");
                return Err(("the hash of name and value", found));
            }
            all = all
                .filter(|_| hash != 0)
                .map(|all| all.rotate_left(16) ^ hash);
            at += align(XATTR_ENTRY_HEAD + name_len);
        }
        taken.push((0, at + 4));
        taken.sort_unstable();
        if let Some(pair) = taken.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            let found = format!("one at byte {} within another", pair[1].0);
            return Err(("values apart from entries and each other", found));
        }
        Ok(all.unwrap_or(0))
    }
}

impl Check<'_> {
    /// The attributes behind the fields of an inode; how many bytes there is room for.
    pub(super) fn ibody(&mut self, ino: Ino, inode: &Inode) -> usize {
        let raw = inode.as_bytes();
        let start = GOOD_OLD_INODE_SIZE + usize::from(inode.i_extra_isize());
        if inode.i_extra_isize() == 0 || start + 8 > raw.len() {
            return 0;
        }
        let room = &raw[start..];
        if get::<u32>(room, 0) == EXT4_XATTR_MAGIC {
            let region = Region {
                bytes: &room[4..],
                first: 0,
                block: false,
            };
            if let Err((expected, found)) = region.check() {
                let place = format_args!("attributes in inode {ino}");
                self.sink.add(Class::Attributes, place, expected, found);
            }
        }
        room.len()
    }

    /// The attribute block of an inode: how many blocks it has, 0 or 1.
    pub(super) fn attribute_block(&mut self, ino: Ino, inode: &Inode) -> u64 {
        let Some(block) = inode.i_file_acl(&self.sb) else {
            return 0;
        };
        let first = u64::from(self.geometry.first_data_block);
        if block.0 < first || block.0 >= self.geometry.blocks_count {
            let place = format_args!("inode {ino}");
            let found = format_args!("i_file_acl is {block}");
            self.sink
                .add(Class::Attributes, place, "a block of the volume", found);
            return 0;
        }
        if let Some(shared) = self.attribute_blocks.get_mut(&block.0) {
            shared.seen += 1;
            return 1;
        }
        if self.blocks.claim(BlockRange::new(block, 1)).is_some() {
            let place = format_args!("attribute block {block} of inode {ino}");
            let found = "one that something else has too";
            self.sink
                .add(Class::Twice, place, "a block of its own", found);
        }
        let mut shared = Shared { stated: 1, seen: 1 };
        if let Some(bytes) = self.block(block) {
            shared.stated = get(&bytes, 4);
            let place = format_args!("attribute block {block} of inode {ino}");
            if get::<u32>(&bytes, 0) != EXT4_XATTR_MAGIC {
                let found = format_args!("h_magic is {:#x}", get::<u32>(&bytes, 0));
                self.sink
                    .add(Class::Attributes, place, "an attribute block", found);
            } else {
                if let Err(e) = xattr::verify_block(&self.sb, block, &bytes) {
                    self.sink.corrupt(Class::Attributes, place, &e);
                }
                let region = Region {
                    bytes: &bytes,
                    first: XATTR_BLOCK_HEAD,
                    block: true,
                };
                let h_hash: u32 = get(&bytes, 12);
                match region.check() {
                    Err((expected, found)) => {
                        self.sink.add(Class::Attributes, place, expected, found);
                    }
                    Ok(hash) if h_hash != 0 && h_hash != hash => {
                        let found = format_args!("h_hash is {h_hash:#010x}");
                        let expected = format_args!("{hash:#010x}");
                        self.sink.add(Class::Attributes, place, expected, found);
                    }
                    Ok(_) => {}
                }
            }
        }
        self.attribute_blocks.insert(block.0, shared);
        1
    }

    /// Compares how often each attribute block is referred to with what it says.
    pub(super) fn attribute_counts(&mut self) {
        let mut wrong: Vec<_> = (self.attribute_blocks.iter())
            .filter(|(_, shared)| shared.stated != shared.seen)
            .map(|(block, shared)| (*block, shared.stated, shared.seen))
            .collect();
        wrong.sort_unstable();
        for (block, stated, seen) in wrong {
            let place = format_args!("attribute block {block}");
            let expected = format_args!("{seen} inodes, which refer to it");
            let found = format_args!("h_refcount is {stated}");
            self.sink.add(Class::Attributes, place, expected, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::XattrSet;
    use proptest::prelude::*;

    fn filled() -> Vec<u8> {
        let mut set = XattrSet::default();
        set.set(1, b"name", b"a value").unwrap();
        set.set(1, "n\u{e4}me".as_bytes(), &[7; 90]).unwrap();
        set.set(4, b"empty", b"").unwrap();
        let mut block = vec![0; 1024];
        set.encode_block(&mut block, 1).unwrap();
        block
    }

    fn region(bytes: &[u8]) -> Region<'_> {
        Region {
            bytes,
            first: XATTR_BLOCK_HEAD,
            block: true,
        }
    }

    #[test]
    fn what_was_encoded_is_sound_and_has_the_hash_of_the_block() {
        let block = filled();
        assert_eq!(region(&block).check(), Ok(get::<u32>(&block, 12)));
    }

    #[test]
    fn a_changed_byte_of_a_value_is_found() {
        let mut block = filled();
        let at = block.iter().rposition(|b| *b == 7).unwrap();
        block[at] ^= 1;
        assert!(region(&block).check().is_err());
    }

    #[test]
    fn what_is_behind_a_value_in_its_last_word_is_hashed_too() {
        let mut block = filled();
        let at = XATTR_BLOCK_HEAD;
        let size = get::<u32>(&block, at + 8) as usize;
        let offset = usize::from(get::<u16>(&block, at + 2));
        let name = block[at + XATTR_ENTRY_HEAD..][..usize::from(block[at])].to_vec();
        assert!(
            !size.is_multiple_of(4),
            "the first value fills its last word"
        );
        block[offset + size] = 9;
        assert!(region(&block).check().is_err());
        let hash = xattr::entry_hash(&name, &block[offset..offset + align(size)]);
        block[at + 12..at + 16].copy_from_slice(&hash.to_le_bytes());
        assert!(region(&block).check().is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 32..300), first in 0usize..32) {
            let region = Region { bytes: &bytes, first, block: false };
            let _ = region.check();
        }
    }
}
