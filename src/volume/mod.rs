//! Parts, in order, as one block address space; validation of parts; the fact file; making a file system.
//!
//! Owns the parts of an open volume and knows which of them have unflushed writes. Never looks into a block. Invariants:
//! the address space is the parts' bytes, concatenated; a write that completed before `flush` was called is durable after it,
//! whoever flushes concurrently; after a failed flush, no later one claims success.

mod error;
pub mod facts;
pub mod mkfs;
pub mod parts;

pub use error::VolumeError;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::io::Disk;
use crate::io::counting::{CountingDisk, Counts};
use crate::units::{BlockNo, BlockRange};

/// The block sizes of a volume, in bytes.
pub const BLOCK_SIZES: [u32; 3] = [1024, 2048, 4096];

/// The parts of one open volume. Shared as `Arc<Volume>`; every method may be called from many threads.
#[derive(Debug)]
pub struct Volume {
    parts: Vec<Arc<dyn Disk>>,
    /// The same, for what they have counted.
    counting: Vec<Arc<CountingDisk>>,
    tracks: Vec<Track>,
    /// Byte offset of each part's start, and of the end of the last.
    starts: Vec<u64>,
    block_size: u32,
}

/// Which writes of a part are durable.
#[derive(Debug)]
struct Track {
    /// Writes that have ended, one way or the other. Counted after the disk has answered: a flush that sees the count
    /// begins after the write.
    ended: AtomicU64,
    /// Of those, how many are certainly durable. Only raised, and only with `flushing` held.
    durable: AtomicU64,
    /// Held across the disk's flush, so that callers who wait for it find their writes covered by it or by the next.
    /// True once a flush failed: the kernel reports lost writes once and then forgets them. Taken alone.
    flushing: Mutex<bool>,
}

impl Volume {
    /// One address space of `parts`. Every part must be a multiple of the block, which is one of [`BLOCK_SIZES`].
    pub fn new(parts: Vec<Arc<dyn Disk>>, block_size: u32) -> Result<Volume, VolumeError> {
        if !BLOCK_SIZES.contains(&block_size) {
            return Err(VolumeError::BlockSize { found: block_size });
        }
        if parts.is_empty() {
            return Err(VolumeError::NoParts);
        }
        let mut starts = vec![0];
        let mut end = 0_u64;
        for (part, disk) in parts.iter().enumerate() {
            let len = disk.len();
            if len == 0 || !len.is_multiple_of(u64::from(block_size)) {
                return Err(VolumeError::PartLength {
                    part,
                    name: disk.name(),
                    len,
                    block_size,
                });
            }
            end = end
                .checked_add(len)
                .ok_or_else(|| VolumeError::PartLength {
                    part,
                    name: disk.name(),
                    len,
                    block_size,
                })?;
            starts.push(end);
        }
        let counting: Vec<_> = parts
            .into_iter()
            .map(|part| Arc::new(CountingDisk::new(part)))
            .collect();
        let parts: Vec<Arc<dyn Disk>> = counting
            .iter()
            .map(|part| Arc::clone(part) as Arc<dyn Disk>)
            .collect();
        let tracks = parts
            .iter()
            .map(|_| Track {
                // A part starts dirty: a process that died may have left writes which nobody flushed, and what is
                // read from them now must be durable before anything is concluded from it.
                ended: AtomicU64::new(1),
                durable: AtomicU64::new(0),
                flushing: Mutex::new(false),
            })
            .collect();
        Ok(Volume {
            parts,
            counting,
            tracks,
            starts,
            block_size,
        })
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Blocks of all parts together.
    pub fn blocks_count(&self) -> u64 {
        self.len() / u64::from(self.block_size)
    }

    /// Bytes of all parts together.
    pub fn len(&self) -> u64 {
        self.starts[self.parts.len()]
    }

    /// Always false: every part has at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Arc<dyn Disk>] {
        &self.parts
    }

    /// What went to the parts since the volume was opened.
    pub fn counts(&self) -> Counts {
        self.counting
            .iter()
            .map(|part| part.counts())
            .fold(Counts::default(), Counts::plus)
    }

    /// Reads whole blocks from `start` on.
    pub fn read(&self, start: BlockNo, buf: &mut [u8]) -> Result<(), VolumeError> {
        let offset = self.whole(start, buf.len())?;
        self.read_bytes(offset, buf)
    }

    /// Writes whole blocks from `start` on.
    pub fn write(&self, start: BlockNo, data: &[u8]) -> Result<(), VolumeError> {
        let offset = self.whole(start, data.len())?;
        self.write_bytes(offset, data)
    }

    /// Reads bytes: the superblock is at byte 1024 whatever the block.
    pub fn read_bytes(&self, offset: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        for piece in self.pieces(offset, buf.len() as u64)? {
            let target = &mut buf[piece.at as usize..(piece.at + piece.len) as usize];
            self.parts[piece.part]
                .read_at(target, piece.offset)
                .map_err(|e| self.failed("read", piece, e))?;
        }
        Ok(())
    }

