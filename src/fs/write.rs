//! Writing data. Owns the choice of the way that bytes take: by value in the running transaction, by reference (fresh blocks,
//! written home before the transaction knows of them), or over what is at home (no mirror, nothing in the log). Blocks that
//! were allocated ahead count as fresh only without a mirror. In every
//! case data, map and length change in one operation, after the data is where it has to be; a write that fails at home has
//! changed nothing.
//!
//! A write holds its inode's data lock exclusively; data goes home with no other lock than the overwrite gate.

use std::borrow::Cow;
use std::ops::Range;

use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use crate::ext4::Inode;
use crate::ext4::inode::flags;
use crate::fs::alloc::BlockRequest;
use crate::fs::blocks::{Blocks, BlocksMut};
use crate::fs::extent::Mapping;
use crate::fs::inode::{InodeStore, blocks_of};
use crate::fs::read::file_block;
use crate::fs::txn::{Op, reach_of};
use crate::fs::{Caller, Fs, FsError};
use crate::journal::{Image, Reference};
use crate::units::{BlockNo, BlockRange, FileBlock, Ino};

/// Fresh data of a request goes by value up to this many bytes: an fsync then costs the log's flushes only.
const FRESH_BY_VALUE_BYTES: usize = 32 << 10;

/// Blocks that one reference covers at most (the journal's limit).
const REFERENCE_BLOCKS: usize = 256;

/// Blocks of data that one operation covers at most.
const CHUNK_BLOCKS: usize = 256;

/// Metadata blocks that one operation of a write changes at most: for each of a few extents a path of the tree with
/// splits, bitmaps and descriptors; the inode.
const WRITE_CREDITS: usize = 40;

/// Separate pieces (extents inserted or converted) of one operation at most.
const CHUNK_PIECES: usize = 4;

/// On whose behalf the kernel asks for a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFor {
    /// Somebody who may not keep set-user-id and set-group-id (FUSE_WRITE_KILL_SUIDGID).
    pub kill_suidgid: bool,
    /// The kernel's own cache (FUSE_WRITE_CACHE). The times of such a write are the kernel's, which sets them by itself,
    /// before or after: the moment at which the bytes arrive here is nobody's.
    pub writeback: bool,
    /// Who writes. Not known for what comes from the kernel's cache: see `write_as`.
    pub caller: Caller,
}

impl WriteFor {
    /// On whose behalf blocks are taken for `inode`.
    fn of(&self, inode: &Inode) -> Caller {
        match self.writeback {
            true => Caller {
                uid: inode.i_uid(),
                gid: inode.i_gid(),
            },
            false => self.caller,
        }
    }
}

/// What is at a piece of the file before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Nothing.
    Hole,
    /// Blocks that read as zeros.
    Unwritten(BlockNo),
    /// Data.
    Written(BlockNo),
}

/// A piece of a write: adjacent blocks in one state.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: FileBlock,
    len: u32,
    before: Before,
    /// Its bytes travel in the transaction.
    by_value: bool,
}

/// Blocks taken for a write, for as long as no transaction knows of them.
pub(crate) struct Reserved<'a> {
    pub fs: &'a Fs,
    pub ranges: Vec<BlockRange>,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.ranges.is_empty() {
            return;
        }
        let mut meta = self.fs.meta.write();
        if let Some(alloc) = &mut meta.alloc {
            for range in self.ranges.drain(..) {
                alloc.unreserve(range);
            }
        }
    }
}

