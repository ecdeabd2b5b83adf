//! Block maps of ext2 and ext3 (inodes without the extents flag): twelve direct pointers, then one, two and three levels
//! of blocks of pointers. Reading only: files of ours have extents.
//!
//! | offset in `i_block` | type | meaning |
//! |---|---|---|
//! | 0 | u32 × 12 | the first twelve blocks |
//! | 48 | u32 | block of pointers |
//! | 52 | u32 | two levels |
//! | 56 | u32 | three levels |

use crate::ext4::Corrupt;
use crate::ext4::layout::get;
use crate::units::{BlockNo, FileBlock};

/// Direct pointers.
pub const EXT4_NDIR_BLOCKS: u32 = 12;

const WHAT: &str = "block map";

/// The way to a file block: a slot of `i_block`, then a slot in each block of pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Slots, from `i_block` down; 1 to 4.
    pub slots: Vec<u32>,
    /// How many file blocks from this one on have the same way but for the last slot, this one included.
    pub left_in_last: u32,
}

/// The way to `block`; `None` behind the end of what a block map can hold.
pub fn path(block_size: u32, block: FileBlock) -> Option<Path> {
    let per_block = u64::from(block_size / 4);
    let mut index = u64::from(block.0);
    if index < EXT4_NDIR_BLOCKS.into() {
        return Some(Path {
            slots: vec![index as u32],
            left_in_last: EXT4_NDIR_BLOCKS - index as u32,
        });
    }
    index -= u64::from(EXT4_NDIR_BLOCKS);
    let mut span = per_block;
    for level in 1..=3u32 {
        if index < span {
            let mut slots = vec![EXT4_NDIR_BLOCKS + level - 1];
            for _ in 0..level {
                span /= per_block;
                slots.push((index / span) as u32);
                index %= span;
            }
            let last = u64::from(slots[slots.len() - 1]);
            return Some(Path {
                slots,
                left_in_last: (per_block - last) as u32,
            });
        }
        index -= span;
        span *= per_block;
    }
    None
}

/// The pointer in a slot of `i_block` or of a block of pointers; `None`: a hole.
pub fn pointer(bytes: &[u8], slot: u32, blocks_count: u64) -> Result<Option<BlockNo>, Corrupt> {
    let at = slot as usize * 4;
    Corrupt::need(WHAT, bytes, at.saturating_add(4))?;
    let block: u32 = get(bytes, at);
    if u64::from(block) >= blocks_count {
        return Err(Corrupt::field(
            WHAT,
            "pointer",
            at,
            format!("below {blocks_count}"),
            block,
        ));
    }
    Ok((block != 0).then_some(BlockNo(block.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_first_and_last_block_of_each_level() {
        let slots = |block| path(1024, FileBlock(block)).map(|p| p.slots);
        assert_eq!(slots(11), Some(vec![11]));
        assert_eq!(slots(12), Some(vec![12, 0]));
        assert_eq!(slots(12 + 255), Some(vec![12, 255]));
        assert_eq!(slots(12 + 256), Some(vec![13, 0, 0]));
        assert_eq!(slots(12 + 256 + 65535), Some(vec![13, 255, 255]));
        assert_eq!(slots(12 + 256 + 65536), Some(vec![14, 0, 0, 0]));
        assert_eq!(
            slots(12 + 256 + 65536 + 16_777_215),
            Some(vec![14, 255, 255, 255])
        );
        assert_eq!(slots(12 + 256 + 65536 + 16_777_216), None);
        assert_eq!(path(1024, FileBlock(20)).unwrap().left_in_last, 248);
    }

    #[test]
    fn pointers() {
        let bytes = [0, 0, 0, 0, 5, 0, 0, 0];
        assert_eq!(pointer(&bytes, 0, 10), Ok(None));
        assert_eq!(pointer(&bytes, 1, 10), Ok(Some(BlockNo(5))));
        assert!(pointer(&bytes, 1, 5).is_err());
        assert!(pointer(&bytes, 2, 10).is_err());
        assert!(pointer(&bytes, u32::MAX, 10).is_err());
    }
}