    /// Writes bytes.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        for piece in self.pieces(offset, data.len() as u64)? {
            let source = &data[piece.at as usize..(piece.at + piece.len) as usize];
            self.changing("write", piece, |disk| disk.write_at(source, piece.offset))?;
        }
        Ok(())
    }

    /// Makes the blocks read as zeros and gives their space back where a part can.
    pub fn zero(&self, range: BlockRange) -> Result<(), VolumeError> {
        for piece in self.range_pieces(range)? {
            self.changing("zero", piece, |disk| disk.zero(piece.offset, piece.len))?;
        }
        Ok(())
    }

    /// Reserves space for the blocks; contents are kept. A part that can not reserve is an `Io` error of kind
    /// `Unsupported`.
    pub fn preallocate(&self, range: BlockRange) -> Result<(), VolumeError> {
        for piece in self.range_pieces(range)? {
            self.changing("preallocate", piece, |disk| {
                disk.preallocate(piece.offset, piece.len)
            })?;
        }
        Ok(())
    }

    /// Whether the blocks certainly read as zeros without being read; false when unknown, or not all in the volume.
    pub fn is_hole(&self, range: BlockRange) -> bool {
        match self.range_pieces(range) {
            Ok(mut pieces) => pieces.all(|p| self.parts[p.part].is_hole(p.offset, p.len)),
            Err(_) => false,
        }
    }

    /// Makes every write durable that completed before the call. Parts that nothing was written to are left alone;
    /// concurrent callers share flushes. The first part that fails ends it; from then on this part's flush fails always.
    pub fn flush(&self) -> Result<(), VolumeError> {
        for (part, (disk, track)) in self.parts.iter().zip(&self.tracks).enumerate() {
            let wanted = track.ended.load(Ordering::SeqCst);
            if track.durable.load(Ordering::SeqCst) >= wanted {
                continue;
            }
            let mut failed = track.flushing.lock();
            if *failed {
                return Err(VolumeError::Lost {
                    part,
                    name: disk.name(),
                });
            }
            if track.durable.load(Ordering::SeqCst) >= wanted {
                continue; // The flush we waited for began after our writes had ended.
            }
            let covered = track.ended.load(Ordering::SeqCst);
            if let Err(e) = disk.flush() {
                *failed = true;
                let piece = Piece {
                    part,
                    offset: 0,
                    at: 0,
                    len: disk.len(),
                };
                return Err(self.failed("flush", piece, e));
            }
            track.durable.store(covered, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Which part holds a block, and at which byte of it.
    pub fn locate(&self, block: BlockNo) -> Option<(usize, u64)> {
        let offset = block.0.checked_mul(u64::from(self.block_size))?;
        if offset >= self.len() {
            return None;
        }
        let part = self.part_at(offset);
        Some((part, offset - self.starts[part]))
    }

    /// Checks that `len` bytes are whole blocks; the byte offset of `start`.
    fn whole(&self, start: BlockNo, len: usize) -> Result<u64, VolumeError> {
        let size = u64::from(self.block_size);
        if !(len as u64).is_multiple_of(size) {
            return Err(VolumeError::Unaligned {
                len: len as u64,
                block_size: self.block_size,
            });
        }
        start
            .0
            .checked_mul(size)
            .ok_or_else(|| self.past_end(u64::MAX, len as u64))
    }

    fn range_pieces(
        &self,
        range: BlockRange,
    ) -> Result<impl Iterator<Item = Piece> + '_, VolumeError> {
        let size = u64::from(self.block_size);
        match (range.start.0.checked_mul(size), range.len.checked_mul(size)) {
            (Some(offset), Some(len)) => self.pieces(offset, len),
            _ => Err(self.past_end(u64::MAX, u64::MAX)),
        }
    }

    /// Cuts a range of bytes at the parts' edges.
    fn pieces(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<impl Iterator<Item = Piece> + '_, VolumeError> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.len())
            .ok_or_else(|| self.past_end(offset, len))?;
        let mut at = offset;
        Ok(std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let part = self.part_at(at);
            let n = end.min(self.starts[part + 1]) - at;
            let piece = Piece {
                part,
                offset: at - self.starts[part],
                at: at - offset,
                len: n,
            };
            at += n;
            Some(piece)
        }))
    }

    /// The part that holds a byte within the volume.
    fn part_at(&self, offset: u64) -> usize {
        self.starts.partition_point(|start| *start <= offset) - 1
    }

    fn past_end(&self, offset: u64, len: u64) -> VolumeError {
        VolumeError::PastEnd {
            offset,
            len,
            size: self.len(),
        }
    }

    /// Runs a change of one part and counts it, also when it failed: some of it may have been done.
    fn changing(
        &self,
        action: &'static str,
        piece: Piece,
        change: impl FnOnce(&dyn Disk) -> io::Result<()>,
    ) -> Result<(), VolumeError> {
        let done = change(&*self.parts[piece.part]);
        self.tracks[piece.part].ended.fetch_add(1, Ordering::SeqCst);
        done.map_err(|e| self.failed(action, piece, e))
    }

    fn failed(&self, action: &'static str, piece: Piece, source: io::Error) -> VolumeError {
        VolumeError::Io {
            action,
            part: piece.part,
            name: self.parts[piece.part].name(),
            offset: piece.offset,
            len: piece.len,
            source: Arc::new(source),
        }
    }
}

/// A range of bytes within one part.
#[derive(Clone, Copy, Debug)]
struct Piece {
    part: usize,
    /// First byte in the part.
    offset: u64,
    /// First byte in the request.
    at: u64,
    /// Bytes.
    len: u64,
}

#[cfg(test)]
mod tests;
