//! Files mapped the ext2 way: 12 direct pointers and three levels of indirect blocks in the inode's 60 bytes. Read-only: such
//! files of an adopted volume can be read; the engine never writes pointers. Little-endian u32 pointers, 0 is a hole.
//! The depth of a walk is fixed by the file block, so it ends on any input.

use crate::fs::FsError;
use crate::fs::blocks::Blocks;
use crate::fs::extent::{Mapping, ROOT_BYTES};
use crate::units::{BlockNo, BlockRange, FileBlock, Ino};

/// Pointers in the inode that lead straight to data.
const DIRECT: u64 = 12;

/// Looks up `at`; the answer covers at most `max_len` blocks and may be followed by more of its kind.
///
/// # Errors
/// [`FsError::Corrupt`] when a pointer leads outside the volume or into its metadata; `EFBIG` beyond the triple indirect range.
pub fn map<B: Blocks + ?Sized>(
    blocks: &B,
    ino: Ino,
    i_block: &[u8; ROOT_BYTES],
    at: FileBlock,
    max_len: u32,
) -> Result<Mapping, FsError> {
    let max_len = u64::from(max_len.max(1));
    let fan = u64::from(blocks.sb().block_size()) / 4;
    let file_block = u64::from(at.0);
    if file_block < DIRECT {
        return run(blocks, ino, i_block, file_block, DIRECT, max_len);
    }
    // Which tree: `offset` is the block's place in it, `span` the blocks below one pointer of the current node.
    let mut offset = file_block - DIRECT;
    let mut span = 1u64;
    let mut word = DIRECT as usize;
    loop {
        let covers = span * fan;
        if offset < covers {
            break;
        }
        offset -= covers;
        span = covers;
        word += 1;
        if word > 14 {
            return Err(FsError::Refused(libc::EFBIG));
        }
    }
    let mut node = pointer(i_block, word);
    // A missing node is a hole over all that it would cover.
    let mut covers = span * fan;
    loop {
        if node == 0 {
            let left = covers - offset % covers;
            return Ok(Mapping::Hole(left.min(max_len) as u32));
        }
        check(blocks, ino, node, 1)?;
        let image = blocks.get(BlockNo(node))?;
        let index = (offset / span) % fan;
        if span == 1 {
            return run(blocks, ino, &image, index, fan, max_len);
        }
        node = pointer(&image, index as usize);
        covers = span;
        span /= fan;
    }
}

/// The run of holes or of adjacent blocks from pointer `from` of a node with `count` pointers on.
fn run<B: Blocks + ?Sized>(
    blocks: &B,
    ino: Ino,
    node: &[u8],
    from: u64,
    count: u64,
    max_len: u64,
) -> Result<Mapping, FsError> {
    let first = pointer(node, from as usize);
    let mut len = 1;
    while len < max_len && from + len < count {
        let next = pointer(node, (from + len) as usize);
        let expected = if first == 0 { 0 } else { first + len };
        if next != expected {
            break;
        }
        len += 1;
    }
    if first == 0 {
        return Ok(Mapping::Hole(len as u32));
    }
    check(blocks, ino, first, len)?;
    Ok(Mapping::Mapped {
        block: BlockNo(first),
        len: len as u32,
        unwritten: false,
    })
}

fn pointer(node: &[u8], i: usize) -> u64 {
    let at = i * 4;
    u64::from(u32::from_le_bytes([
        node[at],
        node[at + 1],
        node[at + 2],
        node[at + 3],
    ]))
}

fn check<B: Blocks + ?Sized>(blocks: &B, ino: Ino, start: u64, len: u64) -> Result<(), FsError> {
    let sb = blocks.sb();
    let range = BlockRange::new(BlockNo(start), len);
    let inside = start > u64::from(sb.s_first_data_block()) && start + len <= sb.s_blocks_count();
    if inside && !blocks.is_system(range) {
        return Ok(());
    }
    Err(FsError::Corrupt {
        what: "indirect map",
        ino: Some(ino),
        block: Some(range.start),
        detail: format!("blocks {range} can not be a file's"),
    })
}
