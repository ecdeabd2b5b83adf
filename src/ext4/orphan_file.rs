//! A block of the orphan file: inode numbers of files that are unlinked but open, or being truncated. Owns one block's
//! layout and checksum; which inodes they are and what to do with them is not here.
//!
//! | offset | type | field | meaning |
//! |---|---|---|---|
//! | 0 | u32 each | entries | inode numbers; 0: free |
//! | size - 8 | u32 | `ob_magic` | 0x0b10ca04 |
//! | size - 4 | u32 | `ob_checksum` | crc32c of block number and entries |

use crate::ext4::checksum::crc32c_raw;
use crate::ext4::layout::{get, put};
use crate::ext4::{Corrupt, Superblock};
use crate::units::{BlockNo, Ino};

const WHAT: &str = "orphan file block";

/// `ob_magic`.
pub const EXT4_ORPHAN_BLOCK_MAGIC: u32 = 0x0b10_ca04;
/// Bytes of the tail.
pub const ORPHAN_TAIL_SIZE: usize = 8;

const _: () = assert!(ORPHAN_TAIL_SIZE == 4 + 4);

/// Entries of a block.
pub fn slots(block_size: usize) -> usize {
    block_size.saturating_sub(ORPHAN_TAIL_SIZE) / 4
}

/// The orphans of a block: (slot, inode).
pub fn orphans(block: &[u8]) -> impl Iterator<Item = (usize, Ino)> {
    block
        .chunks_exact(4)
        .take(slots(block.len()))
        .enumerate()
        .map(|(slot, bytes)| (slot, Ino(get(bytes, 0))))
        .filter(|(_, ino)| ino.0 != 0)
}

/// The first free slot.
pub fn free_slot(block: &[u8]) -> Option<usize> {
    let mut entries = block.chunks_exact(4).take(slots(block.len()));
    entries.position(|bytes| bytes == [0; 4])
}

/// Fills (`Some`) or frees a slot, which must exist. The checksum is to be updated afterwards.
pub fn set_slot(block: &mut [u8], slot: usize, ino: Option<Ino>) {
    assert!(slot < slots(block.len()), "a slot of the block");
    put(block, slot * 4, ino.map_or(0, |ino| ino.0));
}

/// Makes an empty block.
pub fn init(block: &mut [u8]) {
    block.fill(0);
    let at = block.len() - ORPHAN_TAIL_SIZE;
    put(block, at, EXT4_ORPHAN_BLOCK_MAGIC);
}

fn checksum(seed: u32, at: BlockNo, block: &[u8]) -> u32 {
    let sum = crc32c_raw(seed, &at.0.to_le_bytes());
    crc32c_raw(sum, &block[..slots(block.len()) * 4])
}

/// Compares magic and checksum (metadata_csum only) of the block at `at`. `seed` is the orphan file's
/// ([`crate::ext4::Inode::seed`]).
pub fn verify(sb: &Superblock, seed: u32, at: BlockNo, block: &[u8]) -> Result<(), Corrupt> {
    Corrupt::need(WHAT, block, ORPHAN_TAIL_SIZE)?;
    let tail = block.len() - ORPHAN_TAIL_SIZE;
    let magic: u32 = get(block, tail);
    if magic != EXT4_ORPHAN_BLOCK_MAGIC {
        return Err(Corrupt::field(WHAT, "ob_magic", tail, "0xb10ca04", magic));
    }
    if sb.has_metadata_csum() {
        Corrupt::checksum(WHAT, checksum(seed, at, block), get(block, tail + 4))?;
    }
    Ok(())
}

/// Stores the checksum (metadata_csum only) of the block at `at`.
pub fn update(sb: &Superblock, seed: u32, at: BlockNo, block: &mut [u8]) {
    if sb.has_metadata_csum() {
        let sum = checksum(seed, at, block);
        let at = block.len() - 4;
        put(block, at, sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_come_and_go() {
        let mut block = vec![0xEE; 1024];
        init(&mut block);
        assert_eq!(&block[1016..], [0x04, 0xCA, 0x10, 0x0B, 0, 0, 0, 0]);
        assert_eq!(slots(1024), 254);
        assert_eq!(free_slot(&block), Some(0));
        set_slot(&mut block, 0, Some(Ino(12)));
        set_slot(&mut block, 253, Some(Ino(13)));
        assert_eq!(free_slot(&block), Some(1));
        assert_eq!(
            orphans(&block).collect::<Vec<_>>(),
            [(0, Ino(12)), (253, Ino(13))]
        );
        set_slot(&mut block, 0, None);
        assert_eq!(free_slot(&block), Some(0));
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..70)) {
            let _ = orphans(&bytes).count() + free_slot(&bytes).unwrap_or(0);
        }
    }
}
