//! The circular log as a row of blocks: where the journal file lies in the volume, and reading and writing at positions
//! that only grow. Owns the arithmetic of wrapping; knows nothing of what the blocks hold.
//!
//! A position (`Pos`) counts log blocks from an arbitrary start and never wraps: position p is log block
//! `s_first + p mod capacity`. So "older" and "newer" are comparisons, and distances are differences.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::JournalError;
use crate::units::{BlockNo, BlockRange, LogBlock};
use crate::volume::Volume;

/// A place in the log that only grows; see the module's text.
pub type Pos = u64;

/// Where the journal file's blocks are, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMap(pub Vec<BlockRange>);

impl LogMap {
    /// Blocks of the file.
    pub fn len_blocks(&self) -> u64 {
        self.0.iter().map(|r| r.len).sum()
    }

    /// The volume block of file block `at` and how many adjacent ones follow, itself included.
    fn locate(&self, at: u64) -> Option<(BlockNo, u64)> {
        let mut before = 0;
        for range in &self.0 {
            if at < before + range.len {
                let inside = at - before;
                return Some((BlockNo(range.start.0 + inside), range.len - inside));
            }
            before += range.len;
        }
        None
    }
}

/// Reads and writes log blocks.
#[derive(Debug)]
pub struct Log {
    volume: Arc<Volume>,
    map: LogMap,
    first: u32,
    capacity: u64,
    block_size: usize,
    written: AtomicU64,
}

impl Log {
    /// The log in file blocks `first..end` of the journal file.
    pub fn new(volume: Arc<Volume>, map: LogMap, first: u32, end: u32) -> Log {
        Log {
            block_size: volume.block_size() as usize,
            volume,
            map,
            first,
            capacity: u64::from(end - first),
            written: AtomicU64::new(0),
        }
    }

    /// Blocks of the circle.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Log blocks written since the start.
    pub fn blocks_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The log block at a position.
    pub fn block_at(&self, pos: Pos) -> LogBlock {
        LogBlock(self.first + (pos % self.capacity) as u32)
    }

    /// The lowest position, not below `from`, of a log block of the circle; `None` when it is outside.
    pub fn pos_from(&self, block: LogBlock, from: Pos) -> Option<Pos> {
        let index = u64::from(block.0.checked_sub(self.first)?);
        if index >= self.capacity {
            return None;
        }
        let lap = from - from % self.capacity;
        let pos = lap + index;
        Some(if pos < from { pos + self.capacity } else { pos })
    }

    /// The journal's ranges of the volume.
    pub fn map(&self) -> &LogMap {
        &self.map
    }

    /// Adjacent pieces of the volume that hold `count` blocks from `pos` on.
    fn runs(&self, pos: Pos, count: u64) -> Vec<(BlockNo, u64)> {
        let mut out = Vec::new();
        let mut done = 0;
        while done < count {
            let index = (pos + done) % self.capacity;
            let (start, here) = self
                .map
                .locate(u64::from(self.first) + index)
                .expect("load checked that the file holds the whole log");
            let here = here.min(self.capacity - index).min(count - done);
            out.push((start, here));
            done += here;
        }
        out
    }

    /// Fills `buf` (whole blocks) from `pos` on.
    pub fn read(&self, pos: Pos, buf: &mut [u8]) -> Result<(), JournalError> {
        let count = (buf.len() / self.block_size) as u64;
        let mut rest = buf;
        for (start, len) in self.runs(pos, count) {
            let (now, later) = rest.split_at_mut(len as usize * self.block_size);
            self.volume
                .read(start, now)
                .map_err(JournalError::io("reading the log"))?;
            rest = later;
        }
        Ok(())
    }

    /// Writes whole blocks from `pos` on.
    pub fn write(&self, pos: Pos, data: &[u8]) -> Result<(), JournalError> {
        let count = (data.len() / self.block_size) as u64;
        let mut rest = data;
        for (start, len) in self.runs(pos, count) {
            let (now, later) = rest.split_at(len as usize * self.block_size);
            self.volume
                .write(start, now)
                .map_err(JournalError::io("writing the log"))?;
            rest = later;
        }
        self.written.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Writes file block 0, the superblock; `bytes` are its first ones, the rest of the block is kept.
    pub fn write_superblock(&self, bytes: &[u8]) -> Result<(), JournalError> {
        let (start, _) = self.map.locate(0).expect("load checked that there is one");
        self.volume
            .write_bytes(start.0 * self.block_size as u64, bytes)
            .map_err(JournalError::io("writing the journal superblock"))
    }
}

/// Collects blocks that follow each other in the log and writes them in large pieces.
#[derive(Debug)]
pub struct LogWriter<'a> {
    log: &'a Log,
    start: Pos,
    buf: Vec<u8>,
}

/// Bytes that are written at once.
const WRITE_PIECE: usize = 1 << 20;

impl<'a> LogWriter<'a> {
    /// A writer whose first block goes to `start`.
    pub fn new(log: &'a Log, start: Pos) -> LogWriter<'a> {
        LogWriter {
            log,
            start,
            buf: Vec::new(),
        }
    }

    /// Where the next block goes.
    pub fn pos(&self) -> Pos {
        self.start + (self.buf.len() / self.log.block_size) as u64
    }

    /// Appends one block.
    pub fn push(&mut self, block: &[u8]) -> Result<(), JournalError> {
        self.buf.extend_from_slice(block);
        if self.buf.len() >= WRITE_PIECE {
            self.finish()?;
        }
        Ok(())
    }

    /// Writes what is left.
    pub fn finish(&mut self) -> Result<(), JournalError> {
        let pos = self.pos();
        if !self.buf.is_empty() {
            self.log.write(self.start, &self.buf)?;
            self.buf.clear();
            self.start = pos;
        }
        Ok(())
    }
}