impl Fs {
    /// Writes `data` at `offset`; the number of bytes written, fewer only when space ran out or the disk failed on the way.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize, FsError> {
        self.write_as(ino, offset, data, WriteFor::default())
    }

    /// As `write`, for the kernel. What its cache writes back has nobody behind it any more; ext4 has taken the space when
    /// the program wrote, on behalf of that program. The nearest that can be known is the file's owner: the superuser's
    /// files may use the reserve. And the kernel looks at the error of such a write only, never at its length: it is all
    /// or an error.
    pub fn write_as(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        by: WriteFor,
    ) -> Result<usize, FsError> {
        self.check_writable()?;
        let _entering = self.admit(data.len() as u64);
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(FsError::Refused(libc::EFBIG))?;
        if blocks_of(end, self.block_size) > crate::fs::extent::MAX_FILE_BLOCKS {
            return Err(FsError::Refused(libc::EFBIG));
        }
        let state = self.inodes.get(ino, self.committed());
        let _data = state.data.write();
        let small = data.len() <= FRESH_BY_VALUE_BYTES;
        let mut done = 0;
        let mut most = self.chunk_blocks();
        while done < data.len() {
            let at = offset + done as u64;
            match self.write_chunk(ino, at, &data[done..], most, small, by) {
                Ok(bytes) => done += bytes,
                // What there is room for is written.
                Err(FsError::NoSpace) if most > 1 => most = most.div_ceil(4),
                Err(e) if done > 0 && !by.writeback => {
                    warn!(%ino, error = %e, "a write ended early");
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Data blocks that one operation may carry by value: the metadata must find room beside them.
    fn chunk_blocks(&self) -> usize {
        let room = self.max_transaction_blocks.saturating_sub(WRITE_CREDITS);
        (room / 2).clamp(1, CHUNK_BLOCKS)
    }

    /// Writes as much from the start of `data` as one operation takes, at most `most` blocks; the number of bytes.
    fn write_chunk(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        most: usize,
        small: bool,
        by: WriteFor,
    ) -> Result<usize, FsError> {
        let block_size = self.block_size as u64;
        let first = offset / block_size;
        let last = blocks_of(offset + data.len() as u64, self.block_size);
        let want = first..last.min(first + most as u64);
        // Shared until the data is home, so that the rule can not change under it.
        let mirrored = self.mirrored.read();
        let (pieces, size) = self.pieces(ino, want, small, *mirrored)?;
        let covered = pieces
            .last()
            .map_or(first, |p| u64::from(p.at.0) + u64::from(p.len));
        let end = (offset + data.len() as u64).min(covered * block_size);
        let bytes = (end - offset) as usize;
        let blocks = self.whole_blocks(&pieces, size, offset, &data[..bytes])?;

        let piece_bytes = |piece: &Piece| {
            let from = (u64::from(piece.at.0) - first) as usize * self.block_size;
            &blocks[from..from + piece.len as usize * self.block_size]
        };
        let mut reserved = Reserved {
            fs: self,
            ranges: Vec::new(),
        };
        let mut references = Vec::new();
        for piece in pieces.iter().filter(|piece| !piece.by_value) {
            let bytes = piece_bytes(piece);
            match piece.before {
                Before::Written(block) => self.volume.write(block, bytes)?,
                Before::Unwritten(block) => {
                    self.volume.write(block, bytes)?;
                    self.refer(block, bytes, &mut references);
                }
                Before::Hole => {
                    let from = reserved.ranges.len();
                    self.reserve(ino, piece, by, &mut reserved.ranges)?;
                    let mut rest = bytes;
                    for range in &reserved.ranges[from..] {
                        let (now, later) = rest.split_at(range.len as usize * self.block_size);
                        self.volume.write(range.start, now)?;
                        self.refer(range.start, now, &mut references);
                        rest = later;
                    }
                }
            }
        }
        drop(mirrored);

        let by_value: usize = pieces
            .iter()
            .filter(|piece| piece.by_value)
            .map(|piece| piece.len as usize)
            .sum();
        let mut blocks_changed = false;
        self.change(WRITE_CREDITS + by_value, |op| {
            let mut inode = op.inode(ino)?;
            op.reach = reach_of(op.sb(), by.of(&inode));
            let blocks_before = inode.i_blocks(op.sb());
            let mut ranges = reserved.ranges.iter().copied();
            let mut data_changes = false;
            for piece in &pieces {
                data_changes |= piece.by_value || !matches!(piece.before, Before::Written(_));
                op.write_piece(ino, &mut inode, piece, piece_bytes(piece), &mut ranges)?;
            }
            for reference in &references {
                op.put_reference(*reference);
            }
            if end > size {
                // The block in which the file ended, if it is not one of those written.
                if size / block_size < first {
                    op.zero_tail(ino, &inode, size)?;
                }
                op.set_size(&mut inode, end)?;
                data_changes = true;
            }
            op.drop_privileges(ino, &mut inode, by.kill_suidgid)?;
            if !by.writeback {
                let now = op.now();
                inode.set_i_mtime(now);
                inode.set_i_ctime(now);
            }
            blocks_changed = inode.i_blocks(op.sb()) != blocks_before;
            op.put_inode(ino, &mut inode, data_changes)
        })?;
        reserved.ranges.clear();
        if blocks_changed {
            self.inodes.get(ino, self.committed()).note_blocks();
        }
        Ok(bytes)
    }

    /// Looks up the state of file blocks, as many as one operation covers, and chooses each piece's way; and the file's length.
    fn pieces(
        &self,
        ino: Ino,
        want: Range<u64>,
        small: bool,
        mirrored: bool,
    ) -> Result<(Vec<Piece>, u64), FsError> {
        let view = self.view()?;
        let inode = view.inode(ino)?;
        check_writable_file(&inode)?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut changed = 0;
        let mut at = want.start;
        while at < want.end {
            let file_block = file_block(at)?;
            let (before, len) = match view.map(ino, &inode, file_block, (want.end - at) as u32)? {
                Mapping::Hole(len) => (Before::Hole, len),
                Mapping::Mapped {
                    block,
                    len,
                    unwritten: true,
                } => (Before::Unwritten(block), len),
                Mapping::Mapped { block, len, .. } => (Before::Written(block), len),
            };
            if !matches!(before, Before::Written(_)) {
                // Neighbouring holes are one, whatever the map's answer was.
                let joins = before == Before::Hole
                    && pieces
                        .last()
                        .is_some_and(|piece| piece.before == Before::Hole);
                changed += usize::from(!joins);
                if changed > CHUNK_PIECES {
                    break;
                }
                if joins {
                    pieces.last_mut().expect("was just looked at").len += len;
                    at += u64::from(len);
                    continue;
                }
            }
            if let Before::Written(block) = before {
                self.split_overwrite(&view, file_block, block, len, mirrored, &mut pieces);
            } else {
                // A block that was allocated ahead is zeros on every copy until a transaction says otherwise: with a mirror
                // nothing may be there before that, whatever becomes of the operation.
                let ahead = matches!(before, Before::Unwritten(_));
                pieces.push(Piece {
                    at: file_block,
                    len,
                    before,
                    by_value: small || (ahead && mirrored),
                });
            }
            at += u64::from(len);
        }
        // What is overwritten at home can not be undone, so it does not share an operation with what may find no space.
        let allocates = |piece: &Piece| !matches!(piece.before, Before::Written(_));
        let at_home = |piece: &Piece| !allocates(piece) && !piece.by_value;
        let (mut some_allocate, mut some_at_home) = (false, false);
        let together = pieces.iter().take_while(|piece| {
            some_allocate |= allocates(piece);
            some_at_home |= at_home(piece);
            !(some_allocate && some_at_home)
        });
        let together = together.count();
        pieces.truncate(together);
        Ok((pieces, inode.i_size(view.sb())))
    }

    /// Data that is overwritten: by value while a mirror exists, and where the log or a transaction has an image that a
    /// replay would bring back.
    fn split_overwrite(
        &self,
        view: &crate::fs::meta::View<'_>,
        at: FileBlock,
        block: BlockNo,
        len: u32,
        mirrored: bool,
        pieces: &mut Vec<Piece>,
    ) {
        for i in 0..len {
            let here = BlockNo(block.0 + u64::from(i));
            // In this order: an image leaves the transaction only once the log has it.
            let by_value =
                mirrored || view.meta.uncommitted(here).is_some() || self.journal.has_logged(here);
            match pieces.last_mut() {
                Some(last) if i > 0 && last.by_value == by_value => last.len += 1,
                _ => pieces.push(Piece {
                    at: FileBlock(at.0 + i),
                    len: 1,
                    before: Before::Written(here),
                    by_value,
                }),
            }
        }
    }

    /// The contents of all blocks of the pieces after the write: `data`, and around it what the first and last block have.
    fn whole_blocks<'d>(
        &self,
        pieces: &[Piece],
        size: u64,
        offset: u64,
        data: &'d [u8],
    ) -> Result<Cow<'d, [u8]>, FsError> {
        let block_size = self.block_size;
        let skip = (offset % block_size as u64) as usize;
        let end = skip + data.len();
        let (Some(head), Some(tail)) = (pieces.first(), pieces.last()) else {
            return Ok(Cow::Borrowed(data));
        };
        if skip == 0 && end.is_multiple_of(block_size) {
            return Ok(Cow::Borrowed(data));
        }
        let count: usize = pieces.iter().map(|piece| piece.len as usize).sum();
        let mut blocks = vec![0; count * block_size];
        if skip > 0 {
            self.old_contents(head, 0, size, &mut blocks[..block_size])?;
        }
        if !end.is_multiple_of(block_size) && (count > 1 || skip == 0) {
            let from = blocks.len() - block_size;
            self.old_contents(tail, tail.len - 1, size, &mut blocks[from..])?;
        }
        blocks[skip..end].copy_from_slice(data);
        Ok(Cow::Owned(blocks))
    }

    /// What a block of a piece holds now; zeros where there is nothing and behind the end of the file.
    fn old_contents(
        &self,
        piece: &Piece,
        index: u32,
        size: u64,
        buf: &mut [u8],
    ) -> Result<(), FsError> {
        let Before::Written(block) = piece.before else {
            return Ok(());
        };
        let block = BlockNo(block.0 + u64::from(index));
        let uncommitted = self.view()?.meta.uncommitted(block).cloned();
        match uncommitted {
            Some(image) => buf.copy_from_slice(&image),
            None => self.journal.read(block, buf)?,
        }
        let start = (u64::from(piece.at.0) + u64::from(index)) * self.block_size as u64;
        let keep = size.saturating_sub(start).min(buf.len() as u64) as usize;
        buf[keep..].fill(0);
        Ok(())
    }

    /// References to bytes that are at home from `start` on.
    fn refer(&self, mut start: BlockNo, bytes: &[u8], references: &mut Vec<Reference>) {
        for piece in bytes.chunks(REFERENCE_BLOCKS * self.block_size) {
            let len = (piece.len() / self.block_size) as u64;
            references.push(Reference {
                range: BlockRange::new(start, len),
                xxh3: xxh3_64(piece),
            });
            start = BlockNo(start.0 + len);
        }
    }

    /// Takes blocks for a hole; no transaction knows of them yet.
    fn reserve(
        &self,
        ino: Ino,
        piece: &Piece,
        by: WriteFor,
        ranges: &mut Vec<BlockRange>,
    ) -> Result<(), FsError> {
        let mut left = piece.len;
        let mut goal = None;
        while left > 0 {
            let range = self.retry_space(|| {
                let mut op = self.begin(1)?;
                let inode = op.inode(ino)?;
                let goal = match goal {
                    Some(goal) => goal,
                    None => op.goal_for(ino, &inode, piece.at)?,
                };
                let request = BlockRequest {
                    goal,
                    min: 1,
                    max: left,
                    reach: reach_of(op.sb(), by.of(&inode)),
                };
                op.reserve(&request)
            })?;
            goal = Some(range.end());
            left -= range.len as u32;
            ranges.push(range);
        }
        Ok(())
    }
}

pub(crate) fn check_writable_file(inode: &Inode) -> Result<(), FsError> {
    if inode.is_dir() {
        return Err(FsError::Refused(libc::EISDIR));
    }
    if !inode.is_reg() {
        return Err(FsError::Refused(libc::EINVAL));
    }
    if inode.has_flag(flags::IMMUTABLE) {
        return Err(FsError::Refused(libc::EPERM));
    }
    Ok(())
}

impl Op<'_> {
    /// Brings one piece of a write into the transaction. `reserved`: the ranges that were taken for pieces by reference,
    /// in order.
    fn write_piece(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        piece: &Piece,
        bytes: &[u8],
        reserved: &mut impl Iterator<Item = BlockRange>,
    ) -> Result<(), FsError> {
        match (piece.before, piece.by_value) {
            (Before::Written(_), false) => {}
            (Before::Written(block), true) => self.put_bytes(block, bytes),
            (Before::Unwritten(block), by_value) => {
                self.convert_extent(ino, inode, piece.at, piece.len)?;
                if by_value {
                    self.put_bytes(block, bytes);
                }
            }
            (Before::Hole, by_value) => {
                let mut at = piece.at;
                let mut rest = bytes;
                while !rest.is_empty() {
                    let blocks = (rest.len() / self.fs.block_size) as u32;
                    let range = if by_value {
                        self.add_blocks(ino, inode, at, blocks)?
                    } else {
                        let range = reserved
                            .next()
                            .expect("every block of the piece was reserved");
                        self.take_reserved(range)?;
                        self.insert_extent(ino, inode, at, range, false)?;
                        range
                    };
                    let (now, later) = rest.split_at(range.len as usize * self.fs.block_size);
                    if by_value {
                        self.put_bytes(range.start, now);
                    }
                    rest = later;
                    at = FileBlock(at.0 + range.len as u32);
                }
            }
        }
        Ok(())
    }

    fn put_bytes(&mut self, start: BlockNo, bytes: &[u8]) {
        for (i, block) in bytes.chunks(self.fs.block_size).enumerate() {
            self.put_data(BlockNo(start.0 + i as u64), Image::from(block));
        }
    }
}
